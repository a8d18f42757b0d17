"""Rules as judges: length, repetition, language, format, labels, and any Python function of the user's.

Every rule gives one value an answer, 1 = as wanted and 0 = not at all (a user's function: its own scale), so that a
value can be a reward as it stands.
"""

import importlib.util
import math
import re
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.core.errors import RewardError, UserError
from tutelage.core.words import Judgement, Prompt, Response

Items = Sequence[tuple[Prompt, Sequence[Response]]]
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['\u2019-][^\W{CJK}]+)*")


def words_of(text: str) -> list[str]:
    """Words of a text; a Chinese character counts as one word.

    >>> words_of("Don't panic: 别慌!")
    ["Don't", 'panic', '别', '慌']
    """
    return _UNIT.findall(text)


def chinese_share(text: str) -> float | None:
    """Share of the letters that are Chinese characters; None for a text without letters."""
    letters = [c for c in text if c.isalpha()]
    return sum(bool(re.match(f"[{CJK}]", c)) for c in letters) / len(letters) if letters else None


def language_of(text: str) -> str:
    """"zh" where Chinese characters outnumber a third of the letters (a Chinese sentence may quote an English name),
    else "en", which stands for any language written with spaces."""
    return "zh" if (chinese_share(text) or 0) > 1 / 3 else "en"


def wanted_language(prompt: Prompt) -> str | None:
    """Language in which the answer is asked for: the target of a `task:translation_x_y` tag, else the `lang:` tag."""
    task = prompt.tag("task") or ""
    if task.startswith("translation_"):
        return task.rsplit("_", 1)[1]
    return prompt.tag("lang")


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces, no punctuation or quotes at either end.

    >>> normalise(' "Positive". ')
    'positive'
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)


def rate(items: Items, *, judge: str, rubric: str, value: Callable[[Prompt, Response], float]) -> list[Judgement]:
    """Ratings made answer by answer: the body of most judges here."""
    return [
        Judgement(judge=judge, kind="rating", rubric=rubric, responses=tuple(r.id for r in responses),
                  values=tuple(float(value(prompt, r)) for r in responses))
        for prompt, responses in items
    ]


class LengthRule:
    """1 between `low` and `high` words (Chinese characters count as words); falls in proportion outside."""

    def __init__(self, low: int, high: int, *, id: str = "rule:length@1"):
        if not 0 <= low <= high or high < 1:
            raise UserError(f"LengthRule needs 0 <= low <= high and high >= 1 (words); got low={low}, high={high}")
        self.low, self.high, self.id = low, high, id

    def value(self, prompt: Prompt, response: Response) -> float:
        n = len(words_of(response.text))
        return n / self.low if n < self.low else self.high / n if n > self.high else 1.0

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric="length@1", value=self.value)


def repeated_share(text: str, *, n: int = 4) -> float:
    """Share of the text's n-grams of words that stood in it before; 0 = nothing is repeated.

    >>> repeated_share("a b a b a b", n=2)  # ab ba ab ba ab: three of five are repeats
    0.6
    """
    words = [word.casefold() for word in words_of(text)]
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class RepetitionRule:
    """1 - share of repeated n-grams: 1 for a text that never repeats itself, near 0 for a loop."""

    def __init__(self, *, n: int = 4, id: str = "rule:repetition@1"):
        if n < 1:
            raise UserError(f"RepetitionRule needs n >= 1 (words in a gram); got {n}")
        self.n, self.id = n, id

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric="repetition@1",
                    value=lambda prompt, response: 1 - repeated_share(response.text, n=self.n))


class LanguageRule:
    """Share of the answer's letters that are in the script of the language asked for (see `wanted_language`).

    Script only: it tells Chinese from English, not French from English.  An answer without letters ("42") passes with
    1, an empty one gets 0; so does a prompt that asks for no language: 1.
    """

    def __init__(self, *, id: str = "rule:language@1"):
        self.id = id

    def value(self, prompt: Prompt, response: Response) -> float:
        if not response.text.strip():
            return 0.0
        wanted, share = wanted_language(prompt), chinese_share(response.text)
        if wanted is None or share is None:
            return 1.0
        return share if wanted.startswith("zh") else 1 - share

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric="language@1", value=self.value)


class FormatRule:
    """1 where the regular expression is found in the answer (`whole=True`: where it is the whole answer)."""

    def __init__(self, pattern: str, *, whole: bool = False, id: str = "rule:format@1"):
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"FormatRule: {pattern!r} is not a regular expression: {error}") from error
        self.find = self.pattern.fullmatch if whole else self.pattern.search
        self.id = id

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric="format@1",
                    value=lambda prompt, response: float(self.find(response.text.strip()) is not None))


def labels_of(prompt: Prompt) -> list[str]:
    """Allowed labels from the tag `labels:a|b|c`; without it, the right label alone."""
    listed = prompt.tag("labels")
    return [label for label in listed.split("|") if label] if listed else [prompt.label] if prompt.label else []


def is_label(prompt: Prompt, text: str) -> bool:
    """Strict: the whole answer, normalised, is the right label."""
    return normalise(text) == normalise(_label(prompt))


def names_label(prompt: Prompt, text: str) -> bool:
    """Lenient: the first line that is not empty names the right label and no other allowed one."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line, named = normalise(line), set()
    for label in sorted({normalise(label) for label in [*labels_of(prompt), _label(prompt)]}, key=len, reverse=True):
        # Longest first, and blotted out when found: "not spam" must not count as "spam" too.
        # Word edges hold for Latin letters only: Chinese has no spaces to stand beside.
        found = re.compile(rf"(?<![a-z0-9]){re.escape(label)}(?![a-z0-9])")
        if found.search(line):
            named.add(label)
            line = found.sub(" ", line)
    return named == {normalise(_label(prompt))}


def _label(prompt: Prompt) -> str:
    if not prompt.label:
        raise UserError(f"{where(prompt)} has no label to compare with; give it one, or keep it from the label rule")
    return prompt.label


class LabelRule:
    """1 where the answer is the prompt's label: strict by default (`is_label`), or lenient (`names_label`)."""

    def __init__(self, *, lenient: bool = False, id: str = ""):
        self.matches = names_label if lenient else is_label
        self.id = id or ("rule:label-lenient@1" if lenient else "rule:label@1")

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric="label@1",
                    value=lambda prompt, response: float(self.matches(prompt, response.text)))


class FunctionJudge:
    """A user's Python function `fn(prompts, responses) -> list[float]` as a judge.

    The function gets two lists of equal length, `Prompt` and `Response` records (`prompt.messages[-1].text`,
    `response.text`), one entry an answer, in one call for the whole batch.
    """

    def __init__(self, fn: Callable[[list[Prompt], list[Response]], Sequence[float]], id: str = ""):
        self.fn = fn
        self.id = id or f"rule:{getattr(fn, '__name__', 'function')}"

    def judge(self, items: Items) -> list[Judgement]:
        prompts = [prompt for prompt, responses in items for _ in responses]
        responses = [response for _, responses in items for response in responses]
        values = called(self.fn, self.id, prompts, responses)
        if len(values) != len(responses):
            raise UserError(f"{self.id}: the function must return one number an answer; "
                            f"it got {len(responses)} answers and returned {len(values)} numbers")
        for prompt, value in zip(prompts, values, strict=True):
            if not _is_number(value):
                raise UserError(f"{self.id}: the function returned {value!r} for {where(prompt)}; "
                                "a reward must be a finite number: mend the function or leave that prompt out")
        rest = iter(values)
        return [Judgement(judge=self.id, kind="rating", responses=tuple(r.id for r in each),
                          values=tuple(float(next(rest)) for _ in each)) for _, each in items]


def called(fn: Callable, judge: str, prompts: list[Prompt], answers: list) -> list:
    """What the user's function says of a batch; RewardError with file, line and the first prompt where it raises."""
    if not answers:
        return []
    try:
        return list(fn(prompts, answers))
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything; a run must keep what it learned
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(f"{judge}: the function raised {type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno}), "
                          f"in a batch of {len(answers)} answers that begins with {where(prompts[0])}; mend it, so that it "
                          "returns something for every answer, the empty one too") from error


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # numpy scalars, one-element tensors and bools are welcome
    except (TypeError, ValueError):
        return False


def user_function(spec: str) -> Callable:
    """`path/to/file.py:name` -> the function.  Runs that file: it is the user's own code."""
    file, _, name = spec.rpartition(":")
    if not file or not Path(file).is_file():
        raise UserError(f"reward function {spec!r}: wanted FILE.py:FUNCTION, and the file must exist")
    module_spec = importlib.util.spec_from_file_location(f"tutelage_user_{Path(file).stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"reward function {spec!r}: {file} is not a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        line = getattr(error, "lineno", None) or traceback.extract_tb(error.__traceback__)[-1].lineno
        raise UserError(f"reward function {spec!r}: {file} cannot be run, line {line}: {type(error).__name__}: {error}") from error
    fn = getattr(module, name, None)
    if not callable(fn):
        raise UserError(f"reward function {spec!r}: {file} has no function {name!r}")
    return fn


def function_judge(spec: str) -> FunctionJudge:
    """`path/to/file.py:name` -> FunctionJudge."""
    return FunctionJudge(user_function(spec), id=f"rule:{spec.rpartition(':')[2]}")


def where(prompt: Prompt) -> str:
    """How errors name a prompt: short id and its first words."""
    text = " ".join(prompt.messages[-1].text.split())
    return f"prompt {prompt.id[:12]} ({text[:60]!r}{'...' if len(text) > 60 else ''})"
