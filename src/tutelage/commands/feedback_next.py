"""`tutelage feedback plan --features`: which pairs to ask about next, and whether choosing has paid so far.

The vectors come from outside (`tutelage score` writes them), so nothing here needs torch.  A fifth of what is chosen is drawn at
random from all that wait; by those alone it is told whether choosing pays, and until it does the default is random.
"""

import json
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.core.errors import UserError
from tutelage.core.files import write_jsonl
from tutelage.data.raw import Broken
from tutelage.data.sources import read_rows
from tutelage.stats.selection import ArmReport, choose, fit_head, gain_over_random, scaled
from tutelage.store.arms import put_first, waiting
from tutelage.store.db import Database
from tutelage.store.feedback import Item
from tutelage.store.figures import Votes
from tutelage.terminal import Terminal


class Features(NamedTuple):
    vectors: dict[str, NDArray]  # id of a response, or of an item -> (D,)
    scores: dict[str, float]  # nats, for those that have one


class Following(NamedTuple):
    """What is asked next."""

    method: str  # random, d-optimal, or nothing where none were wanted
    arms: dict[str, str]  # item -> arm, in no telling order
    waiting: int  # pairs with vectors that nobody has judged
    without: int  # pairs that wait and have no vectors
    gain: ArmReport | None
    why: str  # there is no gain to be told, or nothing


# -- vectors --------------------------------------------------------------------------------------------------------


def read_features(path: Path) -> Features:
    """.npz with `id`, `features` (N, D) and maybe `score` (N); or .jsonl with the same names, a row an id."""
    if not path.is_file():
        raise UserError(f"--features {path}: there is no such file; `tutelage score` writes one")
    rows = _from_npz(path) if path.suffix == ".npz" else _from_lines(path)
    vectors: dict[str, NDArray] = {}
    scores: dict[str, float] = {}
    width = 0
    for where, key, vector, score in rows:
        try:
            x = np.asarray(vector, dtype=np.float64)
            value = None if score is None else float(score)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, {where}: features are a list of numbers, a score is a number ({error})") from error
        width = width or x.size
        if not isinstance(key, str) or not key or key in vectors:
            raise UserError(f"{path}, {where}: wanted an id, each once; got {key!r:.60}")
        if x.ndim != 1 or x.size != width or not width or not np.isfinite(x).all() or not np.isfinite(value or 0.0):
            raise UserError(f"{path}, {where}: wanted {width or 'some'} finite numbers, as in the first row, and a finite score")
        vectors[key] = x
        if value is not None:
            scores[key] = value
    if not vectors:
        raise UserError(f"--features {path}: there is no row in it")
    return Features(vectors, scores)


def _from_npz(path: Path):
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, features = file["id"].tolist(), file["features"]
            scores = file["score"].tolist() if "score" in file else [None] * len(ids)
        yield from ((f"row {at}", *row) for at, row in enumerate(zip(ids, features, scores, strict=True), start=1))
    except (KeyError, OSError, ValueError, TypeError) as error:
        raise UserError(f"--features {path}: wanted an .npz with the arrays id and features, and maybe score ({error})") from error


def _from_lines(path: Path):
    for row in read_rows(path):
        if isinstance(row, Broken) or not isinstance(row.value, dict):
            raise UserError(f'{path}, line {row.line}: wanted {json.dumps({"id": "...", "features": [0.1], "score": 0.2})}')
        yield f"line {row.line}", row.value.get("id"), row.value.get("features"), row.value.get("score")


def difference(item: Item, features: Features) -> tuple[NDArray, float | None] | None:
    """Vector and margin of a pair, first answer minus second: given for the item itself, or for both of its answers."""
    if item.id in features.vectors:
        return features.vectors[item.id], features.scores.get(item.id)
    a, b = (response.id for response in item.responses)
    if a not in features.vectors or b not in features.vectors:
        return None
    margin = features.scores[a] - features.scores[b] if a in features.scores and b in features.scores else None
    return features.vectors[a] - features.vectors[b], margin


def share_of_first(votes: Votes) -> dict[str, float]:
    """Item -> 1 where its first answer was judged better by more people than the second, 0 where by fewer, else 1/2."""
    sums: dict[str, int] = defaultdict(int)
    for row in votes.rows:
        item = votes.items[row.item]
        if item.kind == "pair":
            for said in (each for each in row.judgements if each.kind == "pair"):
                better = said.values[0] - said.values[1] if said.responses[0] == item.responses[0].id else said.values[1] - said.values[0]
                sums[item.id] += (better > 0) - (better < 0)
    return {key: 0.5 + 0.5 * ((total > 0) - (total < 0)) for key, total in sums.items()}


# -- choosing -------------------------------------------------------------------------------------------------------


def plan(db: Database, project: str, votes: Votes, args: Namespace) -> Following:
    """Whether choosing has paid, and with --choose what comes next, which is put first in the project."""
    features = read_features(Path(args.features))
    pairs = {key: item for key, item in votes.items.items() if item.kind == "pair"}
    known = {key: found for key, item in pairs.items() if (found := difference(item, features)) is not None}
    if not known:
        raise UserError(f"--features {args.features}: no id in it is that of an item of {project}, or of both answers of one; "
                        f"write them with: tutelage score MODEL --project {project} --out features.npz")
    x = dict(zip(known, scaled(np.stack([vector for vector, _ in known.values()])), strict=True))
    said = {key: share for key, share in share_of_first(votes).items() if key in x}
    gain, why = _gain(x, said, pairs, seed=args.seed)
    free = [key for key in waiting(db, project) if key in pairs]
    ready = [key for key in free if key in x]
    method = args.method if args.method != "auto" else "d-optimal" if gain and gain.better else "random"
    arms: dict[str, str] = {}
    if args.choose is not None:
        if not 1 <= args.choose <= len(ready):
            raise UserError(f"--choose {args.choose}: {len(ready)} pairs with vectors wait to be judged; wanted 1 to {len(ready)}")
        margin = _margins(known, x, said)
        rows = lambda keys: (np.stack([x[key] for key in keys]), np.array([margin[key] for key in keys]))
        asked = dict(zip(("asked_x", "asked_margin"), rows(said), strict=True)) if said else {}
        picks = choose(*rows(ready), args.choose, seed=args.seed, method=method, **asked)
        arms = {ready[pick.index]: pick.arm for pick in picks}
        put_first(db, project, arms, actor=args.actor)
        if args.out:
            write_jsonl(Path(args.out), ({"item": key, "arm": arm} for key, arm in arms.items()))
    return Following(method if arms else "", arms, len(ready), len(free) - len(ready), gain, why)


def _gain(x: dict[str, NDArray], said: dict[str, float], pairs: dict[str, Item], *, seed: int) -> tuple[ArmReport | None, str]:
    if not said:
        return None, "too early to tell: no pair with vectors was judged"
    try:
        return gain_over_random(np.stack([x[key] for key in said]), list(said.values()), [pairs[key].arm == "active" for key in said],
                                [pairs[key].prompt.group for key in said], seed=seed), ""
    except ValueError as error:
        return None, str(error)


def _margins(known: dict[str, tuple[NDArray, float | None]], x: dict[str, NDArray], said: dict[str, float]) -> dict[str, float]:
    """The reward model's margins where the file has scores; else those of a head fitted to what was judged."""
    if all(margin is not None for _, margin in known.values()):
        return {key: margin for key, (_, margin) in known.items()}
    w = fit_head(np.stack([x[key] for key in said]), list(said.values())) if said else np.zeros(len(next(iter(x.values()))))
    return {key: float(each @ w) for key, each in x.items()}


# -- telling --------------------------------------------------------------------------------------------------------


def show(found: Following | None, args: Namespace, terminal: Terminal) -> None:
    terminal.head("Next questions")
    if found is None:
        terminal.note("  give --features FILE (`tutelage score` writes it) and --choose N to have the next pairs chosen")
        return
    terminal.say(f"  {found.gain.text if found.gain else found.why}")
    if found.gain is None or not found.gain.better:
        terminal.note("  the default is random, until choosing is seen to beat it in this project")
    if found.arms:
        drawn = sum(arm == "random" for arm in found.arms.values())
        terminal.say(f"  {len(found.arms)} pairs stand first in {args.project} now: {drawn} drawn at random, "
                     f"{len(found.arms) - drawn} chosen ({found.method})", style="green")
    terminal.say(f"  {found.waiting} pairs with vectors waited to be judged" + (f", {found.without} had none" if found.without else ""))


def facts(found: Following | None) -> dict[str, Any] | None:
    if found is None:
        return None
    gain = found.gain and {"estimate": found.gain.difference.estimate, "low": found.gain.difference.low,
                           "high": found.gain.difference.high, "better": found.gain.better}
    return {"method": found.method, "arms": found.arms, "waiting": found.waiting, "without": found.without, "gain": gain,
            "text": found.gain.text if found.gain else found.why}
