"""`tutelage check`: look for what can be wrong with a run before it is begun.

The checks are small functions in a table, each of which names cause and cure.  They go from what is cheap (the
configuration) to what is dear (sampled answers); a finding without whose cure the rest cannot be looked at ends the list.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.files import records_digest
from tutelage.core.protocols import Engine, Judge, Progress, silent
from tutelage.models.load import Loaded
from tutelage.models.quiet import quiet_transformers
from tutelage.preflight import answers, cache, kinds, memory, network, settings, tokens, words
from tutelage.preflight.findings import Blocked, Finding
from tutelage.preflight.setup import Setup
from tutelage.training.memory import collect

COMMANDS = ("sft", "reward", "rl", "prefer", "cost", "span-reward", "classify")
CHAT = ("sft", "reward", "rl", "prefer", "cost")  # commands that render conversations
JUDGED = ("reward", "prefer", "cost")
SPEAKING = ("sft", "rl", "prefer")  # commands whose model keeps its language-model head
LARGE = 10**7  # parameters from which a model's memory is handed back before the run loads its own


class Check(NamedTuple):
    codes: tuple[str, ...]  # that it may report
    commands: tuple[str, ...]
    look: Callable[[Setup], Iterator[Finding]]


CHECKS = (
    # the configuration
    Check(("learning-rate",), COMMANDS, settings.learning_rate),
    Check(("temperature",), ("rl",), settings.temperature),
    Check(("group-size",), ("rl",), settings.group_size),
    Check(("kl-off",), ("rl",), settings.kl_off),
    # the records
    Check(("few-prompts",), ("sft", "rl"), words.few_prompts),
    Check(("identical-pairs",), JUDGED, words.identical_pairs),
    Check(("contradicting-pairs",), JUDGED, words.contradicting_pairs),
    Check(("label-direction",), ("reward", "prefer"), words.label_direction),
    Check(("one-sided-labels",), JUDGED, words.one_sided_labels),
    Check(("length-bias",), JUDGED, words.length_bias),
    Check(("prompt-in-answer",), ("sft", *JUDGED), words.prompt_in_answer),
    Check(("turns-in-answer",), ("sft", *JUDGED), words.turns_in_answer),
    Check(("evaluation-in-training",), COMMANDS, words.evaluation_in_training),
    # the model, and what the tokenizer makes of the records
    Check(("wrong-kind",), SPEAKING, kinds.wrong_kind),
    Check(("nothing-to-train",), COMMANDS, network.nothing_to_train),
    Check(("float16",), COMMANDS, network.float16),
    Check(("no-end",), CHAT, tokens.no_end),
    Check(("template-changed",), CHAT, tokens.template_changed),
    Check(("template-mismatch",), ("rl",), tokens.template_mismatch),
    Check(("critic-tokenizer",), ("rl",), tokens.critic_tokenizer),
    Check(("missing-bos", "double-bos"), CHAT, tokens.bos),
    Check(("special-in-text",), ("sft", *JUDGED), tokens.special_in_text),
    Check(("empty-loss-mask", "full-loss-mask", "template-refuses"), ("sft", "rl"), tokens.masks),
    Check(("untrained-turn-ends",), ("sft", "rl"), tokens.turn_ends),
    Check(("identical-pairs", "prompt-too-long"), JUDGED, tokens.after_cutting),
    Check(("prompt-too-long", "context"), ("rl",), tokens.prompt_lengths),
    Check(("context",), ("sft", *JUDGED), tokens.context),
    Check(("pad-is-end",), ("reward", "cost", "span-reward", "classify"), tokens.pad_is_end),
    Check(("pad-frozen",), CHAT, network.pad_frozen),
    Check(("vocabulary",), COMMANDS, tokens.vocabulary),
    Check(("not-finite", "dropout", "worse-than-chance"), CHAT, network.passes),
    # answers, and what the reward says of them
    Check(("all-truncated", "empty-answers"), ("rl",), answers.endings),
    Check(("identical-samples",), ("rl",), answers.identical_samples),
    Check(("sampler-gap",), ("rl",), answers.sampler_gap),
    Check(("reward-constant", "reward-noisy", "reward-batch", "reward-raises", "reward-not-finite", "score-clip"), ("rl",),
          answers.rewards),
)
FATAL = ("wrong-kind", "vocabulary", "not-finite", "context", "prompt-too-long")  # errors after which the model cannot be run


def check(
    command: str,
    config: Any,
    rows: Mapping[str, Sequence[Any]],
    *,
    data_id: str = "",
    workspace: Path | None = None,
    loaded: Loaded | None = None,
    judge: Judge | None = None,
    engine: Engine | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> list[Finding]:
    """What is wrong, or may be, with training `command` by `config` on `rows` (records by split); empty where nothing is.

    With a `workspace`, what was found is kept there under the digest of configuration, data and models, and not looked for
    again (`fresh`: is).  `loaded`, `judge` and `engine` take the place of what `config` names; then nothing is kept.
    """
    keep = workspace is not None and loaded is None and judge is None and engine is None
    mixed = rows.get("ptx")
    data = data_id + (records_digest(mixed) if mixed else "")
    place = cache.place(workspace, command, config, data) if keep else None
    known = cache.recall(place) if place and not fresh else None
    if known is not None:
        return [*memory.fits(known.needs, memory.available(config.device), config), *known.findings]
    setup = Setup(command, config, rows, loaded=loaded, judge=judge, engine=engine)
    need = memory.needs(setup)
    found = list(memory.fits(need, memory.available(config.device) if loaded is None else None, config))
    if any(finding.severity == "error" for finding in found):
        return found  # loading the model would end this process too
    with quiet_transformers():
        made = list(_all(setup, progress))
    if place:
        cache.remember(place, cache.Known(made, need))
    if setup.size and setup.size.parameters > LARGE:
        del setup
        collect()
    return [*found, *made]


def _all(setup: Setup, progress: Progress) -> Iterator[Finding]:
    """The findings of every check that is meant for the command, as far as they can be made."""
    todo = [each for each in CHECKS if setup.command in each.commands]
    try:
        for at, each in enumerate(todo):
            progress("check", at, len(todo))
            for finding in each.look(setup):
                yield finding
                if finding.severity == "error" and finding.code in FATAL:
                    return
    except Blocked as blocked:
        yield blocked.finding
    finally:
        progress("check", len(todo), len(todo))
