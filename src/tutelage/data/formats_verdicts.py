"""What people said of answers: votes of one or several annotators, ranked trees, and single answers with a verdict (KTO,
rewards).

A tie stays: soft_label 0.5 and strength 0, so that a soft-label loss can use it; `as_kind="examples"` leaves it out.
Who voted how is kept in `Preference.judgements` (see `records.votes`).  Published files name their raters by number at
best; ours are "human:<rater>", or "human:<file>" where the file says nothing.
"""

import itertools
import json
import re
from typing import Any

from tutelage.core.files import canonical_json
from tutelage.core.words import Example, Label, Message, Preference
from tutelage.data.formats_chat import (
    alpaca_prompt,
    as_turns,
    common_tags,
    is_messages,
    messages_of,
    sharegpt_turns,
    tool_call,
    tools_of,
)
from tutelage.data.formats_dialogs import merged
from tutelage.data.formats_preference import as_bool, is_native
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    as_json,
    example,
    first,
    fold_votes,
    keeping,
    label,
    need_text,
    optional_text,
    preference,
    prompt,
    response,
    tags_of,
    user,
)

# Votes


def _pandalm(row: dict, ctx: Context) -> list[Preference]:
    asked = prompt(alpaca_prompt(row), ctx, tags=tags_of(row, "motivation_app"))
    models = str(row.get("cmp_key", "")).split("_")
    policies = [f"model:{name}" for name in models] if len(models) == 2 else ["", ""]
    votes = []
    for name in sorted(name for name in row if re.fullmatch(r"annotator\d+", name)):
        if row[name] is None or row[name] == "":
            continue
        if str(row[name]) not in ("0", "1", "2"):
            raise RowError(f"unknown verdict: '{name}' is {str(row[name])[:20]!r}, wanted 0 (tie), 1 or 2")
        votes.append((f"human:{name}", {"0": 0.0, "1": 1.0, "2": -1.0}[str(row[name])]))
    return [
        fold_votes(
            asked,
            response(asked, row.get("response1"), name="response1", policy=policies[0]),
            response(asked, row.get("response2"), name="response2", policy=policies[1], index=1),
            votes,
        )
    ]


_TULU = {"a-is-better": 2.0, "a-is-slightly-better": 1.0, "tie": 0.0, "b-is-slightly-better": -1.0, "b-is-better": -2.0}


def _side_by_side(row: dict, ctx: Context) -> list[Preference]:
    """completion_a, completion_b and "a-is-better"; one row per evaluator."""
    verdict = row["preference"]
    if verdict not in _TULU:
        raise RowError(f"unknown verdict: {str(verdict)[:40]!r}, wanted one of {', '.join(_TULU)}")
    asked = prompt(as_turns(row.get("prompt"), "prompt", "user"), ctx)
    answers = [
        response(
            asked,
            row.get(f"completion_{side}"),
            name=f"completion_{side}",
            index=number,
            policy=f"model:{row[f'model_{side}']}" if row.get(f"model_{side}") else "",
        )
        for number, side in enumerate("ab")
    ]
    judge = f"human:{row['evaluator']}" if row.get("evaluator") else f"human:{ctx.source}"
    return [fold_votes(asked, *answers, [(judge, _TULU[verdict])], reason=optional_text(row, "comment") or None)]


def _two_outputs(row: dict, ctx: Context) -> list[Preference]:
    """output_1, output_2 and label 1 or 2 (0 or "tie": a tie)."""
    values = {"1": 1.0, "2": -1.0, "0": 0.0, "tie": 0.0, "3": 0.0}
    verdict = str(first(row, "label", "preference"))
    if verdict not in values:
        raise RowError(f"unknown verdict: {verdict[:20]!r}, wanted 1, 2 or 0")
    asked = prompt(alpaca_prompt(row) if row.get("instruction") else user(need_text(row, "input", "prompt")), ctx)
    return [
        fold_votes(
            asked,
            response(asked, row["output_1"], name="output_1"),
            response(asked, row["output_2"], name="output_2", index=1),
            [(f"human:{ctx.source}", values[verdict])],
        )
    ]


def _finegrained(row: dict, ctx: Context) -> Found:
    """Six verdicts (1, 2, 0 = tie) on the pairs 12 13 14 23 24 34 of four predictions, read beside the passages."""
    names = sorted(name for name in row if re.fullmatch(r"prediction \d+", name))
    pairs = list(itertools.combinations(names, 2))
    verdicts = row["preference"]
    if not isinstance(verdicts, list) or len(verdicts) != len(pairs):
        raise RowError(f"wrong number of verdicts: {len(names)} predictions need {len(pairs)}")
    passages = "\n\n".join(" ".join(p) if isinstance(p, list) else str(p) for p in row.get("passages") or ())
    question = need_text(row, "question")
    asked = prompt(
        user(f"{passages}\n\nQuestion: {question}" if passages else question),
        ctx,
        tags=("task:qa",),
        references=[optional_text(row, "gold")],
    )
    found: Found = []
    for pair, verdict in zip(pairs, verdicts, strict=True):
        with keeping(found):
            if verdict not in (0, 1, 2):
                raise RowError(f"unknown verdict: {str(verdict)[:20]!r}, wanted 0 (tie), 1 or 2")
            a, b = (response(asked, row[name], name=name, index=names.index(name)) for name in pair)
            found.append(fold_votes(asked, a, b, [(f"human:{ctx.source}", (0.0, 1.0, -1.0)[verdict])]))
    return found


# Trees


def _children(node: dict) -> list[dict]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise RowError("wrong type: 'replies' must be a list of messages")
    return [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]


def _node_message(node: dict) -> Message:
    return Message(role=role_name(node), text=need_text(node, "text"))


def role_name(node: dict) -> str:
    return "user" if node.get("role") == "prompter" else "assistant"


def _oasst_pairs(row: dict, ctx: Context) -> Found:
    """Every two ranked replies to the same message; rank 0 is the best."""
    found: Found = []
    stack = [(row["prompt"], ())]
    while stack:
        node, before = stack.pop()
        turns, replies = (*before, _node_message(node)), _children(node)
        ranked = sorted((r for r in replies if isinstance(r.get("rank"), int)), key=lambda r: r["rank"])
        if len(ranked) > 1 and turns[-1].role == "user":
            asked = prompt(turns, ctx, tags=tags_of(node, "lang"))
            for better, worse in itertools.combinations(ranked, 2):
                if better["rank"] < worse["rank"] and better.get("text") != worse.get("text"):
                    with keeping(found):
                        answers = [
                            response(
                                asked,
                                need_text(each, "text"),
                                policy=f"model:{each['model_name']}" if each.get("model_name") else "",
                            )
                            for each in (better, worse)
                        ]
                        found.append(
                            preference(asked, *answers, strength=min(float(worse["rank"] - better["rank"]), 3.0))
                        )
        stack += [(reply, turns) for reply in replies]
    if not found:
        raise RowError("no ranked replies: the tree has no two ranked answers to one message")
    return found


def _oasst_best_path(row: dict, ctx: Context) -> list[Example]:
    """From the root, always the best-ranked reply (the first one where nobody ranked)."""
    node, turns = row["prompt"], [_node_message(row["prompt"])]
    while replies := _children(node):
        node = min(replies, key=lambda r: r["rank"] if isinstance(r.get("rank"), int) else 10**6)
        turns.append(_node_message(node))
    return [example(turns, ctx, tags=tags_of(row["prompt"], "lang"))]


def _kto(row: dict, ctx: Context) -> list[Label]:
    desirable = as_bool(row["label"])
    if desirable is None:
        raise RowError(f"wrong type: 'label' must be true or false; it is {str(row['label'])[:20]!r}")
    if row.get("completion") is not None:
        turns = as_turns(row.get("prompt"), "prompt", "user") + as_turns(row["completion"], "completion", "assistant")
    else:
        turns = (
            messages_of(row["messages"])
            if "messages" in row
            else sharegpt_turns(row["conversations"], optional_text(row, "system"))
        )
    if turns[-1].role != "assistant":
        raise RowError("wrong turn: the judged conversation must end with an answer")
    asked = prompt(turns[:-1], ctx, tools=tools_of(row), tags=common_tags(row))
    return [label(asked, response(asked, turns[-1].text, name="answer"), desirable=desirable)]


def _api_message(turn: Any) -> Message:
    if not isinstance(turn, dict) or "role" not in turn:
        raise RowError("wrong type: a turn must be an object with a role")
    if isinstance(turn.get("api"), dict):
        return Message(
            role="assistant",
            text="",
            tool_calls=tuple(tool_call({"name": name, "arguments": given}) for name, given in turn["api"].items()),
        )
    if turn["role"] == "api":
        name = next(iter(turn["response"]), None) if isinstance(turn.get("response"), dict) else None
        return Message(role="tool", text=canonical_json(turn.get("response")), name=name)
    return Message(role="user" if turn["role"] == "user" else "assistant", text=need_text(turn, "text"))


def _reward(row: dict, ctx: Context) -> list[Label]:
    """A next turn (text or API call) with a human verdict; context and generation are JSON strings."""
    context, generation = as_json(row["context"], "context"), as_json(row["generation"], "generation")
    reward = row["reward"]
    if not isinstance(reward, (int, float)) or isinstance(reward, bool):
        raise RowError("wrong type: 'reward' must be a number")
    if not isinstance(context, list) or not isinstance(generation, dict):
        raise RowError("wrong type: 'context' must hold a list of turns and 'generation' one turn")
    turns = merged(_api_message(turn) for turn in context)
    answer = generation.get("text") or json.dumps(generation.get("api"), ensure_ascii=False)
    asked = prompt(turns, ctx)
    return [
        label(
            asked,
            response(asked, answer, name="generation"),
            rating=float(reward),
            desirable=reward > 0.5,
            judgements=(f"human:{ctx.source}",),
        )
    ]


# Several answers, no verdict: examples of each system


def _outputs(row: dict, ctx: Context) -> Found:
    turns, found = alpaca_prompt(row), []
    for name in sorted(name for name in row if name.startswith("output_")):
        with keeping(found):
            answer = Message(role="assistant", text=need_text(row, name))
            found.append(example((*turns, answer), ctx, author=f"model:{name.removeprefix('output_')}"))
    return found


def _responses(row: dict, ctx: Context) -> Found:
    question, found = need_text(row, "query", "question", "prompt"), []
    for name in row["responses"]:
        with keeping(found):
            answer = Message(role="assistant", text=need_text(row["responses"], name))
            found.append(example((*user(question), answer), ctx, tags=(f"domain:{name}",)))
    return found


def _native_label(row: dict, ctx: Context) -> list[Label]:
    return [Label.from_dict(row)]


def _is_tree(row: dict) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def _judged_turns(row: dict) -> bool:
    return (
        "label" in row
        and (
            is_messages(row.get("messages"))
            or "completion" in row
            and "prompt" in row
            or isinstance(row.get("conversations"), list)
        )
        and as_bool(row["label"]) is not None
    )


def _columns(row: dict, pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, str(name))) for name in row)


FORMATS = (
    Format(
        name="native-labels",
        kind="labels",
        convert=_native_label,
        about="rows of our own snapshots",
        matches=lambda r: is_native(r) and isinstance(r.get("response"), dict),
    ),
    Format(
        name="oasst-tree",
        kind="preferences",
        matches=_is_tree,
        convert=_oasst_pairs,
        as_examples=_oasst_best_path,
        about="prompt{text, replies[...]} with ranks; as examples: the best path",
    ),
    Format(
        name="annotators",
        kind="preferences",
        convert=_pandalm,
        about="response1, response2, annotator1, annotator2, ...",
        matches=lambda r: "response1" in r and "response2" in r and _columns(r, r"annotator\d+") > 0,
    ),
    Format(
        name="side-by-side",
        kind="preferences",
        convert=_side_by_side,
        about="completion_a, completion_b, preference (a-is-better ... tie), evaluator",
        matches=lambda r: "completion_a" in r and "completion_b" in r and "preference" in r,
    ),
    Format(
        name="ranked-predictions",
        kind="preferences",
        convert=_finegrained,
        about="prediction 1..n and preference[one a pair]",
        matches=lambda r: _columns(r, r"prediction \d+") > 1 and "preference" in r,
    ),
    Format(
        name="two-outputs",
        kind="preferences",
        convert=_two_outputs,
        about="output_1, output_2, label 1 or 2",
        matches=lambda r: "output_1" in r and "output_2" in r and ("label" in r or "preference" in r),
    ),
    Format(
        name="kto",
        kind="labels",
        matches=_judged_turns,
        convert=_kto,
        about="messages, or prompt and completion, with label true or false",
    ),
    Format(
        name="reward",
        kind="labels",
        convert=_reward,
        about="context, generation (JSON strings) and reward",
        matches=lambda r: {"context", "generation", "reward"} <= set(r),
    ),
    Format(
        name="outputs",
        kind="examples",
        convert=_outputs,
        about="instruction and output_<system> for several systems",
        matches=lambda r: "instruction" in r and _columns(r, r"output_\w+") > 1,
    ),
    Format(
        name="responses",
        kind="examples",
        convert=_responses,
        about="query and responses{name: answer}",
        matches=lambda r: (
            isinstance(r.get("responses"), dict)
            and any(isinstance(r.get(k), str) for k in ("query", "question", "prompt"))
        ),
    ),
)
