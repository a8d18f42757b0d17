"""Words, their parts of speech, and how long the texts are: the classic preprocessing step.

A language model needs none of it, so nothing calls it but `tutelage data annotate`.

Tags are the 17 of Universal Dependencies v2 (https://universaldependencies.org/u/pos/).  Chinese is cut and tagged by
`rjieba`, whose own tags are mapped to them.  English is tagged by the averaged perceptron of `denckring-en-pos` (extra
`pos`; its model is CC-BY-SA-4.0, trained on UD English-EWT) where that is installed, and by the rules below (closed
word classes and endings) where it is not: `english_tagger()` says which.
"""

import functools
import importlib.util
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import rjieba

from tutelage.core.errors import UserError
from tutelage.core.extras import require
from tutelage.data.language import detect_language
from tutelage.data.reword import Cleanable, parts

UNIVERSAL_TAGS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT",
                  "SCONJ", "SYM", "VERB", "X")
_PERCEPTRON = "denckring_en_pos"
_SYMBOLS = frozenset("$€£¥%+=<>^~|#&*@°§©®")

# jieba's tags (ICTCLAS) by longest prefix: "nrt" is found under "nr".
_FROM_JIEBA = {tag: universal for universal, tags in {
    "ADJ": "a b z zg",
    "ADP": "f p",
    "ADV": "ad d df vd",
    "CCONJ": "c",
    "INTJ": "e o",
    "NOUN": "an g i j l n q s t vn",
    "NUM": "m",
    "PART": "h k u y",
    "PRON": "r",
    "PROPN": "nr ns nt nz",
    "PUNCT": "w",
    "VERB": "v",
    "X": "eng x",
}.items() for tag in tags.split()}
_CLOSED_CHINESE = {word: tag for tag, words in {
    "AUX": "是 能 会 可以 应该 可能 必须 要",
    "DET": "这 那 每 各",
    "SCONJ": "因为 如果 虽然",
    "ADV": "不",
}.items() for word in words.split()}


class Token(NamedTuple):
    text: str
    tag: str  # one of UNIVERSAL_TAGS


def annotate(text: str, lang: str | None = None) -> list[Token]:
    """The words of `text` in order, spaces left out: joined, they are the text without its spaces.

    `lang`: "en" or "zh"; None: detected.  UserError for another language.

    >>> [tuple(token) for token in annotate("我们学习语言。", "zh")]
    [('我们', 'PRON'), ('学习', 'VERB'), ('语言', 'NOUN'), ('。', 'PUNCT')]
    """
    lang = lang or detect_language(text)
    if lang == "zh":
        return _chinese(text)
    if lang in ("en", "und"):
        return _english(text)
    raise UserError(f"no part-of-speech tagger for language {lang!r}; there is one for en and one for zh")


# Chinese

def _chinese(text: str) -> list[Token]:
    out: list[Token] = []
    for word, tag in rjieba.tag(text):
        if not word.strip():
            continue
        if tag == "eng":
            out += _english(word)
        elif not any(c.isalnum() for c in word):
            out += [Token(c, _mark(c)) for c in word if not c.isspace()]
        else:
            out.append(Token(word, _CLOSED_CHINESE.get(word) or _from_jieba(tag, word)))
    return out


def _from_jieba(tag: str, word: str) -> str:
    if re.fullmatch(r"[0-9.,]+", word):
        return "NUM"
    while tag:
        if tag in _FROM_JIEBA:
            return _FROM_JIEBA[tag]
        tag = tag[:-1]
    return "X"


def _mark(character: str) -> str:
    return "SYM" if character in _SYMBOLS else "PUNCT"


# English

_ENGLISH = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|\w+|\S")
_SENTENCE_END = frozenset(".!?")


def english_tagger() -> str:
    """"perceptron" where the extra `pos` is installed, else "rules"."""
    return "perceptron" if importlib.util.find_spec(_PERCEPTRON) else "rules"


def _english(text: str) -> list[Token]:
    out: list[Token] = []
    sentence: list[str] = []
    for word in _ENGLISH.findall(text):
        sentence.append(word)
        if word in _SENTENCE_END:
            out += _english_sentence(sentence)
            sentence = []
    return out + _english_sentence(sentence)


def _english_sentence(words: list[str]) -> list[Token]:
    """The perceptron learnt on letters alone, so numbers and marks are tagged here and not shown to it."""
    spoken = [word for word in words if word[0].isalpha()]
    tags = iter(_tag_english()(spoken))
    return [Token(word, next(tags) if word[0].isalpha() else _not_spoken(word)) for word in words]


def _not_spoken(word: str) -> str:
    return "NUM" if word[0].isdigit() else _mark(word[0])


@functools.cache
def _tag_english() -> Callable[[Sequence[str]], list[str]]:
    if english_tagger() == "rules":
        return _by_rules
    model = require(_PERCEPTRON).tagger()
    return lambda words: [label.partition("|")[0] for label in model.tag(words)]  # "VERB|Fin" -> "VERB"


_CLOSED_ENGLISH = {word: tag for tag, words in {
    "DET": "the a an this that these those each every either neither some any no all both another",
    "ADP": "of in on at by for with from into about over under between through during against among within without "
           "across toward towards upon near behind above below than as",
    "PRON": "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs who whom "
            "whose what which myself yourself himself herself itself ourselves themselves someone anyone everyone "
            "nobody nothing something anything everything it's i'm you're we're they're that's there what's",
    "AUX": "be am is are was were been being have has had do does did will would shall should can could may might must "
           "don't doesn't didn't isn't aren't wasn't weren't can't cannot couldn't won't wouldn't shouldn't haven't",
    "CCONJ": "and or but nor yet",
    "SCONJ": "if because although though while since unless until whereas whether when where once",
    "PART": "to not n't",
    "ADV": "very too also just only even still already always never often sometimes here now then soon again well how "
           "why more most less perhaps maybe please quite rather almost",
    "NUM": "one two three four five six seven eight nine ten hundred thousand million billion",
    "INTJ": "hi hello hey oh yes thanks sorry",
    "VERB": "go get make take give find know think see want use tell say come keep let write explain describe list "
            "name translate summarize classify generate create provide identify",
}.items() for word in words.split()}
_ENDINGS = {"ADV": "ly", "ADJ": "ous ful ible able less ive ish", "VERB": "ize ise ify ing ed"}


def _by_rules(words: Sequence[str]) -> list[str]:
    """Closed classes by list, a capital inside a sentence is a name, then endings, then the word before; else NOUN."""
    tags: list[str] = []
    for position, word in enumerate(words):
        lower = word.lower().replace("’", "'")
        before = tags[-1] if tags else ""
        tag = _CLOSED_ENGLISH.get(lower)
        if tag is None and position and word[0].isupper():
            tag = "PROPN"
        if tag is None:
            tag = _by_ending(lower)
        if tag is None:
            tag = "VERB" if words[position - 1].lower() == "to" and before == "PART" else "NOUN"
        elif tag == "VERB" and before in ("DET", "ADJ"):
            tag = "NOUN"  # the building, a list
        tags.append(tag)
    return tags


def _by_ending(word: str) -> str | None:
    for tag, endings in _ENDINGS.items():
        if any(word.endswith(ending) and len(word) > len(ending) + 2 for ending in endings.split()):
            return tag
    return None


# How long the texts are

@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of a count, over records; a percentile is a value that occurs (numpy's method "nearest")."""

    mean: float
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    p99: int
    most: int


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Sizes of question and answers together, per language and over all ("all")."""

    records: dict[str, int]
    chars: dict[str, Lengths]
    words: dict[str, Lengths]
    tokens: dict[str, Lengths]  # empty without a tokenizer
    answer_chars: dict[str, Lengths]
    chars_per_token: dict[str, float]  # all characters over all tokens; empty without a tokenizer

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def token_statistics(
    records: Iterable[Cleanable], tokenize: Callable[[str], list[int]] | None = None
) -> TokenStatistics:
    """Streams over the records and keeps four bytes a record and count.  A word of Chinese is what `rjieba` cuts."""
    counts: dict[str, dict[str, array]] = {}
    for record in records:
        question, answers = parts(record)
        text = "\n".join(question + answers)
        lang = detect_language(text)
        row = {"chars": len(text), "words": count_words(text, lang), "answer_chars": sum(map(len, answers))}
        if tokenize is not None:
            row["tokens"] = len(tokenize(text))
        for group in (lang, "all"):
            for name, value in row.items():
                counts.setdefault(group, {}).setdefault(name, array("I")).append(value)
    rate = {group: sum(of["chars"]) / max(1, sum(of["tokens"])) for group, of in counts.items() if "tokens" in of}
    tables = {name: {group: _lengths(of[name]) for group, of in counts.items() if name in of}
              for name in ("chars", "words", "tokens", "answer_chars")}
    sizes = {group: len(of["chars"]) for group, of in counts.items()}
    return TokenStatistics(records=sizes, chars_per_token=rate, **tables)


def count_words(text: str, lang: str) -> int:
    """Words without punctuation."""
    pieces = rjieba.cut(text) if lang in ("zh", "ja") else _ENGLISH.findall(text)
    return sum(any(c.isalnum() for c in piece) for piece in pieces)


def _lengths(values: array) -> Lengths:
    whole = np.frombuffer(values, dtype=np.uint32)
    cuts = np.percentile(whole, (5, 25, 50, 75, 95, 99, 100), method="nearest").astype(int).tolist()
    return Lengths(round(float(whole.mean()), 2), *cuts)
