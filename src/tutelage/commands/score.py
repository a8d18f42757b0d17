"""`tutelage score`: a reward model's score of each answer, and the vector that it is read from, for `feedback plan --features`."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tutelage.commands.feedback_data import opened
from tutelage.core.errors import UserError
from tutelage.core.files import read_json, write_jsonl
from tutelage.core.words import Prompt, Response
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.heads import load_reward, reward_model
from tutelage.models.load import load
from tutelage.models.obtain import obtain
from tutelage.recipes import find_workspace, model_of
from tutelage.store.feedback import Item, iter_items
from tutelage.terminal import Terminal


def run(args: Namespace, terminal: Terminal) -> int:
    workspace, out = find_workspace(args.workspace), Path(args.out)
    if out.suffix not in (".npz", ".jsonl"):
        raise UserError(f"--out {out}: vectors are written to .npz or .jsonl")
    with opened(args.database, workspace) as db:
        answers = answers_of(iter_items(db, args.project, special=False))
    if not answers:
        raise UserError(f"{args.project} has no answers to score")
    with terminal.progress() as progress:
        judge, scored = open_scorer(model_of(args.model, workspace), dtype=args.dtype, device=args.device)
        judge.progress = progress
        x = judge.features([(prompt, response.text) for prompt, response in answers])
    scores = judge.network.head.cpu()(x).tolist() if scored else None
    ids = [response.id for _, response in answers]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        with open(out, "wb") as file:
            np.savez(file, id=np.array(ids), features=x.numpy(), **({"score": np.array(scores)} if scored else {}))
    else:
        write_jsonl(out, ({"id": key, "features": row, **({"score": scores[at]} if scored else {})}
                          for at, (key, row) in enumerate(zip(ids, x.tolist(), strict=True))))
    terminal.say(f"Wrote {out}: {len(ids)} answers, {x.shape[1]} numbers each" + (", with scores" if scored else ""), style="green")
    if not scored:
        terminal.note(f"{args.model} is no reward model, so there are no scores: the plan fits its own to what was judged")
    terminal.next_steps(f"tutelage feedback plan --project {args.project} --features {out} --choose 100")
    terminal.result({"path": str(out), "answers": len(ids), "width": x.shape[1], "scores": scored})
    return 0


def answers_of(items: Iterable[Item]) -> list[tuple[Prompt, Response]]:
    """Each answer once, with its prompt."""
    return list({each.id: (item.prompt, each) for item in items if item.prompt is not None for each in item.responses}.values())


def open_scorer(model: str, *, dtype: str, device: str) -> tuple[RewardJudge, bool]:
    """A reward model, or any causal language model for its hidden states; and whether it has a score."""
    config = obtain(model) / "config.json"
    if config.is_file() and any(name.endswith("ForSequenceClassification") for name in read_json(config).get("architectures") or ()):
        loaded = load_reward(model, dtype=dtype, device=device)
        return RewardJudge(loaded.model, loaded.tokenizer, id="features"), True
    loaded = load(model, dtype=dtype, device=device)
    return RewardJudge(reward_model(loaded.model), loaded.tokenizer, id="features"), False
