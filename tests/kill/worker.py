"""A fork server for the kill tests: torch is imported once, and each attempt at a run is a forked child that may be killed.

JSON lines come on stdin and go on stdout:
    {"kind": "ppo", "folder": ..., ...}  ->  {"pid": 123}, and when that child has ended {"ended": -9}
    {}                                   ->  the child's process id is given back to the system; the next line may come
Until then the id stays taken, so that a late kill meets a corpse and never a stranger.

KINDS are the runs, TROUBLES what can befall one, FAULTS what would be wrong with the code: a comparison that lets a fault
pass proves nothing.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reward_by_hand
import torch

from tutelage.core.errors import UserError
from tutelage.data import starter
from tutelage.models.load import load
from tutelage.store.runs import Run
from tutelage.training import loop as loop_module
from tutelage.training import rl as rl_module
from tutelage.training import state as state_module
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig, Optimizer
from tutelage.training.ppo import PPOConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.sft import SFTConfig, sft
from tutelage.training.state import SaveConfig

FEW_BYTES = 40  # of a question or an answer: the model `test` reads bytes, and a step should take a tenth of a second


def run_sft(folder: Path, **rest: Any) -> Any:
    return _sft(folder, OptimConfig(learning_rate=2e-4), LoopConfig(epochs=2, rows_per_step=3, eval_every=3), **rest)


def run_stopping(folder: Path, **rest: Any) -> Any:
    """SFT that gets worse at once (the learning rate is far too high) and stops early."""
    optim = OptimConfig(learning_rate=0.3, clip=0, warmup=0)
    return _sft(folder, optim, LoopConfig(epochs=2, rows_per_step=3, eval_every=1, patience=3), **rest)


def _sft(folder: Path, optim: OptimConfig, loop: LoopConfig, **rest: Any) -> Any:
    short = [each for each in starter.instructions()
             if len(each.messages) == 2 and sum(len(m.text) for m in each.messages) < 2 * FEW_BYTES]
    return sft(SFTConfig(model="test", max_tokens=128, optim=optim, loop=loop, save=SaveConfig(every_steps=1)),
               train=short[:15], val=short[:3], folder=folder, **rest)


def run_reward(folder: Path, **rest: Any) -> Any:
    length = lambda each: len(each.prompt.messages[-1].text) + len(each.chosen.text) + len(each.rejected.text)
    short = sorted(starter.preferences(), key=length)
    config = RewardConfig(model="test", max_tokens=128, optim=OptimConfig(learning_rate=1e-3, weight_decay=0.01),
                          loop=LoopConfig(epochs=2, rows_per_step=3, keep_best=False), save=SaveConfig(every_steps=2))
    return reward(config, train=short[:12], val=short[12:15], folder=folder, **rest)


def run_ppo(folder: Path, **rest: Any) -> Any:
    short = [each.prompt for each in starter.preferences() if len(each.prompt.messages[-1].text) < FEW_BYTES]
    config = PPOConfig(
        model="test", reward=f"python:{Path(reward_by_hand.__file__)}:score", steps=6, prompts_per_step=3,
        responses_per_prompt=2, max_tokens=5, normalise_on=4, beta=0.1, kl_target=0.01, kl_horizon=20, epochs=1,
        minibatches=2, optim=OptimConfig(learning_rate=1e-3, warmup=0.1), lora=LoraConfig(rank=4),
        save=SaveConfig(every_steps=1))
    # 8 prompts, 3 a step: an epoch ends with a step of 2
    return rl_module.rl(config, prompts=short[:8], folder=folder, **rest)


KINDS: dict[str, Callable[..., Any]] = {"sft": run_sft, "reward": run_reward, "ppo": run_ppo, "stopping": run_stopping}


# -- what can befall a run -----------------------------------------------------------------------------------------


def kill_self(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_self() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def before(owner: Any, name: str, act: Callable[..., Any]) -> None:
    """Do `act` each time before `owner.name` is called."""
    known = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return known(*args, **kwargs)

    setattr(owner, name, called)


def after(owner: Any, name: str, act: Callable[[], None]) -> None:
    known = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        out = known(*args, **kwargs)
        act()
        return out

    setattr(owner, name, called)


def full_disk(owner: Any, name: str, *, where: str) -> None:
    """`owner.name` refuses as soon as the checkpoint `where` is being written."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        if list((RUN / "checkpoints").glob(f".{where}.*.tmp")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before(owner, name, refuse)


def read_only() -> None:
    """Nothing can be made in the checkpoints folder from now on, as on a disk that was mounted anew for reading."""
    (RUN / "checkpoints").chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may write everywhere, nobody may not


def no_more_bytes(*_: Any, **__: Any) -> None:
    """A limit of the system: no file may grow beyond 100 kB, which the metrics never reach and weights do."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def full_metrics(run: Run, row: dict[str, Any]) -> None:
    """A device that is always full stands in for the disk under the metrics."""
    run._metrics = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115


def kill_where_best_is_gone(source: Path, target: Path) -> None:
    """Better weights are about to take the place of weights that are gone already."""
    if Path(target).name == "best" and (RUN / "checkpoints" / "000005").exists():
        kill_self()


def at_step(number: int, act: Callable[[], None]) -> None:
    """Do `act` when step `number` is done and its checkpoint not yet begun."""
    STEPS.append((number, act))


def before_step(number: int, act: Callable[[], None]) -> None:
    """Do `act` in the middle of step `number`."""
    seen = {"steps": 0}

    def count(*args: Any, **kwargs: Any) -> None:
        seen["steps"] += 1
        if seen["steps"] == number:
            act()

    before(loop_module, "_step", count)
    before(rl_module.LocalEngine, "refresh", count)


STEPS: list[tuple[int, Callable[[], None]]] = []
RUN = Path()
TROUBLES: dict[str, Callable[[], None]] = {
    "kill at step 3": lambda: at_step(3, kill_self),
    "kill at step 5": lambda: at_step(5, kill_self),
    "kill before finish": lambda: before(Run, "finish", kill_self),
    "kill in finish, before the rename": lambda: before(Run, "finish", lambda *_, **__: before(os, "rename", kill_self)),
    "kill in finish, before the mark": lambda: before(Run, "mark", kill_self),
    "kill in finish, after the mark": lambda: after(Run, "mark", kill_self),
    "kill after finish": lambda: after(Run, "finish", kill_self),
    "kill in resume, after the cut": lambda: after(Run, "cut_metrics", kill_self),
    "kill while best is replaced": lambda: before(os, "rename", kill_where_best_is_gone),
    "ctrl-c in step 3": lambda: before_step(3, interrupt_self),
    "full disk at fsync": lambda: full_disk(os, "fsync", where="000002"),
    "full disk at save_file": lambda: full_disk(state_module, "save_file", where="000002"),
    "full disk at the best weights": lambda: at_step(5, lambda: before(loop_module, "_evaluate", no_more_bytes)),
    "full disk at the metrics": lambda: at_step(3, lambda: before(Run, "log", full_metrics)),
    "read-only folder": lambda: at_step(3, read_only),
}


# -- what would be wrong with the code -----------------------------------------------------------------------------


def forget(owner: Any, name: str, **changed: Any) -> None:
    """`owner.name(tensors-or-facts, ...)` is called with something missing."""
    known = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: known(*args, **{**kwargs, **changed}))


def without_moments(self: Optimizer, state: dict[str, torch.Tensor], *, updates: int, known=Optimizer.load) -> None:
    known(self, {name: t for name, t in state.items() if not name.startswith("adam.exp_avg.")} | {
        name: torch.zeros_like(t) for name, t in state.items() if name.startswith("adam.exp_avg.")}, updates=updates)


def without_fact(module: Any, name: str, value: Any) -> None:
    known = module.read_state

    def read(folder: Path) -> tuple[dict, dict]:
        tensors, facts = known(folder)
        return tensors, {**facts, name: value(facts[name])}

    module.read_state = read


def without_generator(module: Any) -> None:
    after(module, "read_state", lambda: torch.manual_seed(0))


FAULTS: dict[str, Callable[[], None]] = {
    "metrics not cut back": lambda: setattr(Run, "cut_metrics", lambda self, length: None),
    "moments forgotten": lambda: setattr(Optimizer, "load", without_moments),
    "schedule begun anew": lambda: forget(Optimizer, "load", updates=0),
    "generator forgotten": lambda: without_generator(rl_module),
    "KL controller begun anew": lambda: without_fact(rl_module, "beta", lambda _: 0.1),
    "reward's scale forgotten": lambda: without_fact(rl_module, "gain", lambda _: 1.0),
    "rows drawn anew": lambda: forget(loop_module, "epochs_of_steps", seed=99),
    "prompts drawn anew": lambda: forget(rl_module, "epochs_of_steps", seed=99),
    "a step repeated": lambda: without_fact(loop_module, "step", lambda step: step - 1),
    "best evaluation forgotten": lambda: without_fact(loop_module, "best", lambda _: {"eval_loss": 1e9}),
}


# -- one attempt ---------------------------------------------------------------------------------------------------


def attempt(job: dict[str, Any]) -> dict[str, Any]:
    """Begin or resume a run in this process and say how it ended; what never returns was killed."""
    global RUN
    RUN = Path(job["folder"])
    os.environ["KILL_ASKED"] = job["asked"]
    before(loop_module, "_step", lambda task, module, optimizer, at, step, facts, **_: reward_by_hand.note(step, at))
    before(Run, "finish", keep_last_checkpoint)
    for name in (job.get("trouble"), job.get("fault")):
        if name:
            {**TROUBLES, **FAULTS}[name]()
    warnings: list[str] = []
    try:
        KINDS[job["kind"]](RUN, resume=True, warn=warnings.append, progress=progress)
        return {"done": True, "warnings": warnings}
    except UserError as error:
        return {"error": type(error).__name__, "text": str(error), "warnings": warnings}
    except KeyboardInterrupt as stopped:
        return {"stopped": str(stopped), "warnings": warnings}


def progress(what: str, done: int, total: int) -> None:
    for number, act in STEPS:
        if done == number:
            act()


def keep_last_checkpoint(run: Run, *_: Any, **__: Any) -> None:
    """The last checkpoint goes when a run is finished; the comparison wants it (optimiser state, counters)."""
    kept = run.folder.parent / "last"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run.newest(), kept)


def serve(replies: int) -> None:
    """Until stdin ends."""
    say = lambda **words: os.write(replies, (json.dumps(words) + "\n").encode())
    say(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become_child(job)
        say(pid=pid)
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # ended, and its process id still taken
        say(ended=-status.si_status if status.si_code in (os.CLD_KILLED, os.CLD_DUMPED) else status.si_status)
        sys.stdin.readline()
        os.waitpid(pid, 0)


def become_child(job: dict[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told = attempt(job)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(job["told"]).write_text(json.dumps(told), encoding="utf-8")
        code = 0
    except BaseException:  # noqa: B036 - a child must never fall back into the server's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the caller's business
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not speak among the replies
    torch.set_num_threads(1)
    load("test")  # written into the cache once; no backward pass here, so no thread is lost in a fork
    starter.instructions(), starter.preferences()
    serve(replies)


if __name__ == "__main__":
    main()
