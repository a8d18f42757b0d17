"""Personal data out of texts, and back in for whoever holds the key.

Rules, not a model: e-mail, telephone (international, North American, Chinese mobile and landline), Chinese identity
card (checksum ISO 7064 MOD 11-2, GB 11643-1999), payment card (issuer prefix and Luhn, ISO/IEC 7812), US social
security number, IP address.  Names and postal addresses are *not* found: rules cannot tell them from other words.

Boundaries are written out as "no digit before or after": Python's \\b sees no border between 话 and 1, so that a
number that stands right behind a Chinese character would be missed.
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tutelage.core.errors import UserError
from tutelage.core.files import read_jsonl


class KeyRow(NamedTuple):
    """What stood where a placeholder stands now."""

    placeholder: str  # "[EMAIL_1]"
    kind: str  # "EMAIL"
    original: str


class Rule(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]  # the checksum, where there is one
    languages: tuple[str, ...] = ()  # national formats; empty: everywhere


def identity_card_holds(number: str) -> bool:
    """Check character of an 18-character Chinese identity number (ISO 7064 MOD 11-2).

    >>> identity_card_holds("11010519491231002X"), identity_card_holds("110105194912310021")
    (True, False)
    """
    number = number.replace(" ", "")
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(w * int(d) for w, d in zip(weights, number, strict=False)) % 11] == number[-1].upper()


def luhn_holds(number: str) -> bool:
    """Check digit of a payment card (ISO/IEC 7812-1, annex B); spaces and hyphens do not count.

    >>> luhn_holds("4111 1111 1111 1111"), luhn_holds("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _card_holds(number: str) -> bool:
    # Issuer ranges 2 to 6 (Mastercard, Amex, Diners, JCB, Visa, UnionPay): a time in microseconds begins with 1.
    return 14 <= sum(c.isdigit() for c in number) <= 19 and number[0] in "23456" and luhn_holds(number)


def _address_holds(text: str) -> bool:
    """A real address of somebody: loopback, unspecified, multicast and netmasks name nobody."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved)


def _phone_holds(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15  # E.164: at most 15


def _always(_: str) -> bool:
    return True


_LEFT = r"(?<![0-9A-Za-z])"
_RIGHT = r"(?![0-9A-Za-z])"
_NO_FRACTION_LEFT = r"(?<![0-9][.-])"  # not the tail of 3.14159 or of a longer number with hyphens
_NO_FRACTION_RIGHT = r"(?![.-][0-9])"


def _rule(kind: str, pattern: str, holds: Callable[[str], bool] = _always, *languages: str) -> Rule:
    return Rule(kind, re.compile(_LEFT + pattern + _RIGHT), holds, languages)


# Earlier rules win where two begin at the same character.
RULES = (
    # Digits may stand right behind an address: leaving it in because of them would be the worse mistake.
    Rule("EMAIL", re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}"
                             r"[A-Za-z]{2,24}(?![A-Za-z])"), _always),
    _rule("ID_CARD", r"[1-9][0-9]{5} ?(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]) ?[0-9]{3}[0-9Xx]",
          identity_card_holds),
    # One rule a grouping: a greedy "digits and spaces" would swallow the number behind a card and fail its checksum.
    _rule("CARD", _NO_FRACTION_LEFT + r"[0-9]{14,19}" + _NO_FRACTION_RIGHT, _card_holds),
    _rule("CARD", r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}\1[0-9]{3}", _card_holds),
    _rule("CARD", r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}", _card_holds),
    _rule("CARD", r"[0-9]{4}([ -])[0-9]{6}\1[0-9]{4,5}", _card_holds),  # Amex, Diners
    _rule("SSN", r"(?<!-)(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?!-)", _always, "en"),
    _rule("IP", r"(?<!\.)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.[0-9])", _address_holds),
    _rule("IP", r"(?<![:.])(?=[0-9A-Fa-f:]*[0-9])(?:[0-9A-Fa-f]{1,4}:{1,2}){2,7}[0-9A-Fa-f]{1,4}(?!:)", _address_holds),
    _rule("PHONE", _NO_FRACTION_LEFT + r"(?:(?:\+|00)?86[- ]?)?1[3-9][0-9][- ]?[0-9]{4}[- ]?[0-9]{4}"
          + _NO_FRACTION_RIGHT),
    _rule("PHONE", r"(?<!\+)\+1[ .-]?(?:\([2-9][0-9]{2}\)|[2-9][0-9]{2})[ .-]?[2-9][0-9]{2}[ .-]?[0-9]{4}"),
    _rule("PHONE", r"(?<!\+)\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9](?:[ .-]?[0-9]){5,13}", _phone_holds),
    _rule("PHONE", r"(?<!-)0[1-9][0-9]{1,2}-[2-9][0-9]{6,7}(?!-)", _always, "zh"),
    _rule("PHONE", r"(?<![.-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([.-])(?=[2-9][0-9]{2}\1))"
          r"[2-9][0-9]{2}[.-][0-9]{4}" + _NO_FRACTION_RIGHT, _always, "en"),
)
KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))
_PLACEHOLDER = re.compile(r"\[(" + "|".join(KINDS) + r")_[0-9]+\]")
_NARROW = {0xFF01 + i: 0x21 + i for i in range(94)}  # full-width forms, one character for one: positions stay


def find_pii(text: str, *, lang: str | None = None) -> list[tuple[int, int, str]]:
    """(start, end, kind) of each finding, in order, without overlaps.  Full-width digits and signs count as ASCII."""
    narrow = text.translate(_NARROW)
    found = []
    for rank, rule in enumerate(RULES):
        if lang is None or not rule.languages or lang in rule.languages:
            matches = rule.pattern.finditer(narrow)
            found += [(match.start(), rank, match.end(), rule.kind) for match in matches if rule.holds(match.group())]
    out: list[tuple[int, int, str]] = []
    for start, _, end, kind in sorted(found):
        if not out or start >= out[-1][1]:
            out.append((start, end, kind))
    return out


class Redactor:
    """The placeholders of one record: the same address gets the same placeholder in every message of it."""

    def __init__(self, texts: Iterable[str] = (), *, lang: str | None = None):
        """`texts`: all texts of the record; a "[EMAIL_1]" that one of them holds already is never given out."""
        self._taken = {match.group() for text in texts for match in _PLACEHOLDER.finditer(text)}
        self._lang = lang
        self._given: dict[tuple[str, str], KeyRow] = {}

    @property
    def rows(self) -> tuple[KeyRow, ...]:
        return tuple(self._given.values())

    def redact(self, text: str) -> str:
        pieces, done = [], 0
        for start, end, kind in find_pii(text, lang=self._lang):
            pieces += [text[done:start], self._placeholder(kind, text[start:end])]
            done = end
        return "".join(pieces) + text[done:]

    def _placeholder(self, kind: str, original: str) -> str:
        row = self._given.get((kind, original))
        if row is None:
            number = 1
            while (name := f"[{kind}_{number}]") in self._taken:
                number += 1
            self._taken.add(name)
            row = self._given[kind, original] = KeyRow(name, kind, original)
        return row.placeholder


def redact(text: str, *, lang: str | None = None) -> tuple[str, tuple[KeyRow, ...]]:
    """The text with placeholders, and the key that gives it back.

    `lang`: leave out the national formats of other languages (None: look for all).

    >>> redact("给我打电话13800138000，谢谢")
    ('给我打电话[PHONE_1]，谢谢', (KeyRow(placeholder='[PHONE_1]', kind='PHONE', original='13800138000'),))
    """
    redactor = Redactor([text], lang=lang)
    return redactor.redact(text), redactor.rows


def restore(text: str, key: Iterable[KeyRow]) -> str:
    """The original, exactly.  A placeholder that the key does not know stays as it is."""
    originals = {row.placeholder: row.original for row in key}
    return _PLACEHOLDER.sub(lambda match: originals.get(match.group(), match.group()), text)


class KeyFile:
    """The key on disk, apart from the data: JSON lines that only the owner may read (mode 0600)."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UserError(
                f"cannot write the redaction key {self.path}: {error.strerror}; choose another folder") from error
        os.chmod(self.path, 0o600)  # a file that was there before may be open to others
        self._file = os.fdopen(handle, "a", encoding="utf-8")

    def write(self, record: str, rows: Iterable[KeyRow]) -> None:
        """`record`: content digest of the redacted record."""
        for row in rows:
            self._file.write(json.dumps({"record": record, **row._asdict()}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_key(path: Path | str, record: str) -> tuple[KeyRow, ...]:
    """The key of one record.  UserError where two records of this content were redacted: nobody can tell them apart."""
    rows: dict[str, KeyRow] = {}
    for line in read_jsonl(path):
        if line["record"] != record:
            continue
        row = KeyRow(line["placeholder"], line["kind"], line["original"])
        if rows.setdefault(row.placeholder, row) != row:
            raise UserError(f"{path}: two records with the digest {record} differed only in {row.placeholder}; "
                            "clean with exact_duplicates on, and the second is dropped instead")
    return tuple(rows.values())
