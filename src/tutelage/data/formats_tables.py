"""Questions with references, classification tables, multiple choice, reading comprehension and plain text."""

import json
import re
from typing import Any

from tutelage.core.words import Example, Label, Message, Prompt
from tutelage.data.formats_chat import common_tags, is_messages, messages_of
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    checked_text,
    example,
    family,
    first,
    group_of,
    keeping,
    label,
    need_text,
    optional_text,
    prompt,
    response,
    tags_of,
    user,
)

TEXT_COLUMNS = ("text", "sentence", "tweet", "comment", "review", "utterance", "test_case", "document")
LABEL_COLUMNS = ("label", "intent", "category", "class", "label_gold", "sentiment", "topic")
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "goal", "mutated_prompt", "user_query", "question_en")


def _column(row: dict, names: tuple[str, ...]) -> str | None:
    """The row's own spelling of the first of these columns, whatever its case."""
    lower = {str(name).lower(): name for name in row}
    return next((lower[name] for name in names if name in lower), None)


# Classification


def _is_table(row: dict) -> bool:
    text, name = _column(row, TEXT_COLUMNS), _column(row, LABEL_COLUMNS)
    return text is not None and isinstance(row[text], str) and name is not None and isinstance(row[name], (str, int, float))


def _classification(row: dict, ctx: Context) -> list[Label]:
    text, name = _column(row, TEXT_COLUMNS), _column(row, LABEL_COLUMNS)
    if text is None or name is None:
        raise RowError(f"missing field: '{'text' if text is None else 'label'}'")
    verdict = row[name]
    if verdict is None or str(verdict).strip() == "":
        raise RowError(f"empty field: '{name}' has no label")
    if not isinstance(verdict, (str, int, float)):
        raise RowError(f"wrong type: '{name}' must be a label; it is {type(verdict).__name__}")
    word = str(int(verdict) if isinstance(verdict, float) and verdict.is_integer() else verdict).strip()
    asked = prompt(user(checked_text(row[text], text)), ctx, label=word, tags=tags_of(row, "split", task="classification"))
    return [label(asked, response(asked, word, name=name), label=word)]


def _is_list_pair(row: dict) -> bool:
    return set(row) - {"split"} == {"column1", "column2"} and all(isinstance(row[name], str) for name in ("column1", "column2"))


def _list_pair(row: dict, ctx: Context) -> list[Label]:
    return _classification({"text": row["column1"], "label": row["column2"], "split": row.get("split")}, ctx)


def _labelled_answer(row: dict, ctx: Context) -> list[Label]:
    """A prompt, an answer, and what kind of answer people called it."""
    asked = prompt(user(need_text(row, "prompt")), ctx, tags=tags_of(row, "type"))
    judges = tuple(f"human:{name}" for name in sorted(row) if re.fullmatch(r"annotation_\d+", name) and row[name])
    answer = response(asked, need_text(row, "completion", "response"), policy=f"model:{row['model']}" if row.get("model") else "")
    return [label(asked, answer, label=need_text(row, "final_label", "label"), judgements=judges)]


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
    return [prompt(user(f"{question}\n{lines}"), ctx, group=family(question), references=(letter,), label=letter,
                   tags=(*tags_of(row, "subject", "category", "split", task="multiple_choice"), f"labels:{allowed}"))]


def _lettered(row: dict, ctx: Context) -> list[Prompt]:
    options = [str(row[mark]) for mark in LETTERS if row.get(mark) not in (None, "")]
    return _choice(need_text(row, "Question", "question"), options, first(row, "Answer", "answer"), row, ctx)


def _optioned(row: dict, ctx: Context) -> list[Prompt]:
    if len(row["options"]) < 2:
        raise RowError("too few options: wanted at least 2")
    return _choice(need_text(row, "question"), row["options"], first(row, "answer", "label"), row, ctx)


def _bbq(row: dict, ctx: Context) -> list[Prompt]:
    return _choice(f"{need_text(row, 'context')} {need_text(row, 'question')}", [row["ans0"], row["ans1"], row["ans2"]], row["label"], row, ctx)


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
                    passage, question, answers = (item[language] if language else item for item in (context, qa["question"], qa["answers"]))
                    text = f"{checked_text(passage, 'context').lstrip(chr(0xFEFF))}\n\n{checked_text(question, 'question')}"
                    found.append(prompt(user(text), ctx, group=group, references=_answers(answers),
                                        tags=tags_of(row, "title", task="qa", lang=language)))
    if not found:
        raise RowError("no question: the paragraph has none")
    return found


def _flat_squad(row: dict, ctx: Context) -> list[Prompt]:
    """The hub's flat SQuAD: context, question, answers{text[], answer_start[]}."""
    texts = row["answers"].get("text") if isinstance(row["answers"], dict) else row["answers"]
    context = need_text(row, "context")
    return [prompt(user(f"{context}\n\n{need_text(row, 'question')}"), ctx, group=family(context), references=_answers(texts),
                   tags=tags_of(row, "title", task="qa"))]


# Questions with references


def _humaneval(row: dict, ctx: Context) -> list[Prompt]:
    return [prompt(user(need_text(row, "prompt")), ctx, references=(need_text(row, "canonical_solution"),),
                   tags=("task:code", f"entry_point:{row.get('entry_point')}", f"test:{need_text(row, 'test')}"))]


def _ifeval(row: dict, ctx: Context) -> list[Prompt]:
    checks = [{"id": name, **(given or {})} for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    return [prompt(user(need_text(row, "prompt")), ctx, tags=("task:instruction_following", f"checks:{json.dumps(checks)}"))]


def _input_target(row: dict, ctx: Context) -> list[Prompt]:
    target = str(row["target"]).strip()
    if not target:
        raise RowError("empty field: 'target' has no text")
    return [prompt(user(need_text(row, "input")), ctx, references=(target,), label=target, tags=tags_of(row, "task"))]


def _turns(row: dict, ctx: Context) -> list[Prompt]:
    """MT-Bench: the first turn is the prompt; the follow-ups stand in tags, for they need the model's own first answer."""
    if not row["turns"]:
        raise RowError("empty field: 'turns'")
    reference = row.get("reference") or []
    return [prompt(user(checked_text(row["turns"][0], "turns")), ctx, references=[str(text) for text in reference[:1]],
                   tags=(*tags_of(row, "category", "question_id"), *(f"followup:{turn}" for turn in row["turns"][1:])))]


def _choices(row: dict, ctx: Context) -> Found:
    """MT-Bench reference answers: the questions stand in another file, so each answer is a text of its own, tagged
    with its question."""
    found: Found = []
    for choice in row["choices"]:
        for number, answer in enumerate(choice["turns"], start=1):
            with keeping(found):
                found.append(example((Message(role="assistant", text=checked_text(answer, "turns")),), ctx,
                                     group=family(f"question {row.get('question_id')}"),
                                     author=f"model:{row['model_id']}" if row.get("model_id") else "",
                                     tags=(*tags_of(row, "question_id"), f"turn:{number}")))
    return found


def _standard_answer(row: dict, ctx: Context) -> list[Prompt]:
    return [prompt(user(need_text(row, "question")), ctx, references=[optional_text(row, "std_answer")], tags=tags_of(row, task=row.get("class")))]


def _summary(row: dict, ctx: Context) -> list[Prompt]:
    dialogue = need_text(row, "dialogue", "document", "article")
    return [prompt(user(f"{dialogue}\n\nSummarise this in one or two sentences."), ctx, group=family(dialogue),
                   references=(need_text(row, "summary"),), tags=tags_of(row, "topic", task="summarisation"))]


def _true_answers(row: dict, ctx: Context) -> list[Prompt]:
    """TruthfulQA and its kin: Best Answer (or Best Answer1..n), and ";"-separated Correct Answers."""
    best = [row[name] for name in row if re.fullmatch(r"Best Answer\d*", name) and row[name]]
    more = [text.strip() for text in optional_text(row, "Correct Answers").split(";")]
    return [prompt(user(need_text(row, "Question", "question")), ctx, references=[*map(str, best), *more],
                   tags=tags_of(row, "Category", "Type", task="qa"))]


def _only_prompt(row: dict, ctx: Context) -> list[Prompt]:
    name = _column(row, PROMPT_COLUMNS)
    if name is None:
        raise RowError("missing field: 'prompt'")
    verdict = row.get("label")
    extra = [key for key in row if key not in (name, "_id", "id", "label", "references", "reference")]
    references = row.get("references") if isinstance(row.get("references"), list) else [optional_text(row, "reference")]
    return [prompt(user(checked_text(row[name], name)), ctx, references=[r for r in references if isinstance(r, str)],
                   label=None if verdict is None else str(verdict), tags=tags_of(row, *extra))]


def _only_messages(row: dict, ctx: Context) -> list[Prompt]:
    return [Prompt.from_dict(row)]


def _no_answers(row: dict) -> bool:
    return is_messages(row.get("messages")) and not any(isinstance(m, dict) and m.get("role") == "assistant" for m in row["messages"])


def _asked_messages(row: dict, ctx: Context) -> list[Prompt]:
    """Messages that nobody answered yet, with references or a label: evaluation items."""
    references = row.get("references") or [optional_text(row, "reference")]
    allowed = row.get("labels")
    tags = (*common_tags(row), *((f"labels:{'|'.join(map(str, allowed))}",) if isinstance(allowed, list) and allowed else ()))
    verdict = row.get("label")
    return [prompt(messages_of(row["messages"]), ctx, references=[r for r in references if isinstance(r, str)], tags=tags,
                   label=None if verdict is None else str(verdict))]


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


def _has_text(row: dict, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


FORMATS = (
    Format(name="humaneval", kind="prompts", matches=lambda r: _has_text(r, "prompt", "canonical_solution", "test"), convert=_humaneval,
           about="prompt, canonical_solution, test, entry_point"),
    Format(name="ifeval", kind="prompts", matches=lambda r: "instruction_id_list" in r and "kwargs" in r, convert=_ifeval,
           about="prompt, instruction_id_list, kwargs"),
    Format(name="lettered-choice", kind="prompts", convert=_lettered, about="Question, A, B, C, D, Answer",
           matches=lambda r: {"A", "B"} <= set(r) and any(k in r for k in ("Question", "question")) and any(k in r for k in ("Answer", "answer"))),
    Format(name="choice", kind="prompts", matches=lambda r: isinstance(r.get("options"), list) and "question" in r, convert=_optioned,
           about="question, options[], answer (letter or index)"),
    Format(name="bbq", kind="prompts", matches=lambda r: {"context", "question", "ans0", "ans1", "ans2", "label"} <= set(r), convert=_bbq,
           about="context, question, ans0..2, label"),
    Format(name="squad", kind="prompts", matches=lambda r: isinstance(r.get("paragraphs"), list) or isinstance(r.get("qas"), list) and "context" in r,
           convert=_squad, about="title, paragraphs[{context, qas[{question, answers}]}], or one paragraph; languages as dicts"),
    Format(name="flat-squad", kind="prompts", matches=lambda r: _has_text(r, "context", "question") and isinstance(r.get("answers"), (dict, list)),
           convert=_flat_squad, about="context, question, answers{text[]}"),
    Format(name="mt-bench", kind="prompts", matches=lambda r: isinstance(r.get("turns"), list), convert=_turns, about="turns[], reference[], category"),
    Format(name="mt-bench-answers", kind="examples", convert=_choices, about="choices[{turns[]}], question_id",
           matches=lambda r: isinstance(r.get("choices"), list) and bool(r["choices"]) and isinstance(r["choices"][0], dict) and "turns" in r["choices"][0]),
    Format(name="standard-answer", kind="prompts", matches=lambda r: "std_answer" in r and "question" in r, convert=_standard_answer,
           about="question, std_answer (may be empty), class"),
    Format(name="true-answers", kind="prompts", convert=_true_answers, about="Question, Best Answer, Correct Answers",
           matches=lambda r: any(str(k).startswith("Best Answer") for k in r) and ("Question" in r or "question" in r)),
    Format(name="summary", kind="prompts", convert=_summary, about="dialogue (or document) and summary",
           matches=lambda r: isinstance(r.get("summary"), str) and any(_has_text(r, k) for k in ("dialogue", "document", "article"))),
    Format(name="input-target", kind="prompts", matches=lambda r: "input" in r and "target" in r, convert=_input_target, about="input, target, task"),
    Format(name="labelled-answer", kind="labels", convert=_labelled_answer, about="prompt, completion, final_label",
           matches=lambda r: _has_text(r, "prompt", "completion") and ("final_label" in r or isinstance(r.get("label"), str))),
    Format(name="native-prompts", kind="prompts", convert=_only_messages, about="rows of our own snapshots",
           matches=lambda r: isinstance(r.get("messages"), list) and {"id", "messages"} <= set(r) and bool(r["messages"])
           and isinstance(r["messages"][0], dict) and {"role", "text"} <= set(r["messages"][0]) and r["messages"][-1].get("role") != "assistant"),
    Format(name="asked-messages", kind="prompts", matches=_no_answers, convert=_asked_messages,
           about="messages without an answer; references, label, labels"),
    Format(name="classification", kind="labels", matches=_is_table, convert=_classification, about="text and label (or intent, category, class)"),
    Format(name="text-label-list", kind="labels", matches=_is_list_pair, convert=_list_pair, about="[text, label] pairs without a header"),
)

LAST = (  # tried after all others: they ask for little
    Format(name="prompts", kind="prompts", convert=_only_prompt, about="a prompt alone (or question, instruction, goal ...)",
           matches=lambda r: (name := _column(r, PROMPT_COLUMNS)) is not None and isinstance(r[name], str)
           and not any(k in r for k in ("output", "response", "answer", "completion", "chosen"))),
    Format(name="numbered-brackets", kind="examples", convert=_numbered, about="numbered lines with [spans]",
           matches=lambda r: set(r) == {"text"} and isinstance(r["text"], str) and bool(_NUMBERED.match(r["text"]))),
    Format(name="text", kind="examples", matches=lambda r: isinstance(r.get("text"), str), convert=_text, about="text alone"),
)
