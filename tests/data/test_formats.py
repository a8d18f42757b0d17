import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.core.errors import UserError
from tutelage.core.words import Example, Label, Message, Preference, Prompt, Response
from tutelage.data import formats
from tutelage.data.reading import Quarantined, Reading
from tutelage.data.records import Context, RowError, as_kind, dotted, votes
from tutelage.data.writers import ROW_OF, write_records


def convert(row, kind=None):
    fmt = formats.detect(row)
    assert fmt is not None, f"no format for {row}"
    return fmt.name, formats.convert(row, fmt, Context(source="file"), kind=kind)


def talk(messages):
    return [(m.role, m.text) for m in messages]


def pair_of(record):
    return talk(record.prompt.messages), record.chosen.text, record.rejected.text


Q, A = ("user", "Why?"), ("assistant", "Because.")
QA = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}

EXAMPLES = [
    ("alpaca", {"instruction": "Why?", "input": "", "output": "Because."}, [Q, A]),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "response": "3"}, [("user", "Add.\n\n1 2"), ("assistant", "3")]),
    (
        "alpaca",
        {"instruction": "Why?", "output": "Because.", "system": "Be kind.", "history": [["Hi", "Ho"]]},
        [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), Q, A],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}], "system": "S"},
        [("system", "S"), Q, A],
    ),
    ("openai", {"messages": [*QA]}, [Q, A]),
    (
        "openai",
        {"messages": [*QA, {"role": "user", "content": "Unanswered"}]},
        [Q, A],
    ),  # nothing to learn from the last turn
    (
        "openai",
        {
            "messages": [
                QA[0],
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "Because."}],
                },
            ]
        },
        [Q, A],
    ),
    ("prompt-completion", {"prompt": "Why?", "completion": "Because."}, [Q, A]),
    ("prompt-completion", {"prompt": [QA[0]], "completion": [QA[1]]}, [Q, A]),
    ("question-answer", {"question": "Why?", "answer": "Because."}, [Q, A]),
    ("self-instruct", {"instruction": "Why?", "instances": [{"input": "", "output": "Because."}]}, [Q, A]),
    (
        "moss",
        {
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: Why?<eoh>\n",
                    "Inner Thoughts": "secret",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "MOSS": "<|MOSS|>: Because.<eom>\n",
                }
            }
        },
        [Q, A],
    ),
    ("kdconv", {"domain": "film", "messages": [{"message": "Why?", "attrs": []}, {"message": "Because."}]}, [Q, A]),
    (
        "dialog",
        {"dialog": [{"speaker": "seeker", "text": "Why?"}, {"speaker": "supporter", "text": "Because."}]},
        [Q, A],
    ),
    (
        "dialog",
        {
            "dialog": [
                {"role": "client", "content": "为什么"},
                {"role": "counselor", "content": "因为"},
                {"role": "counselor", "content": "是"},
            ]
        },
        [("user", "为什么"), ("assistant", "因为\n是")],
    ),
    ("text", {"text": "Once upon a time."}, [("assistant", "Once upon a time.")]),
    ("numbered-brackets", {"text": "3 [The cook] met [him]."}, [("assistant", "[The cook] met [him].")]),
]


@pytest.mark.parametrize(("name", "row", "wanted"), EXAMPLES)
def test_conversations_become_examples(name, row, wanted):
    found, (record,) = convert(row)
    assert found == name and isinstance(record, Example) and talk(record.messages) == wanted


def test_tool_calls_are_read_from_all_three_spellings():
    tools = [{"name": "add", "parameters": {}}]
    call = {"name": "add", "arguments": {"a": 1}}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "It is 2."},
        ],
        "tools": json.dumps(tools),
    }
    openai = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "It is 2."},
        ],
        "tools": tools,
    }
    parts = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "q"}]},
            {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(call)}]},
            {"role": "tool", "content": [{"type": "text", "value": "2"}]},
            {"role": "assistant", "content": "It is 2."},
        ],
        "tools": tools,
    }
    found = [convert(row)[1][0] for row in (sharegpt, openai, parts)]
    assert found[0].messages == found[1].messages == found[2].messages and found[0].tools == tuple(tools)
    assert found[0].messages[1].tool_calls == (call,) and talk(found[0].messages)[2] == ("tool", "2")


def test_loss_weights_are_kept_for_answers():
    row = {
        "messages": [{**QA[0], "loss_weight": 0.0}, {**QA[1], "loss_weight": 0.0}, QA[0], {**QA[1], "loss_weight": 0.5}]
    }
    assert [m.weight for m in convert(row)[1][0].messages if m.role == "assistant"] == [0.0, 0.5]


def test_moss_commands_become_tool_calls():
    turn = {
        "Human": "1+1?",
        "Commands": '<|Commands|>: Calculate("1+1"), Search("two")<eoc>',
        "Tool Responses": "<|Results|>: 2<eor>",
        "MOSS": "2",
    }
    turns = convert(
        {"chat": {"turn_1": turn, "turn_10": {"Human": "c", "MOSS": "d"}, "turn_2": {"Human": "a", "MOSS": "b"}}}
    )[1][0].messages
    assert turns[1].tool_calls == (
        {"name": "Calculate", "arguments": '"1+1"'},
        {"name": "Search", "arguments": '"two"'},
    )
    assert talk(turns[2:]) == [
        ("tool", "2"),
        ("assistant", "2"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]


def test_taskmaster_annotations_become_calls_between_the_turns():
    notes = [
        {"name": "api_call", "value": "menu"},
        {"name": "request", "value": '{"q": "tea"}'},
        {"name": "api_response", "value": "menu"},
        {"name": "response", "value": "[]"},
    ]
    row = {
        "utterances": [
            {"speaker": "user", "text": "Tea", "annotations": notes},
            {"speaker": "assistant", "text": "No tea.", "annotations": []},
        ]
    }
    turns = convert(row)[1][0].messages
    assert talk(turns) == [("user", "Tea"), ("assistant", ""), ("tool", "[]"), ("assistant", "No tea.")]
    assert turns[1].tool_calls == ({"name": "menu", "arguments": {"q": "tea"}},)


def test_windows_of_one_growing_dialog_share_a_group_and_train_on_their_last_turn():
    ctx = Context()
    fmt = formats.named("dialog-eos")
    lines = [
        "1.0 0 0 Hello EOS 1.0 1 1 [Other] Hi",
        "0.0 1 1 [Other] Hi EOS 0.0 0 2 I am sad EOS 1.0 1 3 [Questions] Why?",
        "1.0 0 0 Good day EOS 1.0 1 1 [Other] Good day to you",
    ]
    a, b, c = (formats.convert({"text": line}, fmt, ctx)[0] for line in lines)
    assert formats.detect({"text": lines[0]}) is fmt
    assert a.group == b.group != c.group
    assert [(m.text, m.weight) for m in b.messages] == [("Hi", 0.0), ("I am sad", 1.0), ("Why?", 1.0)]


PAIR = ([Q], "good", "bad")
HH = "\n\nHuman: Why?\n\nAssistant: "
PAIRS = [
    ("trl", {"prompt": "Why?", "chosen": "good", "rejected": "bad"}),
    (
        "trl",
        {
            "prompt": [QA[0]],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
    ),
    (
        "trl",
        {
            "chosen": [QA[0], {"role": "assistant", "content": "good"}],
            "rejected": [QA[0], {"role": "assistant", "content": "bad"}],
        },
    ),
    (
        "trl",
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ),
    ("trl", {"messages": [QA[0]], "chosen": "good", "rejected": "bad"}),
    ("trl", {"instruction": "Why?", "input": "", "chosen": "good", "rejected": "bad"}),
    ("output-pair", {"instruction": "Why?", "output": ["good", "bad"]}),
    (
        "chosen-messages",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "Why?"}]},
                {"role": "assistant", "content": "good"},
            ],
            "rejected_messages": [QA[0], {"role": "assistant", "content": "bad"}],
        },
    ),
    ("hh", {"chosen": HH + "good", "rejected": HH + "bad"}),
    ("text-score", {"text": [HH + "bad", HH + "good"], "score": [0.0, 1.0]}),
    ("annotators", {"instruction": "Why?", "input": "", "response1": "bad", "response2": "good", "annotator1": 2}),
    (
        "side-by-side",
        {
            "prompt": "Why?",
            "completion_a": "good",
            "completion_b": "bad",
            "preference": "a-is-better",
            "evaluator": "r1",
        },
    ),
    ("two-outputs", {"input": "Why?", "output_1": "bad", "output_2": "good", "label": 2}),
    ("ranked-predictions", {"question": "Why?", "prediction 1": "bad", "prediction 2": "good", "preference": [2]}),
    (
        "oasst-tree",
        {
            "prompt": {
                "text": "Why?",
                "role": "prompter",
                "replies": [
                    {"text": "bad", "role": "assistant", "rank": 1, "replies": []},
                    {"text": "good", "role": "assistant", "rank": 0, "replies": []},
                ],
            }
        },
    ),
]


@pytest.mark.parametrize(("name", "row"), PAIRS)
def test_pairs_in_every_shape_say_the_same(name, row):
    found, (record,) = convert(row)
    assert found == name and isinstance(record, Preference) and pair_of(record) == PAIR
    _, (example,) = convert(row, kind="examples")
    assert talk(example.messages) == [Q, ("assistant", "good")]


def test_transcripts_that_part_early_are_cut_at_the_first_different_answer():
    better = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good\n\nHuman: thanks\n\nAssistant: bye"
    worse = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad"
    _, (record,) = convert({"chosen": better, "rejected": worse})
    assert pair_of(record) == ([("user", "a"), ("assistant", "b"), ("user", "c")], "good", "bad")
    with pytest.raises(RowError, match="part at a user turn"):
        convert({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"})


def test_several_annotators_are_folded_and_every_vote_is_kept():
    row = {
        "instruction": "q",
        "response1": "x",
        "response2": "y",
        "annotator1": 2,
        "annotator2": 0,
        "annotator3": 2,
        "cmp_key": "m1_m2",
    }
    _, (record,) = convert(row)
    assert record.chosen.text == "y" and record.chosen.policy == "model:m2"
    assert record.soft_label == pytest.approx(2.5 / 3)  # two votes and half a tie, of three
    assert record.strength == pytest.approx(2 / 3)  # mean margin of 1, 0 and 1
    said = [(j.judge, j.values) for j in votes(record)]
    assert said == [
        ("human:annotator1", (1.0, 0.0)),
        ("human:annotator2", (0.0, 0.0)),
        ("human:annotator3", (1.0, 0.0)),
    ]
    assert all(j.responses == (record.chosen.id, record.rejected.id) for j in votes(record))


def test_a_tie_stays_with_soft_label_one_half_and_is_no_example():
    row = {"prompt": "q", "completion_a": "x", "completion_b": "y", "preference": "tie", "evaluator": "r"}
    _, (record,) = convert(row)
    assert (record.soft_label, record.strength) == (0.5, 0.0)
    _, (fault,) = convert(row, kind="examples")
    assert isinstance(fault, RowError) and str(fault).startswith("a tie")


def test_six_verdicts_on_four_predictions_are_six_pairs():
    row = {
        "question": "q",
        "passages": [["p1", "p2"]],
        "preference": [1, 2, 0, 1, 1, 2],
        **{f"prediction {n}": f"p{n}" for n in range(1, 5)},
    }
    _, records = convert(row)
    found = [(r.chosen.text, r.rejected.text, r.soft_label) for r in records]
    assert found == [
        ("p1", "p2", 1),
        ("p3", "p1", 1),
        ("p1", "p4", 0.5),
        ("p2", "p3", 1),
        ("p2", "p4", 1),
        ("p4", "p3", 1),
    ]
    assert records[0].prompt.messages[0].text == "p1 p2\n\nQuestion: q"


def test_a_tree_gives_pairs_at_every_depth_and_the_best_path():
    def node(role, text, rank=None, replies=(), **more):
        return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}

    tree = {
        "prompt": node(
            "prompter",
            "q",
            replies=[
                node("assistant", "worst", 2),
                node("assistant", "spam", 1, deleted=True),
                node(
                    "assistant",
                    "best",
                    0,
                    [node("prompter", "more?", replies=[node("assistant", "B", 1), node("assistant", "A", 0)])],
                ),
            ],
        )
    }
    _, pairs = convert(tree)
    assert sorted(pair_of(p)[1:] for p in pairs) == [("A", "B"), ("best", "worst")]
    deep = next(p for p in pairs if p.chosen.text == "A")
    assert talk(deep.prompt.messages) == [("user", "q"), ("assistant", "best"), ("user", "more?")]
    assert len({p.group for p in pairs}) == 1
    _, (path,) = convert(tree, kind="examples")
    assert talk(path.messages) == [("user", "q"), ("assistant", "best"), ("user", "more?"), ("assistant", "A")]
    with pytest.raises(RowError, match="no ranked replies"):
        convert({"prompt": node("prompter", "q", replies=[node("assistant", "a")])})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*QA], "label": True},
        {"prompt": "Why?", "completion": "Because.", "label": "true"},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}], "label": 1},
    ],
)
def test_single_answers_with_a_verdict_become_labels(row):
    found, (record,) = convert(row)
    assert found == "kto" and isinstance(record, Label)
    assert (talk(record.prompt.messages), record.response.text, record.desirable) == ([Q], "Because.", True)


def test_a_reward_on_a_next_api_call_keeps_the_calls_before_it():
    context = [
        {"role": "agent", "text": "Welcome"},
        {"role": "user", "text": "tea"},
        {"role": "agent", "api": {"menu": {"q": "tea"}}},
        {"role": "api", "response": {"menu": []}},
    ]
    row = {
        "context": json.dumps(context),
        "generation": json.dumps({"role": "agent", "text": "No tea."}),
        "reward": 0.0,
    }
    _, (record,) = convert(row)
    assert talk(record.prompt.messages) == [
        ("assistant", "Welcome"),
        ("user", "tea"),
        ("assistant", ""),
        ("tool", '{"menu":[]}'),
    ]
    assert (record.response.text, record.rating, record.desirable) == ("No tea.", 0.0, False)
    with pytest.raises(RowError, match="broken inner JSON: 'context'"):
        convert({**row, "context": "[{"})


def test_systems_and_styles_become_examples_with_their_origin():
    _, records = convert({"instruction": "q", "input": "", "output_sft": "a", "output_rlhf": "b"})
    assert {(r.author, r.messages[-1].text) for r in records} == {("model:sft", "a"), ("model:rlhf", "b")}
    _, records = convert({"query": "q", "responses": {"plain": "a", "poetic": "", "formal": "c"}})
    assert [getattr(r, "tags", None) for r in records] == [("domain:plain",), None, ("domain:formal",)]
    assert isinstance(records[1], RowError)  # one empty answer costs that answer only


PROMPTS = [
    ("lettered-choice", {"Question": "1+1?", "A": "1", "B": "2", "Answer": "B"}, "1+1?\nA. 1\nB. 2", ("B",), "B"),
    ("choice", {"question": "1+1?", "options": ["1", "2"], "answer": 1}, "1+1?\nA. 1\nB. 2", ("B",), "B"),
    (
        "bbq",
        {"context": "Two met.", "question": "Who?", "ans0": "x", "ans1": "y", "ans2": "z", "label": 0},
        "Two met. Who?\nA. x\nB. y\nC. z",
        ("A",),
        "A",
    ),
    (
        "squad",
        {"context": "C", "qas": [{"question": "Q?", "answers": [{"text": "a"}, {"text": "a"}, {"text": "b"}]}]},
        "C\n\nQ?",
        ("a", "b"),
        None,
    ),
    (
        "squad",
        {"title": "t", "paragraphs": [{"context": "C", "qas": [{"question": "Q?", "answers": [{"text": "a"}]}]}]},
        "C\n\nQ?",
        ("a",),
        None,
    ),
    (
        "flat-squad",
        {"context": "C", "question": "Q?", "answers": {"text": ["a"], "answer_start": [0]}},
        "C\n\nQ?",
        ("a",),
        None,
    ),
    (
        "humaneval",
        {"prompt": "def f():", "canonical_solution": " return 1", "test": "t", "entry_point": "f"},
        "def f():",
        (" return 1",),
        None,
    ),
    ("ifeval", {"prompt": "Write.", "instruction_id_list": ["x"], "kwargs": [{"n": 1}]}, "Write.", (), None),
    ("input-target", {"input": "not True is", "target": "False"}, "not True is", ("False",), "False"),
    ("mt-bench", {"turns": ["First", "Second"], "reference": ["r1", "r2"]}, "First", ("r1",), None),
    ("standard-answer", {"question": "问", "std_answer": "", "class": "qa"}, "问", (), None),
    (
        "true-answers",
        {"Question": "Q?", "Best Answer": "a", "Correct Answers": "a; b", "Incorrect Answers": "c"},
        "Q?",
        ("a", "b"),
        None,
    ),
    (
        "asked-messages",
        {"messages": [{"role": "user", "content": "Q?"}], "references": ["a"], "label": "x", "labels": ["x", "y"]},
        "Q?",
        ("a",),
        "x",
    ),
    ("prompts", {"prompt": "Q?", "category": "c"}, "Q?", (), None),
    ("prompts", {"Goal": "Q?"}, "Q?", (), None),
]


@pytest.mark.parametrize(("name", "row", "text", "references", "label"), PROMPTS)
def test_questions_become_prompts(name, row, text, references, label):
    found, (record,) = convert(row)
    assert found == name and isinstance(record, Prompt)
    assert (talk(record.messages), record.references, record.label) == ([("user", text)], references, label)


def test_questions_in_several_languages_share_the_group_of_their_passage():
    row = {
        "context": {"en": "C", "zh": "文"},
        "qas": [{"question": {"en": "Q?", "zh": "问"}, "answers": {"en": [{"text": "a"}], "zh": [{"text": "答"}]}}],
    }
    _, records = convert(row)
    assert [(r.messages[0].text, r.references, r.tag("lang")) for r in records] == [
        ("C\n\nQ?", ("a",), "en"),
        ("文\n\n问", ("答",), "zh"),
    ]
    assert len({r.group for r in records}) == 1


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"text": "Where is my card?", "category": "card"}, "card"),
        ({"TEXT": "你好", "label": 0, "topic": "x"}, "0"),
        ({"tweet": "hm", "class": 2.0}, "2"),
        (["Where is my card?", "card"], "card"),
    ],
)
def test_classification_tables_become_labels(row, label):
    _, (record,) = convert(row)
    assert isinstance(record, Label) and record.label == record.response.text == record.prompt.label == label


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": "  "}, "empty field: 'output'"),
        ({"instruction": None, "output": "x"}, "empty field: 'instruction'"),
        ({"instruction": "a", "output": "x", "input": 3}, "wrong type: 'input'"),
        ({"messages": [QA[0], {"role": "assistant", "content": ""}]}, "empty answer: message 2"),
        ({"messages": [QA[0], {"role": "assistant"}]}, "missing field: 'content'"),
        ({"messages": [QA[0], {"role": "assistant", "content": 5}]}, "wrong type: the content"),
        ({"messages": [QA[0], "hi"]}, "wrong type: a message|no assistant"),
        ({"messages": [QA[0], {"role": "assistant", "content": [{"type": "image_url"}]}]}, "not text"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role"),
        ({"conversations": [{"from": "human", "value": None}]}, "wrong type: 'value'"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[{"},
            "broken inner JSON: 'tools'",
        ),
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "same answer"),
        ({"prompt": "a", "chosen": "x", "rejected": None}, "missing field: 'rejected'"),
        ({"prompt": "a", "chosen": "x", "rejected": ""}, "empty field: 'rejected'"),
        ({"prompt": [QA[1]], "chosen": "x", "rejected": "y"}, "wrong turn"),
        ({"prompt": "q", "completion_a": "x", "completion_b": "y", "preference": "c"}, "unknown verdict"),
        ({"Question": "q", "A": "1", "B": "2", "Answer": "Q"}, "unknown answer"),
        ({"text": "x", "label": ""}, "empty field: 'label'"),
        ({"text": [1, 2], "score": [1.0, 0.0]}, "wrong type: 'chosen'"),
        ({"text": ["a"], "score": "x"}, "wrong type: 'score'"),
        ({"chat": {"turn_1": {"Human": "q"}}}, "missing field: 'MOSS'"),
    ],
)
def test_a_faulty_row_says_what_is_wrong(row, reason):
    try:
        _, records = convert(row)
        faults = [str(each) for each in records if isinstance(each, RowError)]
        assert len(faults) == len(records) == 1
        fault = faults[0]
    except RowError as error:
        fault = str(error)
    assert re.match(reason, fault), fault


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", "user", "assistant", "[{", '[{"role": "user"}]']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "text",
                    "message",
                    "name",
                    "function",
                    "input",
                    "output",
                    "speaker",
                    "replies",
                    "rank",
                    "Human",
                    "MOSS",
                    "turns",
                    "question",
                    "answers",
                    "type",
                    "context",
                    "qas",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("fmt", formats.ALL, ids=lambda fmt: fmt.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_row_whatever_its_content_raises_anything_but_row_error(fmt, data):
    fields = [
        "instruction",
        "input",
        "output",
        "messages",
        "conversations",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "label",
        "text",
        "score",
        "tools",
        "question",
        "answer",
        "context",
        "qas",
        "paragraphs",
        "chat",
        "dialog",
        "utterances",
        "instances",
        "responses",
        "turns",
        "choices",
        "options",
        "annotator1",
        "response1",
        "response2",
        "preference",
        "completion_a",
        "completion_b",
        "prediction 1",
        "prediction 2",
        "generation",
        "reward",
        "output_1",
        "output_2",
        "chosen_messages",
        "rejected_messages",
        "history",
        "system",
        "weight",
        "passages",
        "summary",
        "target",
        "A",
        "B",
    ]
    row = data.draw(st.dictionaries(st.sampled_from(fields), junk, max_size=8))
    formats.detect(row)
    try:
        found = formats.convert(row, fmt, Context(source="x"), strict=True)
    except RowError:
        return
    assert all(isinstance(each, (Example, Preference, Label, Prompt, RowError)) for each in found)


def test_a_dotted_path_leads_into_lists_and_objects():
    assert dotted({"a": [{"b": 1}]}, "a.0.b") == 1 and dotted({"a.b": 2}, "a.b") == 2
    assert dotted({"a": [1]}, "a.5") is None and dotted({"a": 1}, "a.b") is None


def test_kinds_are_turned_where_the_content_allows_it():
    asked = Prompt(messages=(Message(role="user", text="q"),))
    good, bad = Response(prompt_id=asked.id, text="g"), Response(prompt_id=asked.id, text="b")
    pair = Preference(prompt=asked, chosen=good, rejected=bad, rejected_unsafe=True)
    assert [(l.response.text, l.desirable, l.unsafe) for l in as_kind(pair, "labels")] == [
        ("g", True, None),
        ("b", False, True),
    ]
    assert as_kind(pair, "prompts")[0].references == ("g",)
    maths = Example(messages=(Message(role="user", text="1+1?"), Message(role="assistant", text="It is 2.\n#### 2")))
    assert (as_kind(maths, "prompts")[0].label, as_kind(maths, "prompts")[0].references) == ("2", ("It is 2.\n#### 2",))
    with pytest.raises(RowError, match="no reference"):
        as_kind(asked, "examples")
    with pytest.raises(RowError, match="undesirable"):
        as_kind(as_kind(pair, "labels")[1], "examples")
    with pytest.raises(UserError, match='did you mean "examples"'):
        as_kind(pair, "exampels")


# Writers: what is written is read back


word = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12)
sentence = st.lists(word, min_size=1, max_size=4).map(" ".join)
CALL = {"name": "add", "arguments": {"a": 1}}


@st.composite
def example_records(draw, rich=True):
    turns = [Message(role="system", text=draw(sentence))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message(role="user", text=draw(sentence)))
        if rich and draw(st.booleans()):
            turns += [Message(role="assistant", text="", tool_calls=(CALL,)), Message(role="tool", text=draw(sentence))]
        turns.append(Message(role="assistant", text=draw(sentence)))
    return Example(messages=tuple(turns), tools=({"name": "add"},) if rich and draw(st.booleans()) else ())


@st.composite
def pair_records(draw, system=True):
    turns = [Message(role="system", text=draw(sentence))] if system and draw(st.booleans()) else []
    turns += [Message(role="user", text=draw(sentence))]
    if draw(st.booleans()):
        turns += [Message(role="assistant", text=draw(sentence)), Message(role="user", text=draw(sentence))]
    asked = Prompt(messages=tuple(turns))
    a, b = draw(st.lists(sentence, min_size=2, max_size=2, unique=True))
    return Preference(
        prompt=asked,
        chosen=Response(prompt_id=asked.id, text=a),
        rejected=Response(prompt_id=asked.id, text=b),
        strength=draw(st.sampled_from([1.0, 2.5])),
        soft_label=draw(st.sampled_from([1.0, 0.75])),
        rejected_unsafe=draw(st.sampled_from([None, True, False])),
        reason=draw(st.sampled_from([None, "shorter"])),
    )


def label_of(pair):
    return Label(prompt=pair.prompt, response=pair.chosen, desirable=pair.soft_label == 1.0)


def essence(record):
    """What a foreign format must hold: the words, the tools and the verdicts."""
    if isinstance(record, Example):
        return record.messages, record.tools
    if isinstance(record, Preference):
        return (
            record.prompt.messages,
            record.chosen.text,
            record.rejected.text,
            record.strength,
            record.soft_label,
            record.rejected_unsafe,
            record.reason,
        )
    if isinstance(record, Label):
        return record.prompt.messages, record.response.text, record.desirable, record.label
    return record.messages, record.references, record.label


ROUND_TRIPS = [
    ("openai", ".jsonl", example_records()),
    ("openai", ".json", example_records()),
    ("sharegpt", ".jsonl", example_records()),
    ("alpaca", ".jsonl", example_records(rich=False)),
    ("trl", ".jsonl", example_records()),
    ("csv", ".csv", example_records()),
    ("csv", ".tsv", example_records()),
    ("parquet", ".parquet", example_records()),
    ("native", ".jsonl", example_records()),
    ("trl", ".jsonl", pair_records()),
    ("sharegpt", ".json", pair_records()),
    ("hh", ".jsonl", pair_records(system=False)),
    ("csv", ".csv", pair_records()),
    ("parquet", ".parquet", pair_records()),
    ("native", ".jsonl", pair_records()),
    ("kto", ".jsonl", pair_records().map(label_of)),
    ("csv", ".csv", pair_records().map(label_of)),
    ("parquet", ".parquet", pair_records().map(label_of)),
    ("native", ".jsonl", pair_records().map(label_of)),
    ("openai", ".jsonl", pair_records().map(lambda p: p.prompt)),
    ("csv", ".csv", pair_records().map(lambda p: p.prompt)),
    ("parquet", ".parquet", pair_records().map(lambda p: p.prompt)),
]


@pytest.mark.parametrize(("format", "ending", "records"), ROUND_TRIPS)
def test_what_is_written_is_read_back(tmp_path_factory, format, ending, records):
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(records, min_size=1, max_size=4))
    def check(made):
        path = tmp_path_factory.mktemp("write") / f"x{ending}"
        assert write_records(path, made, format=format) == len(made)
        found = list(Reading([path]))
        assert not [each for each in found if isinstance(each, Quarantined)]
        assert [essence(each) for each in found] == [essence(each) for each in made]
        if format == "native":
            assert found == made

    check()


def test_a_record_that_the_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    plain = Example(messages=(Message(role="user", text="q"), Message(role="assistant", text="a")))
    called = Example(messages=(Message(role="user", text="q"), Message(role="assistant", text="", tool_calls=(CALL,))))
    with pytest.raises(UserError, match=r"record 2 cannot be written as alpaca"):
        write_records(tmp_path / "x.jsonl", [plain, called], format="alpaca")
    with pytest.raises(UserError, match="ending '.csv'"):
        write_records(tmp_path / "x.csv", [plain], format="openai")
    with pytest.raises(UserError, match='did you mean "openai"'):
        write_records(tmp_path / "x.jsonl", [plain], format="opnai")
    with pytest.raises(UserError, match="no records"):
        write_records(tmp_path / "x.jsonl", [])
    assert list(tmp_path.iterdir()) == [] and set(ROW_OF) >= {
        "openai",
        "alpaca",
        "sharegpt",
        "trl",
        "kto",
        "hh",
        "csv",
        "parquet",
    }


def test_the_page_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for fmt in formats.ALL:
        about = fmt.about.replace("|", "\\|")
        assert f"| `{fmt.name}` | {fmt.kind} | {about} |" in page
