"""What the checks look at: configuration, rows, model, sampled answers.  Each part is made when it is first asked for.

A few rows stand for all of them (evenly spread, so that a fault that sits in one stretch of a file is met), and answers are
short: the first check of a 135-million-parameter model takes seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.core.errors import UserError
from tutelage.core.protocols import Engine, Judge
from tutelage.core.words import Example, Label, Preference, Prompt, Response
from tutelage.data.spans import Spanned
from tutelage.models.heads import plain_model
from tutelage.models.load import Loaded, obtain
from tutelage.models.quiet import quiet_transformers
from tutelage.preflight.findings import Blocked, Finding
from tutelage.preflight.size import Size, counted, manifest_in, size_of
from tutelage.rollout.local import LocalEngine
from tutelage.text.chat import render_prompt, stop_ids
from tutelage.text.mask import Row, answer_row, rows_of
from tutelage.training.classify import classes_of, load_classifier
from tutelage.training.networks import load_trainable
from tutelage.training.rl import FUNCTIONS, judge_by_name
from tutelage.training.rollouts import answer
from tutelage.training.span_reward import load_token_classifier

SOME_ROWS = 64  # that are tokenised
SOME_PROMPTS = 4  # that are answered, twice each
LONGEST_ANSWER = 48  # tokens of a sampled answer

T = TypeVar("T")


def some(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread.

    >>> some(range(10), 4), some("ab", 4)
    ([0, 2, 5, 7], ['a', 'b'])
    """
    if len(items) <= most:
        return list(items)
    return [items[at * len(items) // most] for at in range(most)]


def prompt_of(record: Any) -> Prompt | None:
    """What is asked in a record of any kind; None for a conversation that begins with an answer."""
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Example):
        opening = next(at for at, message in enumerate(record.messages) if message.role == "assistant")
        return Prompt(messages=record.messages[:opening], tools=record.tools) if opening else None
    return record.prompt


def answers_of(record: Any) -> list[str]:
    """The texts that a record gives as answers."""
    if isinstance(record, Example):
        return [message.text for message in record.messages if message.role == "assistant"]
    if isinstance(record, Preference):
        return [record.chosen.text, record.rejected.text]
    if isinstance(record, (Label, Spanned)):
        return [record.response.text]
    return list(record.references)


def is_folder(name: str) -> bool:
    """Whether a reward (or cost) is a model on disk, and no rule or function."""
    return bool(name) and name.partition(":")[0] not in ("rule", *FUNCTIONS) and Path(name).is_dir()


def judge_names(config: Any) -> dict[str, str]:
    """Key of the configuration -> name, of every reward of a run and, where there is one, of its cost.

    Where there are several `rewards`, `reward` is only its own default and nothing reads it.
    """
    several = {f"rewards.{name}.reward": part.reward for name, part in (getattr(config, "rewards", None) or {}).items()}
    named = {**(several or {"reward": getattr(config, "reward", "")}), "cost": getattr(config, "cost", "")}
    return {key: name for key, name in named.items() if name}


class Named(NamedTuple):
    """A reward or a cost of the run."""

    key: str  # of the configuration: "reward", "rewards.NAME.reward" or "cost"
    name: str  # what stands there; of a judge that was handed over, its id
    judge: Judge
    weight: float = 1.0  # among several rewards


class Scorer(NamedTuple):
    """A reward or a cost that is a model on disk."""

    key: str
    path: Path
    tokenizer: PreTrainedTokenizerBase

    @property
    def what(self) -> str:
        return "cost model" if self.key == "cost" else "reward model"


class Taught(NamedTuple):
    """Conversations whose answers are learned as they stand: the rows of `sft`, or what `ptx_coef` mixes into `rl`."""

    records: list[Example]
    rows: list[list[tuple[Row, Row]]]  # of each record: whole, and cut to the limit
    what: str
    limit: str  # the setting that cuts them, and its value
    cure: str  # how to raise it


@contextmanager
def template_may_refuse() -> Iterator[None]:
    """Blocked where the chat template cannot write a record."""
    try:
        yield
    except UserError as error:
        raise Blocked(Finding(
            code="template-refuses", cause=str(error),
            cure="mend the chat template in the model's tokenizer (chat_template.jinja), or take another model",
            reference="C6; trl #4201")) from error


class Setup:
    """A run that has not been begun.  `loaded`, `judge` (of the rewards) and `engine` take the place of what the configuration
    names."""

    def __init__(self, command: str, config: Any, rows: Mapping[str, Sequence[Any]], *, loaded: Loaded | None = None,
                 judge: Judge | None = None, engine: Engine | None = None):
        self.command, self.config, self.rows = command, config, rows
        self._loaded, self._judge, self._engine = loaded, judge, engine

    @property
    def method(self) -> str:
        """The algorithm of `rl`, the method of `prefer`, else the command."""
        return getattr(self.config, "algorithm", None) or getattr(self.config, "method", None) or self.command

    @property
    def lora_rank(self) -> int:
        return getattr(getattr(self.config, "lora", None), "rank", 0)

    # -- words

    @cached_property
    def train(self) -> list[Any]:
        return list(self.rows.get("train", ()))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Distinct prompts of the training rows."""
        found = (prompt_of(record) for record in self.train)
        return list({prompt.id: prompt for prompt in found if prompt is not None}.values())

    @cached_property
    def mixed(self) -> list[Example]:
        """Demonstrations that PPO-ptx mixes into the updates; none where it is not asked for."""
        return list(self.rows.get("ptx", ())) if getattr(self.config, "ptx_coef", 0) else []

    @cached_property
    def pairs(self) -> list[Preference]:
        return [record for record in self.train if isinstance(record, Preference)]

    # -- model and tokenizer

    @cached_property
    def path(self) -> Path:
        return self._loaded.path if self._loaded is not None else obtain(self.config.model)

    @cached_property
    def loaded(self) -> Loaded:
        """The model as the run would have it, adapters included."""
        if self._loaded is not None:
            return self._loaded
        config = self.config
        if self.command == "classify":
            labels = classes_of(self.train, config.labels)
            model, tokenizer, digest = load_classifier(replace(config, labels=labels))
            return Loaded(model=model, tokenizer=tokenizer, name=config.model, path=self.path, digest=digest)
        if self.command == "span-reward":
            model, tokenizer, digest = load_token_classifier(config, config.kinds(self.train))
            return Loaded(model=model, tokenizer=tokenizer, name=config.model, path=self.path, digest=digest)
        return load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                              frozen_layers=getattr(config, "frozen_layers", 0))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return manifest_in(self.path)

    @cached_property
    def size(self) -> Size | None:
        if self._loaded is None:
            return size_of(self.path)
        model = plain_model(self._loaded.model)
        return counted(model, model.config.get_text_config())

    @cached_property
    def context(self) -> int:
        config = plain_model(self.loaded.model).config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        try:
            return stop_ids(plain_model(self.loaded.model), self.tokenizer)
        except UserError as error:
            raise Blocked(Finding(
                code="no-end", cause=str(error),
                cure="name the token that ends a turn as eos_token in the model's tokenizer_config.json",
                reference="C7, C13; trl #1623, #2387")) from error
        except ValueError as error:  # the rendered conversation does not hold the answer
            raise Blocked(Finding(
                code="template-refuses", cause="the chat template does not write what the assistant says",
                cure="mend the chat template in the model's tokenizer (chat_template.jinja), or take another model",
                reference="C6; marin #7237, trl #4879")) from error

    @property
    def judge_names(self) -> dict[str, str]:
        """Key -> name of the rewards and the cost, without the rewards whose place `judge` takes."""
        named = judge_names(self.config)
        return named if self._judge is None else {key: name for key, name in named.items() if key == "cost"}

    @cached_property
    def scorers(self) -> list[Scorer]:
        with quiet_transformers():
            return [Scorer(key, Path(name), AutoTokenizer.from_pretrained(name))
                    for key, name in self.judge_names.items() if is_folder(name)]

    # -- tokens

    @cached_property
    def cut_rows(self) -> list[tuple[Row, Row]]:
        """(whole, as cut to max_tokens) rows of some training records; of `rl`, prompts without an answer."""
        return [pair for record in some(self.train, SOME_ROWS) for pair in self.rows_of(record)]

    def rows_of(self, record: Any) -> list[tuple[Row, Row]]:
        """The token rows that the run makes of a record, whole and cut.  Blocked where the template refuses it."""
        with template_may_refuse():
            return self._rows_of(record)

    def _rows_of(self, record: Any) -> list[tuple[Row, Row]]:
        most = self.config.max_tokens
        if self.command == "rl":
            ids = render_prompt(self.tokenizer, prompt_of(record)) if prompt_of(record) else []
            row = Row(ids, [0.0] * len(ids))
            return [(row, row)] if ids else []
        if self.command == "sft":
            return self._taught_rows(record, most, all_tokens=self.config.loss == "all")
        prompt = prompt_of(record)
        return [(answer_row(self.tokenizer, prompt, text), answer_row(self.tokenizer, prompt, text, max_tokens=most))
                for text in answers_of(record)]

    def _taught_rows(self, record: Example, most: int, *, all_tokens: bool = False) -> list[tuple[Row, Row]]:
        whole = rows_of(self.tokenizer, record, all_tokens=all_tokens)
        return [(row, Row(row.token_ids[:most], row.weights[:most])) for row in whole]

    @cached_property
    def taught(self) -> Taught:
        """Blocked where the template refuses a record."""
        if self.command == "sft":
            records = some(self.train, SOME_ROWS)
            return Taught(records, [self.rows_of(record) for record in records], "rows", f"max_tokens={self.config.max_tokens}",
                          "raise max_tokens")
        records, most = some(self.mixed, SOME_ROWS), self.config.max_prompt_tokens + self.config.max_tokens
        with template_may_refuse():
            rows = [self._taught_rows(record, most) for record in records]
        return Taught(records, rows, "rows of ptx_data", f"max_prompt_tokens + max_tokens = {most}", "raise max_prompt_tokens")

    # -- answers (rl)

    @cached_property
    def asked(self) -> list[Prompt]:
        """Some prompts that fit."""
        few = some(self.prompts, SOME_ROWS)
        fit = [prompt for prompt in few if len(render_prompt(self.tokenizer, prompt)) <= self.config.max_prompt_tokens]
        return some(fit, SOME_PROMPTS)

    @cached_property
    def answer_tokens(self) -> int:
        """Tokens of a sampled answer: all that the run allows, or as many as a check has time for."""
        size = sum(parameter.numel() for parameter in self.loaded.model.parameters())
        return min(self.config.max_tokens, LONGEST_ANSWER if size < 4e8 else LONGEST_ANSWER // 4)

    @cached_property
    def engine(self) -> Engine:
        return self._engine or LocalEngine(self.loaded.model, self.tokenizer, policy="check")

    @cached_property
    def responses(self) -> list[Response]:
        """Two answers to each of a few prompts, drawn as the run would draw them."""
        sampling = replace(self.config.sampling(0), n=2, max_tokens=self.answer_tokens)
        return answer(self.engine, self.asked, sampling)

    @cached_property
    def some_end(self) -> bool:
        """Whether any of the answers ends within max_tokens; where none has by `answer_tokens`, they run on until one does."""
        if any(not response.is_truncated() for response in self.responses):
            return True
        if self.answer_tokens >= self.config.max_tokens:
            return False
        sampling = replace(self.config.sampling(0), n=2)  # the same draws, and so the same answers, only longer
        return any(not response.is_truncated() for response in self.engine.respond([(prompt, sampling) for prompt in self.asked]))

    def judges(self) -> list[Named]:
        """The rewards and, where there is one, the cost."""
        given = [] if self._judge is None else [Named("reward", self._judge.id, self._judge)]
        weights = {f"rewards.{name}.reward": part.weight for name, part in (getattr(self.config, "rewards", None) or {}).items()}
        return given + [
            Named(key, name, judge_by_name(name, dtype=self.config.dtype, device=self.config.device), weights.get(key, 1.0))
            for key, name in self.judge_names.items()]

