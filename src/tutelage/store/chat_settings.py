"""Who answers in the chats of a project: an address and a model, or two of them to be compared blind."""

import re
from dataclasses import dataclass

from tutelage.core.errors import UserError
from tutelage.store.checks import finite, whole

ADDRESS = re.compile(r"https?://[^\s@?#]+#\S{1,200}")  # no password and no ?query: what stands here is shown and logged
KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")  # not any variable: the one who may set addresses shall not read them all
MOST_TURNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """Engines of live chats, and how they are asked."""

    a: str  # "http://host:8000/v1#model"
    a_key: str = ""  # name of the environment variable that holds the API key; empty: none is sent
    b: str = ""  # a second one: both answer every turn, and nobody is told which is which
    b_key: str = ""
    max_tokens: int = 512
    temperature: float = 1.0
    seconds: float = 60.0  # that an answer may take
    turns: int = 20  # a conversation, at most

    def __post_init__(self):
        for name in ("a", "b"):
            address, key = getattr(self, name), getattr(self, f"{name}_key")
            if (address or name == "a") and not ADDRESS.fullmatch(address):  # not shown: it may hold a key
                raise UserError(f"chat.{name} is an address with its model, as http://host:8000/v1#model, without a password or ?query")
            if key and not KEY_NAME.fullmatch(key):
                raise UserError(f"chat.{name}_key is the name of an environment variable that ends in _API_KEY, as OPENAI_API_KEY; "
                                "a key itself is never kept here")
        if self.a == self.b:
            raise UserError("chat.a and chat.b are the same; compare two, or leave b empty")
        if not whole(self.max_tokens, 1, 100_000):
            raise UserError(f"chat.max_tokens is a whole number from 1 to 100000; got {self.max_tokens!r}")
        if not whole(self.turns, 1, MOST_TURNS):
            raise UserError(f"chat.turns is a whole number from 1 to {MOST_TURNS}; got {self.turns!r}")
        if not finite(self.temperature, 0, 2):
            raise UserError(f"chat.temperature is from 0 to 2; got {self.temperature!r}")
        if not finite(self.seconds, 0.1, 600):
            raise UserError(f"chat.seconds is from 0.1 to 600; got {self.seconds!r}")

    @property
    def engines(self) -> tuple[tuple[str, str], ...]:
        """(address, name of the key's variable) of each, in this order: A's answers are an item's first responses."""
        return ((self.a, self.a_key), (self.b, self.b_key)) if self.b else ((self.a, self.a_key),)
