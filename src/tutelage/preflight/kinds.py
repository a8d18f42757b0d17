"""What a folder holds, where that is no language model: it has no head that could speak."""

from collections.abc import Iterator
from pathlib import Path

from tutelage.core.files import read_json
from tutelage.preflight.findings import Finding
from tutelage.preflight.setup import Setup
from tutelage.preflight.size import manifest_in

SCORERS = {"reward": "a reward model", "span-reward": "a reward model of spans", "cost": "a cost model",
           "classify": "a classifier"}


def scorer_in(folder: Path) -> str:
    """"a reward model" and the like, by our manifest, else by the architecture that config.json names; "" for a language model."""
    kind = str(manifest_in(folder).get("kind", ""))
    if kind in SCORERS:
        return SCORERS[kind]
    config = folder / "config.json"
    named = (read_json(config).get("architectures") if config.is_file() else None) or []
    heads = ("ForSequenceClassification", "ForTokenClassification", "RewardModel")
    return "a classifier or reward model" if named and all(str(each).endswith(heads) for each in named) else ""


def wrong_kind(setup: Setup) -> Iterator[Finding]:
    found = scorer_in(setup.path)
    if not found:
        return
    base = setup.manifest.get("base")
    own = "" if found == "a classifier" else "; name this one as " + ("cost=" if found == "a cost model" else "reward=")
    yield Finding(
        code="wrong-kind", cause=f"model={setup.config.model} is {found}: it has no language-model head, and one that is drawn at "
                                 "random (or the embedding in its place) would speak",
        cure=f"name the model that it was trained from{f' ({base})' if base else ''}, or the run of `tutelage sft` whose model is "
             f"to learn{own}",
        reference="RLHF_CORRECTNESS 4.8")
