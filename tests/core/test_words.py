"""The nouns check themselves once, and come back from JSON as they went."""

import dataclasses
import json
import unicodedata

import pytest

from tutelage.core.words import (
    Checkpoint,
    Example,
    Judgement,
    Label,
    Message,
    Preference,
    Prompt,
    Response,
    Sampling,
    Span,
    prompt_id,
)

ASK = Message(role="user", text="Où est le café?")
PROMPT = Prompt(messages=(ASK,), tags=("lang:fr", "task:qa"), references=("Là.",), source="x@1")
GOOD = Response(prompt_id=PROMPT.id, text="Là.", token_ids=(1, 2), logps=(-0.5, -0.25), policy="p/1", sampling=Sampling(seed=3))
BAD = Response(prompt_id=PROMPT.id, text="Non.", index=1, finish="length")
JUDGEMENT = Judgement(judge="human:ann-07", kind="pair", responses=(GOOD.id, BAD.id), values=(2, 0), at="2026-01-01T00:00:00Z",
                      spans=(Span(response=GOOD.id, start=0, end=2, label="fact"),), flags=("both-bad",))
RECORDS = [
    ASK,
    Message(role="assistant", text="", name="bob", tool_calls=({"name": "f", "arguments": {"a": [1]}},), weight=0.0),
    PROMPT,
    Prompt(messages=(ASK,), tools=({"name": "f"},), group="family"),
    Example(messages=(ASK, Message(role="assistant", text="Là.")), author="author:starter"),
    Sampling(n=4, stop=("\n",), top_p=0.9),
    GOOD,
    BAD,
    JUDGEMENT,
    Preference(prompt=PROMPT, chosen=GOOD, rejected=BAD, soft_label=0.8, judgements=(JUDGEMENT.id,), chosen_unsafe=False),
    Label(prompt=PROMPT, response=BAD, unsafe=True, weight=0.5),
    Checkpoint(id="ppo-0007/000400", role="policy", base="test", path="runs/x", sha256="0" * 64, parents=("sft/1",)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_noun_survives_json(record):
    row = json.loads(json.dumps(record.to_dict(), ensure_ascii=False))
    again = type(record).from_dict(row)
    assert again == record and again.to_dict() == row
    assert hash(type(record)) and not hasattr(record, "__dict__")  # slotted


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_noun_is_frozen_and_keyword_only(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, "x")
    with pytest.raises(TypeError):
        type(record)(*[getattr(record, item.name) for item in dataclasses.fields(record)])


def test_defaults_are_left_out_of_json():
    assert ASK.to_dict() == {"role": "user", "text": "Où est le café?"}
    assert Sampling().to_dict() == {}


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"Message: unknown field\(s\) \['rolle'\]; known: .*'role'"):
        Message.from_dict({"rolle": "user", "text": "x"})
    with pytest.raises(ValueError, match=r"Message: missing field\(s\) \['text'\]"):
        Message.from_dict({"role": "user"})


@pytest.mark.parametrize("make, said", [
    (lambda: Message(role="bot", text="x"), "role must be one of system, user, assistant, tool; got 'bot'"),
    (lambda: Message(role="user", text=None), "text must be a string; got NoneType"),
    (lambda: Message(role="user", text="x", weight=-1), "weight must be >= 0; got -1"),
    (lambda: Prompt(messages=()), "at least one message; got none"),
    (lambda: Prompt(messages=(Message(role="assistant", text="x"),)), "ends with a turn to answer .* it ends with 'assistant'"),
    (lambda: Example(messages=(ASK,)), "at least one assistant message; it has none"),
    (lambda: Example(messages=(ASK, Message(role="assistant", text=" \n"))), "with text and a weight above 0"),
    (lambda: Example(messages=(ASK, Message(role="assistant", text="x", weight=0))), "with text and a weight above 0"),
    (lambda: Sampling(n=0), "n must be >= 1; got 0"),
    (lambda: Sampling(max_tokens=0), "max_tokens must be >= 1; got 0"),
    (lambda: Sampling(temperature=-0.1), "temperature must be >= 0"),
    (lambda: Sampling(top_p=0), r"top_p must be in \(0, 1\]; got 0"),
    (lambda: Sampling(top_p=1.1), r"top_p must be in \(0, 1\]; got 1.1"),
    (lambda: Sampling(top_k=-1), "top_k must be >= 0"),
    (lambda: Response(prompt_id="p", text="x", finish="done"), "finish must be one of stop, length, error; got 'done'"),
    (lambda: Response(prompt_id="p", text="x", id="r7", token_ids=(1, 2), logps=(0.1,)), "response r7: 2 tokens but 1 logps"),
    (lambda: Judgement(judge="", kind="label", responses=("r",)), "needs a judge id"),
    (lambda: Judgement(judge="j", kind="vote", responses=("r",)), "kind must be one of pair, rank, .*; got 'vote'"),
    (lambda: Judgement(judge="j", kind="label", responses=()), "at least one response"),
    (lambda: Judgement(judge="j", kind="rating", responses=("r", "s"), values=(1,)), "2 responses but 1 values"),
    (lambda: Judgement(judge="j", kind="pair", responses=("r",), values=(1,)), "two responses; got 1"),
    (lambda: Judgement(judge="j", kind="pair", responses=("r", "s"), values=(4, 0)), "the better one 1..3"),
    (lambda: Judgement(judge="j", kind="pair", responses=("r", "s"), values=(2, 1)), "the other 0"),
    (lambda: Preference(prompt=PROMPT, chosen=GOOD, rejected=BAD, soft_label=1.2), r"probability in \[0, 1\]; got 1.2"),
    (lambda: Preference(prompt=PROMPT, chosen=GOOD, rejected=BAD, weight=-1), "weight must be >= 0"),
    (lambda: Preference(prompt=PROMPT, chosen=GOOD, rejected=Response(prompt_id="other", text="x")), "must answer the prompt"),
    (lambda: Checkpoint(id="x", role="critic", base="b", path="p", sha256="0"), "unknown checkpoint role 'critic'"),
])
def test_a_record_says_what_came_and_what_was_wanted(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_tie_is_a_pair_judgement():
    assert Judgement(judge="j", kind="pair", responses=("r", "s"), values=(0, 0)).values == (0, 0)


def test_the_same_question_has_the_same_id_however_it_is_typed():
    composed, decomposed = (unicodedata.normalize(form, ASK.text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    ids = {Prompt(messages=(Message(role="user", text=text),)).id for text in (composed, decomposed)}
    assert ids == {PROMPT.id} and len(PROMPT.id) == 64
    # what is said of a question does not change which question it is
    assert Prompt(messages=(Message(role="user", text=composed, weight=0.5),), tags=("x:y",), source="z").id == PROMPT.id


@pytest.mark.parametrize("other", [
    Prompt(messages=(Message(role="user", text="Où est le café ?"),)),
    Prompt(messages=(Message(role="system", text=""), ASK)),
    Prompt(messages=(Message(role="tool", text=ASK.text),)),
    Prompt(messages=(Message(role="user", text=ASK.text, name="bob"),)),
    Prompt(messages=(ASK,), tools=({"name": "f"},)),
])
def test_another_question_has_another_id(other):
    assert other.id != PROMPT.id


def test_the_known_id_does_not_change_between_versions():
    """Ids stand in every snapshot and judgement on disk."""
    canonical = '{"messages":[{"name":null,"role":"user","text":"hi","tool_calls":[]}],"tools":[]}'
    import_free = __import__("hashlib").sha256(canonical.encode()).hexdigest()
    assert prompt_id((Message(role="user", text="hi"),)) == import_free


def test_groups_default_to_the_question():
    assert PROMPT.group == PROMPT.id and Prompt(messages=(ASK,), group="g").group == "g"
    first = Example(messages=(ASK, Message(role="assistant", text="Là.")))
    second = Example(messages=(ASK, Message(role="assistant", text="Ici.")))
    assert first.group == second.group == prompt_id((ASK,))  # two answers to one question never part in a split
    assert Preference(prompt=PROMPT, chosen=GOOD, rejected=BAD).group == PROMPT.group
    assert Label(prompt=PROMPT, response=BAD).group == PROMPT.group


def test_response_ids_tell_apart_what_differs():
    base = {"prompt_id": "p", "text": "x"}
    others = [{"index": 1}, {"policy": "q"}, {"text": "y"}, {"sampling": Sampling(seed=1)}, {"prompt_id": "q"}]
    assert len({Response(**{**base, **other}).id for other in [{}, *others]}) == 6
    assert Response(**base).id == Response(**base).id


def test_judgement_ids_tell_apart_what_differs():
    base = {"judge": "j", "kind": "pair", "responses": ("r", "s"), "values": (1, 0)}
    others = [{"judge": "k"}, {"responses": ("s", "r")}, {"values": (2, 0)}, {"rubric": "safe@1"}, {"at": "2026"},
              {"follows": "x"}]
    assert len({Judgement(**{**base, **other}).id for other in [{}, *others]}) == 7


def test_tags_and_truncation():
    assert PROMPT.tag("task") == "qa" and PROMPT.tag("tas") is None
    assert Prompt(messages=(ASK,), tags=("labels:a|b:c",)).tag("labels") == "a|b:c"
    assert BAD.is_truncated() and not GOOD.is_truncated()
