"""The verbs: engines respond and score, judges judge, panels of people are asked and answer later."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from tutelage.core.words import Judgement, Prompt, Response, Sampling


class Engine(Protocol):
    """Something that answers: a model on this machine, or an address that speaks for one."""

    policy: str  # id of the checkpoint that answers

    def respond(self, requests: Iterable[tuple[Prompt, Sampling]]) -> Iterator[Response]:
        """Responses as they finish, in any order; `Sampling.n` answers a prompt, told apart by `index`."""
        ...

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[list[float]]:
        """Log-probs in nats, one per answer token (turn end included), at temperature 1."""
        ...


class Judge(Protocol):
    """Something that says how good answers are: a rule, a metric, a reward model, another model."""

    id: str

    def judge(self, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[Judgement]:
        """One Judgement an item, in order; values in the order of the responses."""
        ...


class Panel(Protocol):
    """People: they answer later, in part."""

    def submit(self, items: Sequence[tuple[Prompt, Sequence[Response]]], rubric: str) -> str:
        """Ask; returns a ticket."""
        ...

    def collect(self, ticket: str) -> list[Judgement]:
        """What has come so far."""
        ...


Progress = Callable[[str, int, int], None]  # (what, done, total): called as often as the caller likes, prints nothing itself


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""
