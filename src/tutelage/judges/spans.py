"""Judges that speak of parts of an answer: spans of characters, each with a value (Wu et al. 2023, "Fine-Grained Human
Feedback Gives Better Rewards for Language Model Training", https://arxiv.org/abs/2306.01693; process rewards: Lightman et al.
2023, https://arxiv.org/abs/2305.20050).

The value of an answer is the whole of its reward, and is the sum of the values of its spans: whoever looks at values alone
(win rates, best-of-n, algorithms with one advantage an answer) sees what it is worth, and `training/dense.py` sees where it
is earned.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Prompt, Response, Span
from tutelage.judges.rules import Items, called, where, words_of

SpanFn = Callable[[list[Prompt], list[Response]], Sequence[Sequence[tuple]]]
StepFn = Callable[[list[Prompt], list[list[str]]], Sequence[Sequence[float]]]
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|[。！？]+[”’）]*|\n+")


def steps_of(text: str, mark: str = "\n") -> list[tuple[int, int]]:
    """(start, end) of the steps of a text, each up to and including its mark; a blank one belongs to the step before it.

    >>> steps_of("2+2\\n\\n=4")
    [(0, 5), (5, 7)]
    """
    if not mark:
        raise UserError("the mark at the end of a step must not be empty")
    ends = [at.end() for at in re.finditer(re.escape(mark), text)]
    out: list[tuple[int, int]] = []
    start = 0
    for end in [*ends, len(text)]:
        if text[start:end].replace(mark, "").strip():
            out.append((start, end))
        elif out:
            out[-1] = (out[-1][0], end)
        else:
            continue  # blank before the first step: it begins that one
        start = end
    return out


def sentences_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences, white space around them left out: the stretches that are judged one by one.

    >>> sentences_of("It is 3.5 m. Why? 好的。是")
    [(0, 12), (13, 17), (18, 21), (21, 22)]
    """
    out, start = [], 0
    for end in [*(at.end() for at in _SENTENCE_END.finditer(text)), len(text)]:
        piece = text[start:end]
        if piece.strip():
            out.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
        start = end
    return out


class SpanJudge:
    """A user's function `fn(prompts, responses) -> one list of (start, end, value) a response` as a judge of spans.

    Positions count the characters of `response.text`; a fourth element may name the span.
    """

    def __init__(self, fn: SpanFn, id: str = ""):
        self.fn = fn
        self.id = id or f"spans:{getattr(fn, '__name__', 'function')}"

    def judge(self, items: Items) -> list[Judgement]:
        prompts = [prompt for prompt, responses in items for _ in responses]
        responses = [response for _, responses in items for response in responses]
        found = called(self.fn, self.id, prompts, responses)
        if len(found) != len(responses):
            raise UserError(f"{self.id}: the function must return one list of spans an answer; "
                            f"it got {len(responses)} answers and returned {len(found)} lists")
        rest = iter([self._checked(*each) for each in zip(prompts, responses, found, strict=True)])
        return [judgement_of_spans(self.id, each, [next(rest) for _ in each]) for _, each in items]

    def _checked(self, prompt: Prompt, response: Response, spans: Sequence[tuple]) -> list[Span]:
        out = []
        if not isinstance(spans, Iterable):
            raise UserError(f"{self.id}: the function must return a list of spans for every answer (an empty one for none); it "
                            f"returned {spans!r} for {where(prompt)}")
        for span in spans:
            try:
                start, end, value, label = (*span, "span")[:4] if len(span) in (3, 4) else (None,) * 4
                whole = float(value), int(start), int(end)
            except (TypeError, ValueError):
                whole = (math.nan, 0, 0)
            if not math.isfinite(whole[0]) or not 0 <= whole[1] < whole[2] <= len(response.text):
                raise UserError(f"{self.id}: {span!r} is no span of the answer to {where(prompt)}; wanted (start, end, value) "
                                f"with 0 <= start < end <= {len(response.text)}, the answer's length in characters, and a "
                                "finite value")
            out.append(Span(response=response.id, start=whole[1], end=whole[2], label=str(label), value=whole[0]))
        return out


def judgement_of_spans(judge: str, responses: Sequence[Response], spans: Sequence[Sequence[Span]]) -> Judgement:
    """Spans of several responses as one Judgement."""
    return Judgement(judge=judge, kind="spans", responses=tuple(r.id for r in responses),
                     values=tuple(float(sum(span.value for span in each)) for each in spans),
                     spans=tuple(span for each in spans for span in each))


class StepJudge:
    """A user's function `fn(prompts, steps) -> one number a step` as a judge of the steps of each answer.

    `steps[i]` is the list of the texts of the steps of answer i, marks included; the number stands at the step's last token.
    """

    def __init__(self, fn: StepFn, *, mark: str = "\n", id: str = ""):
        self.fn, self.mark = fn, mark
        self.id = id or f"steps:{getattr(fn, '__name__', 'function')}"

    def judge(self, items: Items) -> list[Judgement]:
        return SpanJudge(self._spans, id=self.id).judge(items)

    def _spans(self, prompts: list[Prompt], responses: list[Response]) -> list[list[tuple]]:
        places = [steps_of(response.text, self.mark) for response in responses]
        texts = [[r.text[start:end] for start, end in steps] for r, steps in zip(responses, places, strict=True)]
        values = list(self.fn(prompts, texts))
        if [len(each) for each in values] != [len(each) for each in places]:
            raise UserError(f"{self.id}: the function must return one number a step; the answers have "
                            f"{[len(each) for each in places]} steps, it returned {[len(each) for each in values]} numbers")
        return [[(*place, value, "step") for place, value in zip(steps, numbers, strict=True)]
                for steps, numbers in zip(places, values, strict=True)]


class RepetitionSpans:
    """A fine for each n-gram of words that stood in the answer before, at the place where it ends; together minus the share
    of repeated n-grams (`repeated_share`)."""

    def __init__(self, *, n: int = 4, id: str = "rule:repetition-spans@1"):
        if n < 1:
            raise UserError(f"RepetitionSpans needs n >= 1 (words in a gram); got {n}")
        self.n, self.id = n, id

    def judge(self, items: Items) -> list[Judgement]:
        return SpanJudge(lambda prompts, responses: [self.spans(r.text) for r in responses], id=self.id).judge(items)

    def spans(self, text: str) -> list[tuple[int, int, float, str]]:
        words, places, at = [], [], 0
        for word in words_of(text):
            start = text.index(word, at)
            at = start + len(word)
            words.append(word.casefold())
            places.append((start, at))
        grams = [tuple(words[i:i + self.n]) for i in range(len(words) - self.n + 1)]
        seen, out = set(), []
        for i, gram in enumerate(grams):
            if gram in seen:
                out.append((places[i][0], places[i + self.n - 1][1], -1 / len(grams), "repeated"))
            seen.add(gram)
        return out
