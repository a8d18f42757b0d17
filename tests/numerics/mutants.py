"""Faults planted on purpose, one at a time: the tests must see each of them, or their green says little.

    python tests/numerics/mutants.py            all of them; the last line counts
    python tests/numerics/mutants.py ppo shift  those whose file or name holds one of these words

Each mutant is a file of the package, a snippet of it, what stands there instead, and a name.  Nothing on disk changes:
this process loads torch once and forks a child a mutant; in the child the module is compiled from the altered source
when a test imports it, and the tests of that module are run until the first failure.  A mutant is caught when tests fail
(pytest's exit code 1); a module that no longer compiles, tests that cannot be collected, or a child that hangs count as
errors, so that nothing is caught by accident.  Each test file is run once without a fault, too, and must pass.
"""

import contextlib
import gc
import importlib.util
import json
import os
import signal
import sys
import tempfile
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process whose threads run must not be forked
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis  # noqa: E402, F401 - loaded once here, for all children
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402, F401

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "tutelage"
SECONDS = 60  # for one child
# unraisableexception collects garbage five times over torch's whole heap, half of each child's time
PYTEST = ["-x", "-q", "--tb=line", "-o", "addopts=", "-pno:cacheprovider", "-pno:randomly", "-pno:unraisableexception"]


class Mutant(NamedTuple):
    file: str  # below src/tutelage
    name: str
    old: str  # stands there exactly once
    new: str


TESTS = {
    "algos/masked.py": "tests/numerics/test_masked.py",
    "algos/gae.py": "tests/numerics/test_gae.py",
    "algos/ppo.py": "tests/numerics/test_ppo.py",
    "algos/kl.py": "tests/numerics/test_kl.py",
    "algos/cross_entropy.py": "tests/numerics/test_cross_entropy.py",
    "algos/preference.py": "tests/numerics/test_preference.py",
    "text/chat.py": "tests/text/test_chat.py",
    "text/mask.py": "tests/text/test_mask.py",
    "text/pack.py": "tests/text/test_pack.py",
    "training/batch.py": "tests/training/test_batch.py",
    "training/optim.py": "tests/training/test_optim.py",
}


def of(file: str, *faults: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(file, *fault) for fault in faults]


MUTANTS = [
    *of("algos/masked.py",
        ("multiply by the mask", "return torch.where(mask, x, 0.0).sum()", "return (x * mask).sum()"),
        ("divide by all positions", "/ mask.sum().clamp(min=1)", "/ mask.numel()"),
        ("divide by no position", ".clamp(min=1)", ""),
        ("sample variance", "return masked_mean((x - masked_mean(x, mask)) ** 2, mask)",
         "return masked_sum((x - masked_mean(x, mask)) ** 2, mask) / (mask.sum() - 1)"),
        ("standardize without eps", "out = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps)",
         "out = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask))"),
        ("standardize row by row", "out = (x - masked_mean(x, mask)) *",
         "out = (x - torch.stack([masked_mean(a, b) for a, b in zip(x, mask)])[:, None]) *"),
        ("standardize leaves the rest", "rsqrt(masked_var(x, mask) + eps)\n    return torch.where(mask, out, 0.0)",
         "rsqrt(masked_var(x, mask) + eps)\n    return out"),
        ("rescale shifts the mean", "+ eps) + mean\n", "+ eps)\n"),
        ("last by count", "return torch.where(mask_BT, columns, -1).amax(dim=1)",
         "return mask_BT.sum(1) - 1 + 0 * columns[0]")),
    *of("algos/gae.py",
        ("forget lambda", "gamma * lam * next_advantage_B", "gamma * next_advantage_B"),
        ("forget gamma in the error", "+ gamma * next_value_B", "+ next_value_B"),
        ("forget gamma in the sum", "gamma * lam * next_advantage_B", "lam * next_advantage_B"),
        ("add the value", "next_value_B - value_BT[:, t]", "next_value_B + value_BT[:, t]"),
        ("a gap zeroes the advantage", "next_advantage_B = torch.where(acted_B, advantage_B, next_advantage_B)",
         "next_advantage_B = torch.where(acted_B, advantage_B, 0.0)"),
        ("a gap brings its own value", "next_value_B = torch.where(acted_B, value_BT[:, t], next_value_B)",
         "next_value_B = value_BT[:, t]"),
        ("no mask on the advantage", "advantage_BT[:, t] = torch.where(acted_B, advantage_B, 0.0)",
         "advantage_BT[:, t] = advantage_B"),
        ("return without the value", "torch.where(acted_BT, advantage_BT + value_BT, 0.0)",
         "torch.where(acted_BT, advantage_BT, 0.0)"),
        ("skip the first token", "in reversed(range(reward_BT.shape[1]))", "in reversed(range(1, reward_BT.shape[1]))")),
    *of("algos/ppo.py",
        ("drop the minimum", "objective_BT = torch.minimum(plain_BT, limited_BT)", "objective_BT = plain_BT"),
        ("always the clipped one", "objective_BT = torch.minimum(plain_BT, limited_BT)", "objective_BT = limited_BT"),
        ("maximum for minimum", "torch.minimum(plain_BT, limited_BT)", "torch.maximum(plain_BT, limited_BT)"),
        ("flip the sign", "torch.where(acted_BT, -objective_BT, 0.0)", "torch.where(acted_BT, objective_BT, 0.0)"),
        ("invert the ratio", "torch.where(acted_BT, logp_BT - old_logp_BT, 0.0)",
         "torch.where(acted_BT, old_logp_BT - logp_BT, 0.0)"),
        ("widen the upper bound", "1 + clip", "1 + 2 * clip"),
        ("widen the lower bound", "1 - clip", "1 - 2 * clip"),
        ("no mask on the loss", "torch.where(acted_BT, -objective_BT, 0.0)", "-objective_BT"),
        ("multiply by the mask", "torch.where(acted_BT, logp_BT - old_logp_BT, 0.0)", "((logp_BT - old_logp_BT) * acted_BT)"),
        ("no limit on the log-ratio", ".clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)", ""),
        ("dual clip on good actions too", "(advantage_BT < 0) & (objective_BT < floor_BT)", "(objective_BT < floor_BT)"),
        ("dual clip forgotten", "objective_BT = torch.where(below_BT, floor_BT, objective_BT)", "pass"),
        ("kl to the old policy upside down", "torch.expm1(log_ratio_BT) - log_ratio_BT",
         "torch.expm1(-log_ratio_BT) + log_ratio_BT"),
        ("smaller of the value errors", "torch.maximum(error_BT, near_error_BT)", "torch.minimum(error_BT, near_error_BT)"),
        ("value clip around the return", "near_BT = old_value_BT +", "near_BT = return_BT +"),
        ("whole squared error", "0.5 * error_BT", "error_BT"),
        ("garbage in values", "(torch.where(acted_BT, x, 0.0) for x in (value_BT, old_value_BT, return_BT))",
         "(value_BT, old_value_BT, return_BT)")),
    *of("algos/kl.py",
        ("k1 upside down", "torch.where(acted_BT, logp_BT - ref_logp_BT, 0.0)",
         "torch.where(acted_BT, ref_logp_BT - logp_BT, 0.0)"),
        ("no mask", "torch.where(acted_BT, logp_BT - ref_logp_BT, 0.0)", "logp_BT - ref_logp_BT"),
        ("k2 whole", "0.5 * k1", "k1"),
        ("k3 upside down", "torch.expm1((-u_BT).clamp(-20, 20)) + u_BT", "torch.expm1(u_BT.clamp(-20, 20)) - u_BT"),
        ("k3 without limit", "(-u_BT).clamp(-20, 20)", "(-u_BT)"),
        ("k3 loses digits", "torch.expm1((-u_BT).clamp(-20, 20)) + u_BT", "torch.exp((-u_BT).clamp(-20, 20)) - 1 + u_BT"),
        ("controller the wrong way", "(1 + error * responses", "(1 - error * responses"),
        ("controller without bounds", "min(max(kl / self.target - 1, -0.2), 0.2)", "kl / self.target - 1"),
        ("controller forgets the batch", "error * responses / self.horizon", "error / self.horizon")),
    *of("algos/cross_entropy.py",
        ("forget the temperature", "logits_NV / temperature", "logits_NV"),
        ("multiply by the temperature", "logits_NV / temperature", "logits_NV * temperature"),
        ("entropy though not wanted", "if not entropy:", "if False:"),
        ("no entropy though wanted", "if not entropy:", "if True:"),
        ("log-softmax in the head's dtype", "head(hidden_ND).float()", "head(hidden_ND)"),
        ("entropy upside down", "entropy_N = -(", "entropy_N = ("),
        ("entropy always with gradient", "torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled())",
         "torch.enable_grad()"),
        ("keep the logits", "checkpoint(_logps, *args, use_reentrant=False)", "_logps(*args)"),
        ("all logits at once", "    logps, entropies = [], []",
         "    chunk = max(1, hidden_ND.shape[0])\n    logps, entropies = [], []"),
        ("lose the last chunk", "range(0, hidden_ND.shape[0], chunk)", "range(0, hidden_ND.shape[0] - chunk + 1, chunk)"),
        ("mean of means for token", "return [max(sum(row_weights), 1e-8)] * len(row_weights)",
         "return [max(len(row_weights) * weight, 1e-8) for weight in row_weights]"),
        ("example forgets how many", "max(len(row_weights) * weight, 1e-8)", "max(weight, 1e-8)"),
        ("divide by zero weight", "[max(sum(row_weights), 1e-8)]", "[sum(row_weights)]")),
    *of("algos/preference.py",
        ("chosen and rejected swapped", "d_P = chosen_P - rejected_P", "d_P = rejected_P - chosen_P"),
        ("margin helps", "d_P = d_P - margin_P", "d_P = d_P + margin_P"),
        ("soft label ignored", "if soft_label_P is None else soft_label_P", "if True else soft_label_P"),
        ("second term lost", " - (1 - p_P) * F.logsigmoid(-d_P)", ""),
        ("log of sigmoid", "loss_P = -p_P * F.logsigmoid(d_P)", "loss_P = -p_P * d_P.sigmoid().log()"),
        ("a tie is right", "(chosen_P > rejected_P)", "(chosen_P >= rejected_P)"),
        ("centre the difference", "centre * (chosen_P + rejected_P) ** 2", "centre * (chosen_P - rejected_P) ** 2"),
        ("absolute error", "return (score_N - rating_N) ** 2", "return (score_N - rating_N).abs()")),
    *of("text/chat.py",
        ("two BOS", "tokenizer(text, add_special_tokens=False)", "tokenizer(text)"),
        ("no generation prompt", "render(tokenizer, prompt.messages, tools=prompt.tools, answer_next=True)",
         "render(tokenizer, prompt.messages, tools=prompt.tools)"),
        ("turn ends with a role only", "special |= {", "_ = {"),
        ("one eos of several", "out |= set(eos) if", "out |= {eos[0]} if"),
        ("forget the turn end", "out = set(turn_end_ids(tokenizer))", "out = set()"),
        ("digest without the template", "canonical_json([template_of(tokenizer), special])", "canonical_json([special])"),
        ("digest with the pad", 'special.pop("pad_token", None)', "pass")),
    *of("text/mask.py",
        ("train the prompt", "weights + [0.0] * len(gap)", "weights + [message.weight] * len(gap)"),
        ("weight of a message ignored", "[message.weight] * len(turn_ids)", "[1.0] * len(turn_ids)"),
        ("turn end not trained", "tail.rfind(mark) + len(mark)", "tail.rfind(mark)"),
        ("newline behind the turn trained", "    return tail[:cut]", "    return tail"),
        ("generation prompt trained", "tools=example.tools, answer_next=True)", "tools=example.tools)"),
        ("mask by pad id", "return [row for row in rows if row.trained()]",
         "return [Row(ids, [w * (t != tokenizer.pad_token_id) for t, w in zip(ids, weights)]) for ids, weights in rows]"),
        ("rewritten turns not seen", "if not before.startswith(text_so_far):", "if False:"),
        ("earlier turns trained again", "ids, weights, text_so_far = [], [], \"\"\n        gap",
         "ids, text_so_far = [], \"\"\n        gap"),
        ("gap lost", "encode(tokenizer, before[len(text_so_far):])", "[]"),
        ("eos behind every row", "if ids[-1] in ends or tokenizer.eos_token_id is None:", "if tokenizer.eos_token_id is None:"),
        ("no eos where no turn end", "if ids[-1] in ends or tokenizer.eos_token_id is None:", "if True:"),
        ("cut at the left", "Row(row.token_ids[:max_tokens], row.weights[:max_tokens])",
         "Row(row.token_ids[-max_tokens:], row.weights[-max_tokens:])"),
        ("rows without training kept", "return [row for row in rows if row.trained()]", "return rows"),
        ("header of a first turn trained", 'before = after.partition(message.text.strip())[0] if', 'before = "" if'),
        ("answer without its end", "answer_ids = encode(tokenizer, answer) + ([end] if end is not None else [])",
         "answer_ids = encode(tokenizer, answer)"),
        ("answer row cut at the prompt's end", "prompt_ids[len(prompt_ids) - keep:]", "prompt_ids[:keep]")),
    *of("text/pack.py",
        ("budget without padding", "(len(out[-1]) + 1) * lengths[out[-1][0]] <= token_budget",
         "sum(lengths[i] for i in out[-1]) + lengths[at] <= token_budget"),
        ("every epoch alike", 'random.Random(f"{seed}/{epoch}")', 'random.Random(f"{seed}")'),
        ("last step dropped", "range(0, count, rows_per_step)", "range(0, count - rows_per_step + 1, rows_per_step)")),
    *of("training/batch.py",
        ("no shift", "hidden_BTD[:, :-1][acted_BT[:, 1:]]", "hidden_BTD[acted_BT]"),
        ("shift twice", "hidden_BTD[:, :-1][acted_BT[:, 1:]]", "hidden_BTD.roll(2, 1)[acted_BT]"),
        ("shift the targets", "token_BT[acted_BT], head", "token_BT.roll(1, 1)[acted_BT], head"),
        ("value of the state behind", "value_head(before_ND)", "value_head(hidden_BTD[acted_BT])"),
        ("temperature not passed on", "temperature=temperature, ", ""),
        ("chunk not passed on", "chunk=chunk", "chunk=256"),
        ("first token trained", "    weight_BT[:, 0] = 0  #", "    #"),
        ("real by pad id", "real_BT[at, :length] = True", "real_BT[at, :length] = token_BT[at, :length] != pad_id"),
        ("weights at the right edge", "weight_BT[at, :length] =", "weight_BT[at, width - length:] ="),
        ("tokens at the right edge", "token_BT[at, :length] = torch", "token_BT[at, width - length:] = torch"),
        ("everything acted", "return self.weight_BT > 0", "return self.real_BT"),
        ("half weights not acted", "return self.weight_BT > 0", "return self.weight_BT >= 1"),
        ("spread column by column", "out_BT.masked_scatter(mask_BT, x_N)", "out_BT.T.masked_scatter(mask_BT.T, x_N).T")),
    *of("training/optim.py",
        ("no clip", "self.config.clip / norm)", "1.0)"),
        ("clip what is short", "if self.config.clip and norm > self.config.clip:", "if self.config.clip:"),
        ("step on a gradient that is not finite", "if math.isfinite(norm):", "if True:"),
        ("gradients kept", "        for master in self.masters.values():\n            master.grad = None", "        pass"),
        ("last micro-batch wins", "master.grad.add_(p.grad)", "p.grad.float()"),
        ("sum in bfloat16", "p.grad.float() if master.grad is None else master.grad.add_(p.grad)",
         "p.grad.float() if master.grad is None else (master.grad.bfloat16() + p.grad).float()"),
        ("masters not copied back", "p.copy_(self.masters[name])", "pass"),
        ("decay on vectors", '"params": vectors, "weight_decay": 0.0',
         '"params": vectors, "weight_decay": config.weight_decay'),
        ("schedule one late", "scale_at(self.config, self.updates, self.total_updates)",
         "scale_at(self.config, max(0, self.updates - 1), self.total_updates)"),
        ("moments not loaded", "            if keys:", "            if False:"),
        ("moments shine through", "        self.adam.state.clear()\n", ""),
        ("state tied to the saved one", "copy=True)", "copy=False)"),
        ("cosine of the whole circle", "math.cos(math.pi * done)", "math.cos(2 * math.pi * done)")),
]


class Altered(MetaPathFinder, Loader):
    """Gives one module from altered source."""

    def __init__(self, module: str, path: Path, source: str):
        self.module, self.path, self.code = module, path, compile(source, str(path), "exec")

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, origin=str(self.path)) if name == self.module else None

    def exec_module(self, module):
        module.__file__ = str(self.path)
        exec(self.code, module.__dict__)


def misplaced(mutant: Mutant) -> str | None:
    """What is wrong where the snippet does not stand there exactly once: the table has to follow the code."""
    places = (SRC / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return None if places == 1 else f"{mutant.file}: {places} places read {mutant.old!r}, wanted 1 (mutant '{mutant.name}')"


def altered(mutant: Mutant) -> Altered:
    path = SRC / mutant.file
    source = path.read_text(encoding="utf-8")
    module = "tutelage." + mutant.file.removesuffix(".py").replace("/", ".")
    return Altered(module, path, source.replace(mutant.old, mutant.new))


def child(mutant: Mutant | None, tests: str, report: Path) -> None:
    """Run the tests in this forked process and leave with pytest's exit code."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing, not of waiting for a busy machine
    with open(report, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 70
    try:
        if mutant is not None:
            finder = altered(mutant)
            sys.meta_path.insert(0, finder)
            importlib.import_module(finder.module)  # a mutant that cannot even be imported proves nothing
        code = int(pytest.main([*PYTEST, tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(jobs: list[tuple[Mutant | None, str]], *, workers: int) -> list[tuple[int, str]]:
    """(exit status, output) of each job, in order; `workers` at a time."""
    results: dict[int, tuple[int, str]] = {}
    running: dict[int, int] = {}  # process -> number of its job
    with tempfile.TemporaryDirectory() as folder:

        def wait() -> None:
            pid, status = os.wait()
            at = running.pop(pid)
            results[at] = os.waitstatus_to_exitcode(status), (Path(folder) / str(at)).read_text(errors="replace")

        for at, (mutant, tests) in enumerate(jobs):
            if len(running) == workers:
                wait()
            pid = os.fork()
            if pid == 0:
                child(mutant, tests, Path(folder) / str(at))
            running[pid] = at
        while running:
            wait()
    return [results[at] for at in range(len(jobs))]


def main(words: list[str]) -> int:
    os.chdir(ROOT)
    torch.set_num_threads(1)
    chosen = [m for m in MUTANTS if not words or any(word in m.file or word in m.name for word in words)]
    stale = [fault for fault in map(misplaced, chosen) if fault]
    if stale:
        print("\n".join(stale))
        return 1
    files = sorted({TESTS[m.file] for m in chosen})
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        pytest.main([*PYTEST, folder])  # loads pytest's own plugins once, for all children
    gc.freeze()
    workers = min(4, os.cpu_count() or 1)
    results = run([(None, tests) for tests in files] + [(m, TESTS[m.file]) for m in chosen], workers=workers)
    whole, broken = results[:len(files)], results[len(files):]
    bad = [f"{tests} fails without any fault planted:\n{out}"
           for tests, (code, out) in zip(files, whole, strict=True) if code != 0]
    caught = 0
    for mutant, (code, out) in zip(chosen, broken, strict=True):
        caught += code == 1
        if code != 1:
            why = "SURVIVED" if code == 0 else f"ERROR {code}: {out[-600:]}"
            bad.append(f"{mutant.file}: {mutant.name}: {why}\n    {mutant.old!r}\n -> {mutant.new!r}")
    print("\n".join(bad))
    print(json.dumps({"planted": len(chosen), "caught": caught, "files": sorted({m.file for m in chosen})}))
    print(f"mutants: {len(chosen)} planted, {caught} caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
