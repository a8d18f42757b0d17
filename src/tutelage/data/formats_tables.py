"""Classification tables, multiple choice, reading comprehension and plain text."""

import re
from typing import Any

from tutelage.core.words import Example, Label, Message, Prompt
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    checked_text,
    column,
    example,
    family,
    first,
    group_of,
    has_text,
    keeping,
    label,
    need_text,
    prompt,
    response,
    tags_of,
    user,
)

TEXT_COLUMNS = ("text", "sentence", "tweet", "comment", "review", "utterance", "test_case", "document")
LABEL_COLUMNS = ("label", "intent", "category", "class", "label_gold", "sentiment", "topic")


# Classification


def _is_table(row: dict) -> bool:
    text, name = column(row, TEXT_COLUMNS), column(row, LABEL_COLUMNS)
    return (
        text is not None
        and isinstance(row[text], str)
        and name is not None
        and isinstance(row[name], (str, int, float))
    )


def _classification(row: dict, ctx: Context) -> list[Label]:
    text, name = column(row, TEXT_COLUMNS), column(row, LABEL_COLUMNS)
    if text is None or name is None:
        raise RowError(f"missing field: '{'text' if text is None else 'label'}'")
    verdict = row[name]
    if verdict is None or str(verdict).strip() == "":
        raise RowError(f"empty field: '{name}' has no label")
    if not isinstance(verdict, (str, int, float)):
        raise RowError(f"wrong type: '{name}' must be a label; it is {type(verdict).__name__}")
    word = str(int(verdict) if isinstance(verdict, float) and verdict.is_integer() else verdict).strip()
    asked = prompt(
        user(checked_text(row[text], text)), ctx, label=word, tags=tags_of(row, "split", task="classification")
    )
    return [label(asked, response(asked, word, name=name), label=word)]


def _is_list_pair(row: dict) -> bool:
    return set(row) - {"split"} == {"column1", "column2"} and all(
        isinstance(row[name], str) for name in ("column1", "column2")
    )


def _list_pair(row: dict, ctx: Context) -> list[Label]:
    return _classification({"text": row["column1"], "label": row["column2"], "split": row.get("split")}, ctx)


# Multiple choice

LETTERS = "ABCDEFGH"


def _choice(question: str, options: list[str], right: Any, row: dict, ctx: Context) -> list[Prompt]:
    """Options as lettered lines; the label is the letter of the right one."""
    options = [str(option) for option in options]
    text = str(right).strip()
    if text.upper() in LETTERS[: len(options)]:
        letter = text.upper()
    elif text.isdigit() and int(text) < len(options):
        letter = LETTERS[int(text)]
    else:
        raise RowError(f"unknown answer: {text[:20]!r}, wanted a letter or an index of {len(options)} options")
    lines = "\n".join(f"{mark}. {option}" for mark, option in zip(LETTERS, options, strict=False))
    allowed = "|".join(LETTERS[: len(options)])
    return [
        prompt(
            user(f"{question}\n{lines}"),
            ctx,
            group=family(question),
            references=(letter,),
            label=letter,
            tags=(*tags_of(row, "subject", "category", "split", task="multiple_choice"), f"labels:{allowed}"),
        )
    ]


def _lettered(row: dict, ctx: Context) -> list[Prompt]:
    options = [str(row[mark]) for mark in LETTERS if row.get(mark) not in (None, "")]
    return _choice(need_text(row, "Question", "question"), options, first(row, "Answer", "answer"), row, ctx)


def _optioned(row: dict, ctx: Context) -> list[Prompt]:
    if len(row["options"]) < 2:
        raise RowError("too few options: wanted at least 2")
    return _choice(need_text(row, "question"), row["options"], first(row, "answer", "label"), row, ctx)


def _bbq(row: dict, ctx: Context) -> list[Prompt]:
    return _choice(
        f"{need_text(row, 'context')} {need_text(row, 'question')}",
        [row["ans0"], row["ans1"], row["ans2"]],
        row["label"],
        row,
        ctx,
    )


# Reading comprehension


def _answers(found: Any) -> list[str]:
    texts = [item.get("text", "") if isinstance(item, dict) else str(item) for item in found or ()]
    return [text for text in texts if isinstance(text, str)]


def _squad(row: dict, ctx: Context) -> Found:
    """SQuAD's nesting at any depth: an article with paragraphs, or a paragraph (context, qas), in one language or several."""
    paragraphs = row["paragraphs"] if isinstance(row.get("paragraphs"), list) else [row]
    found: Found = []
    for paragraph in paragraphs:
        context = paragraph.get("context", paragraph.get("context_text"))
        languages = list(context) if isinstance(context, dict) else [None]
        group = family(str(context[languages[0]] if languages[0] else context))
        for qa in paragraph.get("qas") or ():
            for language in languages:
                with keeping(found):
                    passage, question, answers = (
                        item[language] if language else item for item in (context, qa["question"], qa["answers"])
                    )
                    text = f"{checked_text(passage, 'context').lstrip(chr(0xFEFF))}\n\n{checked_text(question, 'question')}"
                    found.append(
                        prompt(
                            user(text),
                            ctx,
                            group=group,
                            references=_answers(answers),
                            tags=tags_of(row, "title", task="qa", lang=language),
                        )
                    )
    if not found:
        raise RowError("no question: the paragraph has none")
    return found


def _flat_squad(row: dict, ctx: Context) -> list[Prompt]:
    """The hub's flat SQuAD: context, question, answers{text[], answer_start[]}."""
    texts = row["answers"].get("text") if isinstance(row["answers"], dict) else row["answers"]
    context = need_text(row, "context")
    return [
        prompt(
            user(f"{context}\n\n{need_text(row, 'question')}"),
            ctx,
            group=family(context),
            references=_answers(texts),
            tags=tags_of(row, "title", task="qa"),
        )
    ]


# Text


def _text(row: dict, ctx: Context) -> list[Example]:
    """A document without a question: one assistant text, every token of which is learned."""
    message = Message(role="assistant", text=need_text(row, "text"))
    return [example((message,), ctx, group=group_of((message,)))]


_NUMBERED = re.compile(r"^\d{1,6}[.)]? (.*\[[^\]]+\].*)$")


def _numbered(row: dict, ctx: Context) -> list[Example]:
    match = _NUMBERED.match(need_text(row, "text"))
    if not match:
        raise RowError("no number: wanted 'N sentence with [spans]'")
    return _text({"text": match[1]}, ctx)


FORMATS = (
    Format(
        name="lettered-choice",
        kind="prompts",
        convert=_lettered,
        about="Question, A, B, C, D, Answer",
        matches=lambda r: (
            {"A", "B"} <= set(r)
            and any(k in r for k in ("Question", "question"))
            and any(k in r for k in ("Answer", "answer"))
        ),
    ),
    Format(
        name="choice",
        kind="prompts",
        matches=lambda r: isinstance(r.get("options"), list) and "question" in r,
        convert=_optioned,
        about="question, options[], answer (letter or index)",
    ),
    Format(
        name="bbq",
        kind="prompts",
        matches=lambda r: {"context", "question", "ans0", "ans1", "ans2", "label"} <= set(r),
        convert=_bbq,
        about="context, question, ans0..2, label",
    ),
    Format(
        name="squad",
        kind="prompts",
        matches=lambda r: isinstance(r.get("paragraphs"), list) or isinstance(r.get("qas"), list) and "context" in r,
        convert=_squad,
        about="title, paragraphs[{context, qas[{question, answers}]}], or one paragraph; languages as dicts",
    ),
    Format(
        name="flat-squad",
        kind="prompts",
        matches=lambda r: has_text(r, "context", "question") and isinstance(r.get("answers"), (dict, list)),
        convert=_flat_squad,
        about="context, question, answers{text[]}",
    ),
    Format(
        name="classification",
        kind="labels",
        matches=_is_table,
        convert=_classification,
        about="text and label (or intent, category, class)",
    ),
    Format(
        name="text-label-list",
        kind="labels",
        matches=_is_list_pair,
        convert=_list_pair,
        about="[text, label] pairs without a header",
    ),
)

LAST = (  # tried after all others: they ask for little
    Format(
        name="numbered-brackets",
        kind="examples",
        convert=_numbered,
        about="numbered lines with [spans]",
        matches=lambda r: set(r) == {"text"} and isinstance(r["text"], str) and bool(_NUMBERED.match(r["text"])),
    ),
    Format(
        name="text",
        kind="examples",
        matches=lambda r: isinstance(r.get("text"), str),
        convert=_text,
        about="text alone",
    ),
)
