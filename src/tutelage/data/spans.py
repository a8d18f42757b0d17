"""Answers with spans that people marked: FineGrainedRLHF's QA feedback, and a plain form of our own.

    {"question", "passages", "prediction 1", "feedback": {"errors": [{"error type", "start", "end"}, ...]}}
    {"prompt", "response", "spans": [{"start", "end", "label", "value"}, ...]}

The errors of the former are those of prediction 1; a value that is missing in the latter is -1.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Message, Prompt, Response, Span
from tutelage.data.raw import Broken
from tutelage.data.sources import read_rows


class Spanned(NamedTuple):
    """An answer to a prompt, and what was said of stretches of it."""

    prompt: Prompt
    response: Response
    spans: tuple[Span, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt.to_dict(), "response": self.response.to_dict(), "spans": [span.to_dict() for span in self.spans]}

    def judgement(self, judge: str) -> Judgement:
        return Judgement(judge=judge, kind="spans", responses=(self.response.id,),
                         values=(float(sum(span.value for span in self.spans)),), spans=self.spans)


def read_spans(file: str | Path) -> list[Spanned]:
    """Every row of the file.  UserError names the first row that is none of the two forms, or whose span leaves its text."""
    return list(_read(file))


def _read(file: str | Path) -> Iterator[Spanned]:
    for row in read_rows(file):
        if isinstance(row, Broken):
            raise UserError(f"{file}, line {row.line}: {row.reason}")
        try:
            yield spanned(row.value)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{file}, line {row.line}: no answer with spans: {reason}") from error


def spanned(row: dict[str, Any]) -> Spanned:
    """One row.  KeyError or ValueError where it has another form."""
    if "feedback" in row:
        passages = "\n\n".join(" ".join(p) if isinstance(p, list) else str(p) for p in row.get("passages") or ())
        question = f"{passages}\n\nQuestion: {row['question']}" if passages else row["question"]
        text, marks = row["prediction 1"], [{**each, "label": each["error type"]} for each in row["feedback"]["errors"]]
    else:
        question, text, marks = row["prompt"], row["response"], row["spans"]
    prompt = Prompt(messages=(Message(role="user", text=question),), tags=("task:qa",) if "feedback" in row else ())
    response = Response(prompt_id=prompt.id, text=text)
    spans = tuple(Span(response=response.id, start=int(each["start"]), end=int(each["end"]), label=str(each["label"]),
                       value=float(each.get("value", -1.0))) for each in marks)
    for span in spans:
        if not 0 <= span.start < span.end <= len(text):
            raise ValueError(f"the span {span.start} to {span.end} leaves the answer of {len(text)} characters")
    return Spanned(prompt, response, spans)
