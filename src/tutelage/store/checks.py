"""What may come in from outside: names, labels, texts and numbers, each refused with a sentence that says what to change."""

import json
import math
import re
import unicodedata
from typing import Any

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LABEL_LENGTH, TITLE_LENGTH = 64, 200
MOST_ANSWER, MOST_ITEM = 8_000_000, 32_000_000  # characters of JSON: a person's answers, an item


def need_name(name: Any, what: str) -> str:
    """A name that may stand in an address, a file's name and "human:NAME"."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"the name of {what} is 1 to 64 of the letters a-z, A-Z, digits and . _ -, and begins with a letter or "
                        f"digit; got {_brief(name)}. A title may hold any script")
    return name


def need_label(label: Any, what: str) -> str:
    """A short text in any script, on one line, without characters that cannot be seen."""
    if not isinstance(label, str) or not label.strip() or len(label) > LABEL_LENGTH or _unseen(label):
        raise UserError(f"{what} is 1 to {LABEL_LENGTH} characters that can be seen; got {_brief(label)}")
    return label


def need_title(title: Any, what: str) -> str:
    """As a label, longer, and it may be empty."""
    if not isinstance(title, str) or len(title) > TITLE_LENGTH or _unseen(title):
        raise UserError(f"{what} is at most {TITLE_LENGTH} characters that can be seen; got {_brief(title)}")
    return title


def need_key(key: Any) -> str:
    """The key by which a client marks one submission, however often it sends it."""
    if not isinstance(key, str) or not 1 <= len(key) <= 150 or _unseen(key):
        raise UserError(f"the key of a submission is 1 to 150 characters that can be seen, for instance a UUID; got {_brief(key)}")
    return key


def need_count(value: Any, what: str, *, most: int = 1_000_000_000) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise UserError(f"{what} is a whole number from 0 to {most}; got {_brief(value)}")
    return value


def need_seconds(value: Any, what: str) -> float | None:
    """A duration, or None where it was not measured."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e9:  # NaN fails too
        raise UserError(f"{what} is a number of seconds, 0 or more; got {_brief(value)}")
    return float(value)


def stored_json(value: Any, what: str, *, most: int) -> str:
    """Canonical JSON to store.  Null bytes, 1 MB texts and right-to-left marks are data and kept as they are."""
    try:
        json.dumps(value, allow_nan=False)  # NaN and infinity are not JSON
        text = canonical_json(value)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: half of a surrogate pair stands at character {error.start}; send whole Unicode text") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{what} cannot be kept as JSON: {error}") from error
    if len(text) > most:
        raise UserError(f"{what}: {len(text)} characters are too many; at most {most}")
    return text


def whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def finite(value: Any, low: float, high: float) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high


def _unseen(text: str) -> bool:
    # C: control and format characters (null, newline, right-to-left overrides), half surrogates, private use; Zl, Zp: line ends
    return any(unicodedata.category(each)[0] == "C" or unicodedata.category(each) in ("Zl", "Zp") for each in text)


def _brief(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
