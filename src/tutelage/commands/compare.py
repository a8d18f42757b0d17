"""`tutelage compare A B --judge PATH`: how often the judge prefers A's answer, with its interval."""

from argparse import Namespace
from pathlib import Path

from tutelage.commands.engines import open_engine, open_judge, read_answers, read_prompts, sampling_of, spread_out
from tutelage.commands.evaluate import win
from tutelage.core.errors import UserError
from tutelage.core.protocols import Judge, Progress, silent
from tutelage.core.words import Prompt, Response, Sampling
from tutelage.evals.tasks import GREEDY, answer_all
from tutelage.evals.winrate import WinRate, win_rate
from tutelage.recipes import find_workspace, short_name
from tutelage.stats.intervals import Interval
from tutelage.terminal import Terminal


def compare(
    a: str,
    b: str,
    *,
    judge: Judge,
    workspace: Path,
    prompts: list[Prompt],
    sampling: Sampling = GREEDY,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> WinRate:
    """Answers of both to the prompts (or from files that `tutelage respond` wrote), judged."""
    names = (short_name(a), short_name(b))
    if names[0] == names[1]:
        names = (a, b)
    answers = [
        _answers(each, workspace, prompts, sampling, dtype=dtype, device=device, progress=progress) for each in (a, b)
    ]
    return win_rate(judge, prompts, *answers, names=names, seed=seed)


def _answers(
    name: str,
    workspace: Path,
    prompts: list[Prompt],
    sampling: Sampling,
    *,
    dtype: str,
    device: str,
    progress: Progress,
) -> list[Response]:
    if is_answers(name):
        wanted = {prompt.id for prompt in prompts}
        return [response for response in read_answers(Path(name))[1] if response.prompt_id in wanted]
    engine = open_engine(name, workspace, dtype=dtype, device=device, progress=progress)
    return answer_all(
        engine,
        prompts,
        sampling,
        progress=lambda what, done, total: progress(f"answers of {engine.policy}", done, total),
    )


def is_answers(name: str) -> bool:
    return name.endswith(".jsonl") and Path(name).is_file()


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    if is_answers(args.a) and is_answers(args.b):
        prompts = read_answers(Path(args.a))[0]
        other = {prompt.id for prompt in read_answers(Path(args.b))[0]}
        prompts = [prompt for prompt in prompts if prompt.id in other]
        if not prompts:
            raise UserError(f"{args.a} and {args.b} share no prompt")
    else:
        prompts = read_prompts(args.data, workspace, held_out=True, tell=terminal.note)
        for name in filter(is_answers, (args.a, args.b)):
            known = {prompt.id for prompt in read_answers(Path(name))[0]}
            prompts = [prompt for prompt in prompts if prompt.id in known]
            if not prompts:
                raise UserError(
                    f"{name} answers none of the prompts of {args.data}; name the data it was made from with --data"
                )
    prompts = spread_out(prompts, args.limit)
    judge = open_judge(args.judge, workspace, dtype=args.dtype, device=args.device)
    with terminal.progress() as progress:
        found = compare(
            args.a,
            args.b,
            judge=judge,
            workspace=workspace,
            prompts=prompts,
            sampling=sampling_of(args),
            dtype=args.dtype,
            device=args.device,
            seed=args.seed,
            progress=progress,
        )
    show(found, terminal)
    terminal.result({**win(found), "prompts": len(prompts)})
    return 0


def show(found: WinRate, terminal: Terminal) -> None:
    """The verdict in a sentence, and the win rate by task."""
    terminal.say()
    terminal.say(f"{found.a} against {found.b}, by {found.judge}: {percent(found.interval)}", style="bold")
    terminal.say(f"  {found.wins} wins, {found.ties} ties, {found.losses} losses; {verdict(found)}")
    if found.length_matched is not None:
        terminal.say(f"  where both answers are about as long: {percent(found.length_matched)}")
    terminal.say()
    terminal.table(
        ["task", "win rate", "95 % interval", "prompts"],
        right=(1, 2, 3),
        rows=[
            (task, f"{100 * each.estimate:.1f} %", f"[{100 * each.low:.0f}, {100 * each.high:.0f}]", each.n)
            for task, each in found.by_task.items()
        ],
    )


def percent(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def verdict(found: WinRate) -> str:
    if not found.interval.excludes(0.5):
        return "the interval holds 50 %, so neither is shown to be better"
    return f"the judge prefers {found.a if found.rate > 0.5 else found.b}"
