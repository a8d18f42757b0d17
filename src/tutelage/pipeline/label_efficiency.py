"""Does choosing what to ask pay?  Active choice against random at equal labels, on recorded judgements of people.

    python -m tutelage.pipeline.label_efficiency --data ../shared/data --folder label-efficiency --page docs/label-efficiency.md

A reward model in small: a Bradley-Terry head on frozen features (the hidden state of the last token) of a language model.  In each
seed a third of the prompts is held out, and labels are uncovered in steps: `random` draws them, `active` takes the D-optimal pairs
(stats/selection.py) given the head fitted so far, with the control arm of 20 % always on.  Everything else is the same for both.

Features and seeds that stand in the folder are reused, so the command goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, read_json, sha256_bytes, sha256_file, write_json
from tutelage.core.words import Preference
from tutelage.data.reading import Reading
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.heads import reward_model
from tutelage.models.load import load
from tutelage.pipeline.label_efficiency_report import closing_table, write_page
from tutelage.stats.selection import choose, fit_head, right, scaled

ARMS = {"random": "random", "active": "d-optimal"}
CHUNK = 50  # pairs whose features are stored at once


class Source(NamedTuple):
    title: str
    path: str  # below --data
    license: str


SOURCES = {
    "hh_harmless": Source("HH, harmless (English)", "preference/hh_harmless.jsonl.gz", "MIT"),
    "hh_helpful": Source("HH, helpful (English)", "preference/hh_helpful_text_score.jsonl.gz", "CC BY-NC 4.0"),
    "pandalm": Source("PandaLM test set (English)", "preference/pandalm_3annotators.jsonl.gz", "Apache-2.0"),
    "dpo_zh": Source("LLaMA-Factory DPO sample (Chinese)", "preference/dpo_zh.jsonl.gz", "Apache-2.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyConfig:
    """What is asked, of which features."""

    sets: tuple[str, ...] = ("hh_harmless", "hh_helpful")
    counts: tuple[int, ...] = (25, 50, 100, 200, 400)  # labels
    seeds: int = 5
    model: str = "smollm2-135m"
    dtype: str = "auto"
    pairs: int = 900  # of a data set, at most
    characters: int = 700  # of prompt and longer answer together: longer pairs are left out
    held_out: float = 1 / 3  # of the prompts
    prior: float = 1.0  # precision of the head's prior; a pair's squared length is 1 in the mean

    def __post_init__(self):
        if unknown := set(self.sets) - set(SOURCES):
            raise ValueError(f"unknown data sets {sorted(unknown)}; known: {', '.join(SOURCES)}")
        if list(self.counts) != sorted(set(self.counts)) or len(self.counts) < 2 or self.counts[0] < 1:
            raise ValueError(f"counts are two or more numbers of labels, rising; got {self.counts}")
        if self.seeds < 3:
            raise ValueError(f"an interval over seeds needs three seeds or more; got {self.seeds}")


class Pairs(NamedTuple):
    x_ND: NDArray  # float64, features(chosen) - features(rejected), scaled
    groups: list[str]


def label_efficiency(config: EfficiencyConfig, data: Path, folder: Path, *, say=print) -> dict[str, Any]:
    """Accuracy of both arms at every number of labels, by data set and seed; also written to `folder`/figures.json."""
    found: dict[str, Any] = {"settings": asdict(config), "sets": {}}
    for name in config.sets:
        pairs = pairs_of(name, config, data, folder / "features", say=say)
        runs = [_once(name, pairs, seed, config, folder) for seed in range(config.seeds)]
        found["sets"][name] = {"title": SOURCES[name].title, "license": SOURCES[name].license, "pairs": len(pairs.groups),
                               "prompts": len(set(pairs.groups)), "runs": runs}
    write_json(folder / "figures.json", found)
    return found


def _once(name: str, pairs: Pairs, seed: int, config: EfficiencyConfig, folder: Path) -> dict[str, Any]:
    key = _digest({**asdict(config), "sets": name, "seeds": seed, "data": sha256_bytes(pairs.x_ND.tobytes())})
    file = folder / "seeds" / f"{name}-{seed}.json"
    if file.exists() and read_json(file)["key"] == key:
        return read_json(file)
    run = {"key": key, "seed": seed, **accuracies(pairs, seed=seed, counts=config.counts, held_out=config.held_out, prior=config.prior)}
    write_json(file, run)
    return run


# -- one seed -------------------------------------------------------------------------------------------------------


def accuracies(pairs: Pairs, *, seed: int, counts: Sequence[int], held_out: float, prior: float) -> dict[str, Any]:
    """Held-out accuracy of each arm at each number of labels, and how many pairs were held out."""
    random = np.random.default_rng(seed)
    names = sorted(set(pairs.groups))
    aside = set(random.permutation(names)[:round(held_out * len(names))].tolist())
    test = np.array([group in aside for group in pairs.groups])
    x, held = pairs.x_ND[~test], pairs.x_ND[test]
    if len(x) < counts[-1]:
        raise UserError(f"{len(x)} pairs are left to ask about, and {counts[-1]} labels are wanted; take fewer labels or more pairs")
    # Which answer stands first is drawn: the files name the better one first.
    side = random.choice([1.0, -1.0], size=len(x))
    return {"held_out": int(test.sum()), **{
        arm: _learned(x * side[:, None], (side + 1) / 2, held, method=method, seed=seed, counts=counts, prior=prior)
        for arm, method in ARMS.items()}}


def _learned(x: NDArray, better: NDArray, held: NDArray, *, method: str, seed: int, counts: Sequence[int], prior: float) -> list[float]:
    asked, out, w = np.zeros(0, dtype=np.int64), [], np.zeros(x.shape[1])
    for step, count in enumerate(counts):
        rest = np.setdiff1d(np.arange(len(x)), asked)
        picks = choose(x[rest], x[rest] @ w, count - len(asked), seed=100 * seed + step, method=method, prior=prior,
                       asked_x=x[asked], asked_margin=x[asked] @ w)
        asked = np.concatenate([asked, rest[[pick.index for pick in picks]]])
        w = fit_head(x[asked], better[asked], prior=prior)
        out.append(float(right(held @ w, np.ones(len(held))).mean()))
    return out


# -- features -------------------------------------------------------------------------------------------------------


def pairs_of(name: str, config: EfficiencyConfig, data: Path, folder: Path, *, say=print) -> Pairs:
    """Differences of the features, read from `folder` as far as they stand there."""
    source = data / SOURCES[name].path
    if not source.is_file():
        raise UserError(f"{source} is not there; --data names the folder of the public records (with {SOURCES[name].path})")
    rows = short_pairs(source, config)
    settings = {"data": sha256_file(source), "model": config.model, "dtype": config.dtype, "pairs": config.pairs,
                "characters": config.characters}
    where = folder / f"{name}-{_digest(settings)[:12]}"
    judge, parts = None, []
    for start in range(0, len(rows), CHUNK):
        file = where / f"{start:05d}.npy"
        if not file.exists():
            judge = judge or _judge(config)
            say(f"{name}: features of pairs {start + 1} to {min(start + CHUNK, len(rows))} of {len(rows)}")
            x = judge.features([(row.prompt, each.text) for row in rows[start:start + CHUNK] for each in (row.chosen, row.rejected)])
            where.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished")
            with open(unfinished, "wb") as out:
                np.save(out, x.numpy())
            unfinished.replace(file)
        parts.append(np.load(file))
    both = np.concatenate(parts).astype(np.float64)
    return Pairs(scaled(both[0::2] - both[1::2]), [row.prompt.group for row in rows])


def short_pairs(source: Path, config: EfficiencyConfig) -> list[Preference]:
    """Pairs with a verdict and not too long, `config.pairs` of them, drawn by the hash of the prompt."""
    length = lambda row: sum(len(each.text) for each in row.prompt.messages) + max(len(row.chosen.text), len(row.rejected.text))
    rows = [row for row in Reading([source])
            if isinstance(row, Preference) and row.soft_label != 0.5 and length(row) <= config.characters]
    return sorted(rows, key=lambda row: sha256_bytes(row.prompt.id.encode()))[:config.pairs]


def _judge(config: EfficiencyConfig) -> RewardJudge:
    loaded = load(config.model, dtype=config.dtype)
    return RewardJudge(reward_model(loaded.model), loaded.tokenizer, id="features", token_budget=2048)


def _digest(value: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(dict(value)).encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    defaults = EfficiencyConfig()
    parser = argparse.ArgumentParser(prog="python -m tutelage.pipeline.label_efficiency", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public records, which holds preference/")
    parser.add_argument("--folder", type=Path, default=Path("label-efficiency"))
    parser.add_argument("--sets", nargs="+", default=list(defaults.sets), choices=tuple(SOURCES))
    parser.add_argument("--counts", type=int, nargs="+", default=list(defaults.counts), help="numbers of labels, rising")
    parser.add_argument("--seeds", type=int, default=defaults.seeds)
    parser.add_argument("--model", default=defaults.model)
    parser.add_argument("--dtype", default=defaults.dtype)
    parser.add_argument("--pairs", type=int, default=defaults.pairs, help="of a data set, at most")
    parser.add_argument("--page", type=Path, help="write the figures into this page, and the plot into images/ beside it")
    args = parser.parse_args(argv)
    console = Console()
    try:
        config = EfficiencyConfig(sets=tuple(args.sets), counts=tuple(args.counts), seeds=args.seeds, model=args.model, dtype=args.dtype,
                                  pairs=args.pairs)
        found = label_efficiency(config, args.data, args.folder, say=lambda line: console.print(line, markup=False))
        if args.page:
            write_page(found, args.page)
    except (UserError, ValueError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    for each in closing_table(found):
        console.print(each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
