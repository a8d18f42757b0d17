"""Cleaning as named steps, each with its own switch and its own count.

`Cleaner.apply` takes one record and gives it back, changed or not, or says which step dropped it and why.  It streams:
what must be remembered (digests, signatures) is in a file of the index folder.

The order is part of the promise: texts are normalised first, so that every later step sees one spelling; personal data
go before duplicates are looked for, so that no index holds a digest of them and two records that differ only in a
telephone number count as one; duplicates come last, so that a record is never dropped for one that was itself dropped.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tutelage.core.errors import ConfigError, UserError, nearest
from tutelage.core.words import Example, Label, Preference
from tutelage.data.contamination import EvaluationSet, Item, read_items
from tutelage.data.dedupe import ExactIndex, NearDuplicateIndex
from tutelage.data.language import UNDECIDED, detect_language, toxic_words
from tutelage.data.pii import KeyFile, KeyRow, Redactor, redact
from tutelage.data.reword import (
    CLEANABLE,
    Cleanable,
    content_digest,
    is_learnt,
    parts,
    prompt_of,
    reword,
    tags_of,
    verdict,
    with_tag,
)

DEFAULT_THRESHOLD = 0.8  # estimated Jaccard similarity, where near_duplicates is simply True
EXACT_FILE, NEAR_FILE = "duplicates-exact.db", "duplicates-near.db"
KEY_FILE = "pii-key.jsonl"
COUNTS = ("seen", "changed", "dropped", "flagged")


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Which steps run.  All faults are reported together."""

    unicode: bool = True  # NFC; control, zero-width and direction characters and null bytes out; line ends "\n"
    min_chars: int | None = None  # of the shortest answer (of the question, for a Prompt)
    max_chars: int | None = None  # of question and answers together
    languages: tuple[str, ...] = ()  # keep these ("en", "zh"); empty: any
    tag_language: bool = False  # write "lang:xx" on records without such a tag; on whenever `languages` is given
    toxicity: str = "off"  # off, flag (tag "toxic") or drop
    contamination: str = "off"  # off, or a file of evaluation prompts
    pii: str = "off"  # off or redact
    exact_duplicates: bool = True
    near_duplicates: bool | float = False  # True: similarity 0.8; or a threshold in (0, 1]

    def __post_init__(self):
        object.__setattr__(self, "languages", tuple(self.languages))
        faults = []
        for name, known in (("toxicity", ("off", "flag", "drop")), ("pii", ("off", "redact"))):
            value = getattr(self, name)
            if value not in known:
                faults.append(f"{name} must be one of {', '.join(known)}; got {value!r}{nearest(str(value), known)}")
        for name in ("min_chars", "max_chars"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                faults.append(f"{name} must be a whole number of characters, 0 or more, or left out; got {value!r}")
        if isinstance(self.min_chars, int) and isinstance(self.max_chars, int) and self.min_chars > self.max_chars:
            faults.append(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars}): nothing would be kept")
        near = self.near_duplicates
        if not isinstance(near, bool) and not (isinstance(near, (int, float)) and 0 < near <= 1):
            faults.append(f"near_duplicates must be true, false or a similarity above 0 and at most 1; got {near!r}")
        faults += [f'languages: {code!r} is not a code such as "en" or "zh"' for code in self.languages
                   if not re.fullmatch(r"[a-z]{2,3}", str(code))]
        if faults:
            raise ConfigError(faults, where="cleaning")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that a step took out."""

    step: str
    reason: str


_GONE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"  # tags: invisible letters, a way to hide instructions in a text
    # Joiners belong to emoji and to Arabic and Indic words; behind anything else they are invisible noise.
    "|(?<![\u0600-\u109f\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be written as UTF-8


def normalise(text: str) -> str:
    """NFC; line ends as "\\n"; control, zero-width and direction characters removed.  Idempotent.

    >>> normalise("cafe\\u0301\\u200b\\r\\nok\\x00")
    'café\\nok'
    """
    text = _LINE_END.sub("\n", text)
    text = _LONE_SURROGATE.sub("\ufffd", _GONE.sub("", text))
    return unicodedata.normalize("NFC", text)


class Cleaner:
    """Runs the steps of a config over a stream of records.

    An index that is already in `index_folder` is continued, so that a second file is cleaned against a first one;
    give a fresh folder for a fresh start.
    """

    def __init__(self, config: CleanConfig, *, index_folder: Path, evaluation: Iterable[str | Item] = ()):
        """`evaluation`: prompts that must not be trained on; they switch the contamination step on."""
        self.config = config
        folder = Path(index_folder)
        held_out = [*([] if config.contamination == "off" else read_items(config.contamination)), *evaluation]
        near = DEFAULT_THRESHOLD if config.near_duplicates is True else config.near_duplicates
        self._evaluation = EvaluationSet(held_out) if held_out else None
        self._exact = ExactIndex(folder / EXACT_FILE) if config.exact_duplicates else None
        self._near = NearDuplicateIndex(folder / NEAR_FILE, near) if near else None
        self._key = KeyFile(folder / KEY_FILE) if config.pii == "redact" else None
        self._key_rows: tuple[KeyRow, ...] = ()  # of the record in hand; written once it is kept
        self._name = ""
        self._count = 0
        switches: tuple[tuple[str, bool, Callable[[Cleanable], Cleanable | str]], ...] = (
            ("unicode", config.unicode, self._unicode),
            ("empty", True, self._empty),
            ("length", config.min_chars is not None or config.max_chars is not None, self._length),
            ("language", bool(config.languages) or config.tag_language, self._language),
            ("toxicity", config.toxicity != "off", self._toxicity),
            ("contamination", self._evaluation is not None, self._contamination),
            ("pii", self._key is not None, self._pii),
            ("exact_duplicates", self._exact is not None, self._exact_duplicate),
            ("near_duplicates", self._near is not None, self._near_duplicate),
        )
        self._steps = [(name, step) for name, on, step in switches if on]
        self._report = {name: dict.fromkeys(COUNTS, 0) for name, _ in self._steps}

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that run, in order."""
        return tuple(name for name, _ in self._steps)

    def apply(self, record: Cleanable, *, name: str = "") -> Cleanable | Dropped:
        """The cleaned record, or why it was dropped.  `name` ("file, line 7") stands in later reasons."""
        if not isinstance(record, CLEANABLE):
            wanted = ", ".join(each.__name__ for each in CLEANABLE)
            raise UserError(f"cannot clean a {type(record).__name__}; wanted one of {wanted}")
        self._count += 1
        self._name = name or f"record {self._count}"
        self._key_rows = ()
        for step, run in self._steps:
            counts = self._report[step]
            counts["seen"] += 1
            after = run(record)
            if isinstance(after, str):
                counts["dropped"] += 1
                return Dropped(step, after)
            if tags_of(after) != tags_of(record):
                counts["flagged"] += 1
            elif after is not record:
                counts["changed"] += 1
            record = after
        if self._key_rows:
            self._key.write(content_digest(record), self._key_rows)
        return record

    def hide(self, text: str) -> str:
        """`text` without personal data where the pii step is on: for excerpts of dropped records."""
        return redact(text)[0] if "pii" in self.steps else text

    def report(self) -> dict[str, dict[str, int]]:
        """Per step: records seen, changed, dropped and flagged (tagged)."""
        return {name: dict(counts) for name, counts in self._report.items()}

    def close(self) -> None:
        for part in (self._exact, self._near, self._key):
            if part is not None:
                part.close()

    def __enter__(self) -> "Cleaner":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # Each step takes a record and gives a record, or the reason why it goes.

    def _unicode(self, record: Cleanable) -> Cleanable | str:
        try:
            return reword(record, normalise)
        except ValueError as error:
            return f"nothing is left after unicode normalisation: {error}"

    def _empty(self, record: Cleanable) -> Cleanable | str:
        if isinstance(record, Example):
            for number, message in enumerate(record.messages, start=1):
                if is_learnt(message) and not message.text.strip() and not message.tool_calls:
                    return f"empty answer (message {number})"
        else:
            answers = parts(record).answers
            names = ("chosen", "rejected") if isinstance(record, Preference) else ("response",)
            for name, answer in zip(names, answers, strict=False):
                if not answer.strip():
                    return f"empty answer ({name})"
        question = parts(record).question
        if question and not any(text.strip() for text in question):
            return "empty question"
        return record

    def _length(self, record: Cleanable) -> Cleanable | str:
        question, answers = parts(record)
        shortest = min(map(len, answers or (question[-1],)))
        total = sum(map(len, question + answers))
        if self.config.min_chars is not None and shortest < self.config.min_chars:
            return f"too short: {shortest} characters, fewer than {self.config.min_chars}"
        if self.config.max_chars is not None and total > self.config.max_chars:
            return f"too long: {total} characters, more than {self.config.max_chars}"
        return record

    def _language(self, record: Cleanable) -> Cleanable | str:
        """The language of the request.  A "lang:xx" tag that the source brought is believed."""
        language = next((tag[5:] for tag in tags_of(record) if tag.startswith("lang:")), "")
        if not language:
            language = _language_of(record)
            record = record if language == UNDECIDED else with_tag(record, f"lang:{language}")
        if self.config.languages and language not in (*self.config.languages, UNDECIDED):
            return f"language {language}, not {' or '.join(self.config.languages)}"
        return record

    def _toxicity(self, record: Cleanable) -> Cleanable | str:
        """What the model would learn to say counts: answers, the chosen one of two, and a prompt where it is alone."""
        question, answers = parts(record)
        said = answers[:1] if isinstance(record, Preference) else answers or question
        if isinstance(record, Label) and (record.desirable is False or record.unsafe):
            return record  # it is there to be learnt as bad
        words = toxic_words("\n".join(said))
        if not words:
            return record
        if self.config.toxicity == "drop":
            return f"toxic: {len(words)} word(s) of the profanity list"
        return with_tag(record, "toxic")

    def _contamination(self, record: Cleanable) -> Cleanable | str:
        question, answers = parts(record)
        overlap = self._evaluation.overlap(question + answers)
        return record if overlap is None else f"contaminated by {overlap}"

    def _pii(self, record: Cleanable) -> Cleanable | str:
        texts: list[str] = []
        reword(record, lambda text: texts.append(text) or text)  # every text that the redactor will see
        redactor = Redactor(texts)
        record = reword(record, redactor.redact)
        self._key_rows = redactor.rows
        return record

    def _exact_duplicate(self, record: Cleanable) -> Cleanable | str:
        earlier = self._exact.add(self._name, content_digest(record))
        return record if earlier is None else f"the same as {earlier}"

    def _near_duplicate(self, record: Cleanable) -> Cleanable | str:
        question, answers = parts(record)
        # Chosen and rejected each on its own, so that a pair and its reverse, which contradict each other, are both
        # kept; and a verdict must be the same to the letter: two people who agree are two witnesses.
        sides = answers if isinstance(record, Preference) else ("\n".join(answers),)
        texts = ("\n".join(question), *sides)
        earlier = self._near.add(self._name, "\n".join(texts), parts=(*texts, verdict(record)))
        return record if earlier is None else f"nearly the same as {earlier}"


def _language_of(record: Cleanable) -> str:
    """Of what the user says; of everything where that has no words."""
    messages = record.messages if isinstance(record, Example) else prompt_of(record).messages
    language = detect_language("\n".join(m.text for m in messages if m.role == "user"))
    if language != UNDECIDED:
        return language
    question, answers = parts(record)
    return detect_language("\n".join(question + answers))
