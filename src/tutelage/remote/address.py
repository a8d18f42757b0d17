"""An address and a model there, as people type them: `http://host:8000/v1#model-name`."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from tutelage.core.errors import UserError

WANTED = 'wanted an address as "http://host:8000/v1#model-name" (quotes keep the shell from reading the #)'


def is_address(name: str) -> bool:
    """Whether the name of a model is an address.

    >>> is_address("http://localhost:8000/v1#mine"), is_address("hf:org/name"), is_address("runs/sft-0001/final")
    (True, False, False)
    """
    return name.lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where requests go, and which model they ask for."""

    base: str  # "http://host:8000/v1": requests go to base + "/chat/completions"
    model: str = ""  # "": the only one that the address lists

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc


def read_address(text: str) -> Address:
    """UserError for what is no address, and for one that carries a password or a key: addresses are written into records.

    >>> read_address("http://localhost:8000/v1/#org/mine")
    Address(base='http://localhost:8000/v1', model='org/mine')
    """
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port  # port: ValueError where it is no number
    except ValueError as error:
        raise UserError(f"the address cannot be read ({error}); {WANTED}") from error
    if parts.username or parts.password or parts.query:  # not shown: it may be a key
        raise UserError(f"an address may not hold a password, a key or a ?query; set OPENAI_API_KEY instead. {WANTED}")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{text!r} is no address; {WANTED}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return Address(base=f"{parts.scheme}://{parts.netloc}{path}", model=parts.fragment)
