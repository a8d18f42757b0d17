"""Questions to ask a model, with references, labels or checks where there are some."""

import json
import re

from tutelage.core.words import Label, Message, Prompt
from tutelage.data.formats_chat import as_turns, common_tags, is_messages, messages_of, tools_of
from tutelage.data.records import (
    ROLES,
    Context,
    Format,
    Found,
    RowError,
    as_json,
    checked_text,
    column,
    example,
    family,
    has_text,
    keeping,
    label,
    need_text,
    optional_text,
    prompt,
    response,
    tags_of,
    user,
)

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "goal", "mutated_prompt", "user_query", "question_en")


def _labelled_answer(row: dict, ctx: Context) -> list[Label]:
    """A prompt, an answer, and what kind of answer people called it."""
    asked = prompt(as_turns(row["prompt"], "prompt", "user"), ctx, tools=tools_of(row), tags=tags_of(row, "type"))
    judges = tuple(f"human:{name}" for name in sorted(row) if re.fullmatch(r"annotation_\d+", name) and row[name])
    answer = response(
        asked, need_text(row, "completion", "response"), policy=f"model:{row['model']}" if row.get("model") else ""
    )
    return [label(asked, answer, label=need_text(row, "final_label", "label"), judgements=judges)]


# Questions with references


def _humaneval(row: dict, ctx: Context) -> list[Prompt]:
    return [
        prompt(
            user(need_text(row, "prompt")),
            ctx,
            references=(need_text(row, "canonical_solution"),),
            tags=("task:code", f"entry_point:{row.get('entry_point')}", f"test:{need_text(row, 'test')}"),
        )
    ]


def _ifeval(row: dict, ctx: Context) -> list[Prompt]:
    checks = [
        {"id": name, **(given or {})} for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    return [
        prompt(user(need_text(row, "prompt")), ctx, tags=("task:instruction_following", f"checks:{json.dumps(checks)}"))
    ]


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
    return [
        prompt(
            user(checked_text(row["turns"][0], "turns")),
            ctx,
            references=[str(text) for text in reference[:1]],
            tags=(*tags_of(row, "category", "question_id"), *(f"followup:{turn}" for turn in row["turns"][1:])),
        )
    ]


def _choices(row: dict, ctx: Context) -> Found:
    """MT-Bench reference answers: the questions stand in another file, so each answer is a text of its own, tagged
    with its question."""
    found: Found = []
    for choice in row["choices"]:
        for number, answer in enumerate(choice["turns"], start=1):
            with keeping(found):
                found.append(
                    example(
                        (Message(role="assistant", text=checked_text(answer, "turns")),),
                        ctx,
                        group=family(f"question {row.get('question_id')}"),
                        author=f"model:{row['model_id']}" if row.get("model_id") else "",
                        tags=(*tags_of(row, "question_id"), f"turn:{number}"),
                    )
                )
    return found


def _standard_answer(row: dict, ctx: Context) -> list[Prompt]:
    return [
        prompt(
            user(need_text(row, "question")),
            ctx,
            references=[optional_text(row, "std_answer")],
            tags=tags_of(row, task=row.get("class")),
        )
    ]


def _summary(row: dict, ctx: Context) -> list[Prompt]:
    dialogue = need_text(row, "dialogue", "document", "article")
    return [
        prompt(
            user(f"{dialogue}\n\nSummarise this in one or two sentences."),
            ctx,
            group=family(dialogue),
            references=(need_text(row, "summary"),),
            tags=tags_of(row, "topic", task="summarisation"),
        )
    ]


def _true_answers(row: dict, ctx: Context) -> list[Prompt]:
    """TruthfulQA and its kin: Best Answer (or Best Answer1..n), and ";"-separated Correct Answers."""
    best = [row[name] for name in row if re.fullmatch(r"Best Answer\d*", name) and row[name]]
    more = [text.strip() for text in optional_text(row, "Correct Answers").split(";")]
    return [
        prompt(
            user(need_text(row, "Question", "question")),
            ctx,
            references=[*map(str, best), *more],
            tags=tags_of(row, "Category", "Type", task="qa"),
        )
    ]


def _only_prompt(row: dict, ctx: Context) -> list[Prompt]:
    name = column(row, PROMPT_COLUMNS)
    if name is None:
        raise RowError("missing field: 'prompt'")
    verdict = row.get("label")
    extra = [key for key in row if key not in (name, "_id", "id", "label", "references", "reference", "tools")]
    references = row.get("references")
    if isinstance(references, str) and references.startswith("["):
        references = as_json(references, "references")
    references = references if isinstance(references, list) else [optional_text(row, "reference")]
    verdict = None if verdict == "" else verdict
    return [
        prompt(
            as_turns(row[name], name, "user"),
            ctx,
            tools=tools_of(row),
            references=[r for r in references if isinstance(r, str)],
            label=None if verdict is None else str(verdict),
            tags=tags_of(row, *extra),
        )
    ]


def _only_messages(row: dict, ctx: Context) -> list[Prompt]:
    return [Prompt.from_dict(row)]


def _is_asked(row: dict) -> bool:
    """Messages that end with a turn to answer and hold no answer, or name references for one."""
    if not is_messages(row.get("messages")):
        return False
    roles = [ROLES.get(str(m.get("role")).lower()) if isinstance(m, dict) else None for m in row["messages"]]
    return roles[-1] in ("user", "tool") and (isinstance(row.get("references"), list) or "assistant" not in roles)


def _asked_messages(row: dict, ctx: Context) -> list[Prompt]:
    """Messages that nobody answered yet, with references or a label: evaluation items."""
    references = row.get("references") or [optional_text(row, "reference")]
    allowed = row.get("labels")
    tags = (
        *common_tags(row),
        *((f"labels:{'|'.join(map(str, allowed))}",) if isinstance(allowed, list) and allowed else ()),
    )
    verdict = row.get("label")
    return [
        prompt(
            messages_of(row["messages"]),
            ctx,
            tools=tools_of(row),
            references=[r for r in references if isinstance(r, str)],
            tags=tags,
            label=None if verdict is None else str(verdict),
        )
    ]


FORMATS = (
    Format(
        name="humaneval",
        kind="prompts",
        matches=lambda r: has_text(r, "prompt", "canonical_solution", "test"),
        convert=_humaneval,
        about="prompt, canonical_solution, test, entry_point",
    ),
    Format(
        name="ifeval",
        kind="prompts",
        matches=lambda r: "instruction_id_list" in r and "kwargs" in r,
        convert=_ifeval,
        about="prompt, instruction_id_list, kwargs",
    ),
    Format(
        name="mt-bench",
        kind="prompts",
        matches=lambda r: isinstance(r.get("turns"), list),
        convert=_turns,
        about="turns[], reference[], category",
    ),
    Format(
        name="mt-bench-answers",
        kind="examples",
        convert=_choices,
        about="choices[{turns[]}], question_id",
        matches=lambda r: (
            isinstance(r.get("choices"), list)
            and bool(r["choices"])
            and isinstance(r["choices"][0], dict)
            and "turns" in r["choices"][0]
        ),
    ),
    Format(
        name="standard-answer",
        kind="prompts",
        matches=lambda r: "std_answer" in r and "question" in r,
        convert=_standard_answer,
        about="question, std_answer (may be empty), class",
    ),
    Format(
        name="true-answers",
        kind="prompts",
        convert=_true_answers,
        about="Question, Best Answer, Correct Answers",
        matches=lambda r: any(str(k).startswith("Best Answer") for k in r) and ("Question" in r or "question" in r),
    ),
    Format(
        name="summary",
        kind="prompts",
        convert=_summary,
        about="dialogue (or document) and summary",
        matches=lambda r: (
            isinstance(r.get("summary"), str) and any(has_text(r, k) for k in ("dialogue", "document", "article"))
        ),
    ),
    Format(
        name="input-target",
        kind="prompts",
        matches=lambda r: "input" in r and "target" in r,
        convert=_input_target,
        about="input, target, task",
    ),
    Format(
        name="labelled-answer",
        kind="labels",
        convert=_labelled_answer,
        about="prompt, completion, final_label",
        matches=lambda r: (
            has_text(r, "prompt", "completion") and ("final_label" in r or isinstance(r.get("label"), str))
        ),
    ),
    Format(
        name="native-prompts",
        kind="prompts",
        convert=_only_messages,
        about="rows of our own snapshots",
        matches=lambda r: (
            isinstance(r.get("messages"), list)
            and {"id", "messages"} <= set(r)
            and bool(r["messages"])
            and isinstance(r["messages"][0], dict)
            and {"role", "text"} <= set(r["messages"][0])
            and r["messages"][-1].get("role") != "assistant"
        ),
    ),
    Format(
        name="asked-messages",
        kind="prompts",
        matches=_is_asked,
        convert=_asked_messages,
        about="messages that end with a turn to answer; references, label, labels",
    ),
)

LAST = (  # tried after all others: it asks for little
    Format(
        name="prompts",
        kind="prompts",
        convert=_only_prompt,
        about="a prompt alone (or question, instruction, goal ...)",
        matches=lambda r: (
            (name := column(r, PROMPT_COLUMNS)) is not None
            and isinstance(r[name], str)
            and not any(k in r for k in ("output", "response", "answer", "completion", "chosen"))
        ),
    ),
)
