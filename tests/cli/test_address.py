"""respond and chat with an OpenAI-compatible address in place of a model, from the command line."""

import io
import json
import sys

import pytest
from calling import call
from openai_stub import DONE, Reply, answer, error, event, serving

from tutelage.commands.engines import read_answers

KEY = "sk-secret-1234"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Keyboard(io.StringIO):
    """Lines that a person types."""

    def isatty(self) -> bool:
        return True


def echo(body, number):
    return answer(f"to {body['messages'][-1]['content']}", finish="length" if number == 0 else "stop")


def test_respond_writes_the_answers_of_an_address_as_it_does_those_of_a_model(workspace):
    with serving(echo) as stub:
        done = call("respond", f"{stub.address}#tiny", "--prompt", "one", "--prompt", "two", "-n", "2", "--temperature", "1",
                    "--seed", "3", "--out", "answers.jsonl", "--json")
        assert done.code == 0, done.err
        policy = f"tiny@{stub.address.removeprefix('http://').removesuffix('/v1')}"
    assert done.json == {"model": f"{stub.address}#tiny", "prompts": 2, "responses": 4, "path": "answers.jsonl"}
    rows = [json.loads(line) for line in (workspace / "answers.jsonl").read_text().splitlines()]
    assert [(row["text"], row.get("index", 0), row["policy"]) for row in rows] == [
        ("to one", 0, policy), ("to one", 1, policy), ("to two", 0, policy), ("to two", 1, policy)]
    assert [row.get("finish", "stop") for row in rows].count("length") == 1
    assert len(read_answers(workspace / "answers.jsonl")[0]) == 2
    assert KEY not in (workspace / "answers.jsonl").read_text() + done.out + done.err


def test_respond_says_how_many_answers_a_filter_held_back(workspace):
    with serving(lambda body, number: answer("", finish="content_filter")) as stub:
        done = call("respond", f"{stub.address}#tiny", "--prompt", "one", "--out", "answers.jsonl")
    assert done.code == 0 and "1 prompts have no answer: " in done.out and "its filter held the answer back" in done.out


def test_an_unknown_model_and_a_refused_key_end_the_command_with_what_to_do(workspace):
    with serving(lambda body, number: error(404, "no such model")) as stub:
        done = call("respond", f"{stub.address}#tinny", "--prompt", "one")
    assert done.code == 2 and "it lists tiny, large" in done.err
    with serving(lambda body, number: error(401, "wrong key")) as stub:
        monkey = call("respond", f"{stub.address}#tiny", "--prompt", "one")
    assert monkey.code == 2 and "set OPENAI_API_KEY" in monkey.err and KEY not in monkey.err


def stream_of(*words: str, finish: str = "stop", **more) -> Reply:
    return Reply(chunks=(*(event({"content": word}) for word in words), event({}, finish=finish), event(usage={}), DONE), **more)


def test_chat_streams_from_an_address_and_remembers(workspace, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAgain\n/quit\n"))
    with serving(lambda body, number: stream_of("Hi ", "there")) as stub:
        done = call("chat", f"{stub.address}#tiny", "--system", "Be kind.")
    assert done.code == 0 and done.out.count("Hi there") == 2
    assert [(turn["role"], turn["content"]) for turn in stub.bodies[1]["messages"]] == [
        ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi there"), ("user", "Again")]
    assert stub.bodies[0]["seed"] != stub.bodies[1]["seed"]


def test_a_person_goes_on_after_an_answer_that_broke_and_a_pipe_does_not(workspace, monkeypatch):
    script = lambda body, number: Reply(chunks=(event({"content": "Hi"}),), cut=True) if number == 0 else stream_of("fine")
    monkeypatch.setattr(sys, "stdin", Keyboard("Hello\nAgain\n"))
    with serving(script) as stub:
        done = call("chat", f"{stub.address}#tiny")
    assert done.code == 0 and "this turn is forgotten" in done.out and "fine" in done.out
    assert len(stub.bodies[1]["messages"]) == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAgain\n"))
    with serving(script) as stub:
        done = call("chat", f"{stub.address}#tiny")
    assert done.code == 2 and "in the middle" in done.err and len(stub.bodies) == 1
