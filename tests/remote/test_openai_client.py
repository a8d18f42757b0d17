"""An address as an engine, against a server of our own on this machine that does what each test needs."""

import email.utils
import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from openai_stub import DONE, Reply, answer, error, event, serving

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Sampling
from tutelage.remote.address import read_address
from tutelage.remote.openai_client import OpenAIEngine, seed_of, to_messages
from tutelage.remote.wire import Patience, events, lines

KEY = "sk-secret-1234"


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(text: str = "hi") -> Prompt:
    return Prompt(messages=(Message(role="user", text=text),))


def engine_at(stub, model: str = "tiny", **options) -> OpenAIEngine:
    """Its pauses are written down in `engine.pauses`, and not waited for."""
    pauses: list[float] = []
    engine = OpenAIEngine(f"{stub.address}#{model}", sleep=pauses.append, **options)
    engine.pauses = pauses
    return engine


def one(engine: OpenAIEngine, sampling: Sampling | None = None, prompt: Prompt | None = None):
    (response,) = engine.respond([(prompt or ask(), sampling or Sampling())])
    return response


def streamed(engine: OpenAIEngine, prompt: Prompt | None = None):
    """The pieces of a stream, and the Response at its end."""
    pieces, stream = [], engine.stream(prompt or ask(), Sampling())
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


# -- what is asked -------------------------------------------------------------------------------------------------


def test_a_request_holds_what_the_sampling_says_and_nothing_that_it_does_not():
    with serving() as stub:
        engine = engine_at(stub)
        one(engine, Sampling(max_tokens=7, temperature=0.5))
        one(engine, Sampling(top_p=0.9, top_k=5, stop=("END",)))
        one(engine, prompt=Prompt(messages=(Message(role="system", text="Be kind."), Message(role="user", text="hi"))))
    plain, full, system = stub.bodies
    assert set(plain) == {"model", "messages", "max_tokens", "temperature", "seed"}
    assert (plain["model"], plain["max_tokens"], plain["temperature"]) == ("tiny", 7, 0.5)
    assert (full["top_p"], full["top_k"], full["stop"]) == (0.9, 5, ["END"])
    assert system["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]


def test_each_of_n_answers_has_its_own_request_and_a_seed_of_seed_prompt_index_and_step_alone():
    with serving() as stub:
        engine = engine_at(stub)
        found = list(engine.respond([(ask("a"), Sampling(n=3, seed=4)), (ask("b"), Sampling(seed=4))]))
        alone = one(engine, Sampling(n=1, seed=4), ask("a"))
    assert sorted(response.index for response in found if response.prompt_id == ask("a").id) == [0, 1, 2]
    seeds = {(body["messages"][0]["content"], body["seed"]) for body in stub.bodies[:4]}
    assert len(seeds) == 4 and len({seed for _, seed in seeds}) == 4
    assert ("a", stub.bodies[4]["seed"]) in seeds and alone.index == 0  # whatever else rode along
    base = seed_of(Sampling(seed=4), "p", 0)
    others = [seed_of(Sampling(seed=5), "p", 0), seed_of(Sampling(seed=4, step=1), "p", 0), seed_of(Sampling(seed=4), "q", 0)]
    assert base not in others and all(0 <= seed < 2**31 for seed in (base, *others))


def test_tool_calls_and_their_answers_are_tied_by_ids():
    calls = ({"name": "add", "arguments": {"b": 2, "a": 1}}, {"name": "now", "arguments": "{}"})
    rows = to_messages([Message(role="assistant", text="", tool_calls=calls), Message(role="tool", text="3", name="add"),
                        Message(role="tool", text="noon", name="now")])
    first, second = rows[0]["tool_calls"]
    assert first == {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}
    assert [row["tool_call_id"] for row in rows[1:]] == [first["id"], second["id"]]


def test_a_server_that_refuses_max_tokens_gets_max_completion_tokens_from_then_on():
    says = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    script = lambda body, number: error(400, says, param="max_tokens") if "max_tokens" in body else answer()
    with serving(script) as stub:
        engine = engine_at(stub)
        assert one(engine, Sampling(max_tokens=9)).text == one(engine, Sampling(max_tokens=9)).text == "hello"
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in stub.bodies] == [
        (True, None), (False, 9), (False, 9)]


def test_a_server_that_refuses_seed_is_asked_without():
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"]}]
    script = lambda body, number: Reply(status=422, body={"detail": detail}) if "seed" in body else answer()
    with serving(script) as stub:
        engine = engine_at(stub)
        assert one(engine).text == one(engine).text == "hello"
    assert ["seed" in body for body in stub.bodies] == [True, False, False]


# -- what comes back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs, ours", [
    ("stop", "stop"), ("length", "length"), ("content_filter", "error"), ("tool_calls", "stop"), ("abort", "error"), (None, "error"),
])
def test_how_an_answer_ended_is_told_in_our_words(theirs, ours):
    with serving(lambda body, number: answer("so far", finish=theirs)) as stub:
        engine = engine_at(stub)
        response = one(engine, Sampling(max_tokens=3))
    assert (response.finish, response.text) == (ours, "so far")
    assert response.policy == engine.policy == f"tiny@{read_address(stub.address).host}"
    assert response.prompt_id == ask().id and response.sampling.max_tokens == 3
    assert response.token_ids is None and response.logps is None


@pytest.mark.parametrize("reply, text", [
    (answer("one END two"), "one "),  # some servers leave the stop string in
    (answer(None), ""),
    (answer("half \ud83d pair, whole \ud83d\ude00"), "half \ufffd pair, whole \U0001f600"),  # a hash takes no half
    (answer(None, refusal="I will not."), "I will not."),
    (answer([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
    (answer(None, tool_calls=[{"id": "x", "function": {"name": "now", "arguments": "{}"}}]), '[{"arguments":"{}","name":"now"}]'),
])
def test_the_text_of_an_answer(reply, text):
    with serving(lambda body, number: reply) as stub:
        assert one(engine_at(stub), Sampling(stop=("END",))).text == text


def test_answers_come_as_they_finish_and_say_whose_they_are():
    seen = threading.Event()

    def script(body, number):
        asked = body["messages"][0]["content"]
        if asked == "slow":
            assert seen.wait(5)
        return answer(f"to {asked}")

    with serving(script) as stub:
        came = []
        for response in engine_at(stub, at_once=2).respond([(ask(text), Sampling()) for text in ("slow", "fast", "faster")]):
            came.append((response.prompt_id, response.text))
            if len(came) == 2:
                seen.set()
    assert came[2] == (ask("slow").id, "to slow")
    assert set(came) == {(ask(text).id, f"to {text}") for text in ("slow", "fast", "faster")}


def test_as_many_requests_as_allowed_are_under_way_and_never_more():
    three = threading.Barrier(3, timeout=5)  # breaks unless three come at once

    def script(body, number):
        three.wait()
        return answer()

    with serving(script) as stub:
        assert len(list(engine_at(stub, at_once=3).respond([(ask(str(n)), Sampling(n=2)) for n in range(6)]))) == 12
    assert stub.most == 3


def test_prompts_are_read_as_room_comes_free():
    read = []

    def prompts():
        for number in range(100):
            read.append(number)
            yield ask(str(number)), Sampling()

    with serving() as stub:
        answers = engine_at(stub, at_once=2).respond(prompts())
        next(answers)
        assert len(read) <= 5
        answers.close()


def test_an_error_ends_the_asking():
    with serving(lambda body, number: error(401, "no")) as stub:
        with pytest.raises(UserError, match="401"):
            list(engine_at(stub, at_once=2).respond([(ask(str(n)), Sampling()) for n in range(50)]))
    assert len(stub.bodies) <= 6


@pytest.mark.parametrize("reply", [
    error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", code="context_length_exceeded"),
    error(400, "the request exceeds the available context size", type="exceed_context_size_error", code=400),
    error(400, "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 4 tokens"),
    error(400, "The response was filtered", code="content_filter"),
])
def test_a_prompt_that_is_too_long_or_filtered_is_an_answer_with_an_error_and_stops_nobody(reply):
    with serving(lambda body, number: reply if body["messages"][0]["content"] == "bad" else answer()) as stub:
        engine = engine_at(stub)
        found = {r.prompt_id: r for r in engine.respond([(ask("bad"), Sampling()), (ask("good"), Sampling())])}
        assert streamed(engine, ask("bad"))[1].finish == "error"
    assert (found[ask("bad").id].finish, found[ask("bad").id].text) == ("error", "")
    assert found[ask("good").id].finish == "stop"
    assert all("max_tokens" in body for body in stub.bodies)


# -- tries and waits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again_with_pauses_that_double(status):
    with serving(lambda body, number: error(status, "busy") if number < 3 else answer()) as stub:
        engine = engine_at(stub)
        assert one(engine).text == "hello"
    assert len(stub.bodies) == 4 and len({str(body) for body in stub.bodies}) == 1
    first, second, third = engine.pauses
    assert 0.5 <= first <= 0.75 and second == 2 * first and third == 4 * first


def test_the_pause_that_the_server_asks_for_is_kept():
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    asked = [{"retry-after": "7"}, {"retry-after-ms": "1500", "retry-after": "9"}, {"retry-after": date}, {"retry-after": "soon"}]
    with serving(lambda body, number: error(429, "slow down", headers=asked[number]) if number < 4 else answer()) as stub:
        engine = engine_at(stub)
        assert one(engine).text == "hello"
    assert engine.pauses[:2] == [7.0, 1.5]
    assert 20 < engine.pauses[2] <= 30 and 4 <= engine.pauses[3] <= 6  # a date; nonsense: our own fourth pause


def test_a_wait_that_is_too_long_a_used_up_quota_and_a_plain_refusal_are_not_waited_for():
    for reply, told in [
        (error(429, "daily limit", headers={"retry-after": "3600"}), "asks to wait 3600 s"),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), "exceeded your current quota"),
        (error(400, "temperature must be 1"), r"refused \(400\): temperature must be 1"),
    ]:
        with serving(lambda body, number, reply=reply: reply) as stub:
            engine = engine_at(stub)
            with pytest.raises(UserError, match=told):
                one(engine)
        assert len(stub.bodies) == 1 and engine.pauses == []


def test_it_gives_up_and_says_after_how_many_tries():
    with serving(lambda body, number: error(503, "loading")) as stub:
        with pytest.raises(UserError, match=r"503\): loading; gave up after 3 tries"):
            one(engine_at(stub, patience=Patience(retries=2)))
    assert len(stub.bodies) == 3


def test_a_server_that_does_not_answer_in_time_is_asked_again():
    late = threading.Event()

    def script(body, number):
        if number == 0:
            late.wait(5)
        return answer()

    with serving(script) as stub:
        engine = engine_at(stub, patience=Patience(timeout=0.2))
        assert one(engine).text == "hello"
        late.set()
    assert len(engine.pauses) == 1


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_tried_again():
    with serving(lambda body, number: replace(answer(), cut=number == 0)) as stub:
        engine = engine_at(stub)
        assert one(engine).text == "hello"
    assert len(stub.bodies) == 2 and len(engine.pauses) == 1


# -- errors that say what to do ------------------------------------------------------------------------------------


def test_an_address_that_cannot_be_reached_is_told_at_once():
    with serving() as stub:
        engine = engine_at(stub)
    with pytest.raises(UserError, match="cannot reach http://127.0.0.1:.*is the server running"):
        one(engine)  # the server has gone
    assert engine.pauses == []


def test_a_server_that_goes_away_is_waited_for_before_it_is_given_up():
    with serving(lambda body, number: replace(answer(), headers={"connection": "close"})) as stub:
        engine = engine_at(stub, patience=Patience(retries=2))
        one(engine)
    with pytest.raises(UserError, match="gave up after 3 tries"):
        one(engine)
    assert len(engine.pauses) == 2


def test_an_unknown_model_is_answered_with_the_models_that_there_are():
    with serving(lambda body, number: error(404, "The model does not exist", code="model_not_found")) as stub:
        with pytest.raises(UserError, match="no model 'tinny'; it lists tiny, large"):
            one(engine_at(stub, "tinny"))
        with pytest.raises(UserError, match="no model 'tinny'"):
            streamed(engine_at(stub, "tinny"))


def test_a_wrong_path_is_told_from_an_unknown_model():
    with serving() as stub:
        engine = OpenAIEngine(stub.address.removesuffix("/v1") + "#tiny")
        with pytest.raises(UserError, match="refused.*404.*It usually ends in /v1"):
            one(engine)
        with pytest.raises(UserError, match="lists 0 models; say which one"):
            OpenAIEngine(stub.address.removesuffix("/v1"))


def test_without_a_name_the_only_model_is_taken_and_several_are_listed():
    with serving(models=Reply(body={"data": [{"id": "only"}]})) as stub:
        assert OpenAIEngine(stub.address).model == "only"
    with serving() as stub:
        with pytest.raises(UserError, match="lists 2 models: tiny, large; say which one"):
            OpenAIEngine(stub.address)


@pytest.mark.parametrize("reply, told", [
    (Reply(body="<html>Welcome</html>"), "no JSON object: '<html>Welcome</html>'; is it the address of an OpenAI-compatible API"),
    (Reply(body={"text": "hi"}), r"without choices \(its fields: text\)"),
    (Reply(body={"choices": []}), "without choices"),
    (Reply(body={"error": {"message": "upstream is down", "code": 502}}), "broke off its answer: upstream is down"),
    (Reply(status=307, headers={"location": "http://127.0.0.1:1/v1"}), "has moved to http://127.0.0.1:1/v1"),
    (Reply(status=418, body="short and stout"), "418.: short and stout"),
])
def test_what_is_no_chat_completion_is_told(reply, told):
    with serving(lambda body, number: reply) as stub:
        with pytest.raises(UserError, match=told):
            one(engine_at(stub))


def test_an_address_gives_no_log_probs_of_given_texts():
    with serving() as stub:
        with pytest.raises(UserError, match="no log-probs of given texts"):
            engine_at(stub).score([(ask(), "yes")])


@pytest.mark.parametrize("address, told", [
    ("localhost:8000", "is no address"), ("http://", "is no address"), ("http://host:port/v1", "cannot be read"),
    (f"http://me:{KEY}@host/v1#m", "may not hold a password"), (f"http://host/v1?api_key={KEY}#m", "may not hold a password"),
])
def test_a_wrong_address_is_told_and_a_password_in_it_is_not_repeated(address, told):
    with pytest.raises(UserError, match=told) as caught:
        OpenAIEngine(address)
    assert KEY not in str(caught.value)


# -- the key -------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_argument_or_the_environment_and_none_is_sent_without(monkeypatch):
    with serving() as stub:
        one(engine_at(stub))
        monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
        one(engine_at(stub))
        one(engine_at(stub, key=KEY))
        one(engine_at(stub, key=""))
    assert [headers.get("authorization") for headers in stub.headers] == [
        None, "Bearer from-the-environment", f"Bearer {KEY}", None]


def test_a_refused_key_says_what_to_set():
    for status in (401, 403):
        with serving(lambda body, number, status=status: error(status, "Incorrect API key")) as stub:
            with pytest.raises(UserError, match=rf"wants an API key \({status}.*set OPENAI_API_KEY"):
                one(engine_at(stub))
            with pytest.raises(UserError, match=rf"does not accept the API key \({status}"):
                one(engine_at(stub, key=KEY))
            assert len(stub.bodies) == 2


def test_the_key_stands_in_no_log_no_record_and_no_error_even_where_the_server_repeats_it(caplog):
    caplog.set_level(logging.DEBUG)
    echo = [error(400, f"you said {KEY}"), error(503, f"you said {KEY}"), Reply(body=f"<p>{KEY}</p>"),
            Reply(body={"error": f"bad {KEY}"}), Reply(chunks=(b'data: {"error": {"message": "%s"}}\n\n' % KEY.encode(),))]
    for reply in echo:
        with serving(lambda body, number, reply=reply: reply) as stub:
            engine = engine_at(stub, key=KEY, patience=Patience(retries=1))
            for act in (one, streamed):
                with pytest.raises(UserError) as caught:
                    act(engine)
                assert KEY not in str(caught.value)
            assert KEY not in repr(engine)
    with serving() as stub:
        response = one(engine_at(stub, key=KEY))
    assert KEY not in str(response.to_dict()) and caplog.text and KEY not in caplog.text


def test_a_key_with_a_line_break_or_foreign_letters_is_refused_unseen():
    for key in ("sk-secret\nx: y", "sk secret", "sk-secrét"):
        with pytest.raises(UserError, match="characters that no key has") as caught:
            OpenAIEngine("http://127.0.0.1:9/v1#m", key=key)
        assert "secr" not in str(caught.value)


# -- streams -------------------------------------------------------------------------------------------------------

WHOLE = (
    event({"role": "assistant", "content": ""}), b": keepalive\n\n", event({"content": "Hel"}), b": keepalive\n\n",
    event({"content": "lo\u2028 你"}), event({}, finish="stop"), event(usage={"total_tokens": 3}), DONE,
)


def test_a_stream_gives_the_pieces_as_they_come_and_the_response_at_the_end():
    with serving(lambda body, number: Reply(chunks=WHOLE)) as stub:
        engine = engine_at(stub)
        pieces, response = streamed(engine)
    assert pieces == ["Hel", "lo\u2028 你"]
    assert (response.text, response.finish, response.policy) == ("Hello\u2028 你", "stop", engine.policy)
    assert stub.bodies[0]["stream"] is True


def test_a_piece_is_given_before_the_next_is_there():
    told = threading.Event()

    class Waiting(tuple):
        def __iter__(self):
            yield WHOLE[2]
            assert told.wait(5)
            yield from WHOLE[4:]

    with serving(lambda body, number: Reply(chunks=Waiting())) as stub:
        stream = engine_at(stub).stream(ask(), Sampling())
        assert next(stream) == "Hel"
        told.set()
        assert "".join(stream) == "lo\u2028 你"


def test_a_stream_reads_the_same_however_the_bytes_are_cut():
    data = b"".join(WHOLE).replace(b"\n", b"\r\n")
    whole = list(events(lines([data])))
    for size in (1, 2, 3, 7, 64):
        assert list(events(lines(data[at : at + size] for at in range(0, len(data), size)))) == whole
    assert len(whole) == 6 and whole[-1] == "[DONE]"


@pytest.mark.parametrize("finish, ours", [("stop", "stop"), ("length", "length"), ("content_filter", "error")])
def test_how_a_stream_ended_is_told(finish, ours):
    with serving(lambda body, number: Reply(chunks=(event({"content": "a"}), event({}, finish=finish), DONE))) as stub:
        assert streamed(engine_at(stub))[1].finish == ours


@pytest.mark.parametrize("cut", [True, False])
def test_a_stream_that_breaks_in_the_middle_is_an_error_and_not_asked_again(cut):
    """By a broken connection, or by an end that comes too early."""
    with serving(lambda body, number: Reply(chunks=WHOLE[:3], cut=cut)) as stub:
        engine = engine_at(stub)
        stream = engine.stream(ask(), Sampling())
        assert next(stream) == "Hel"
        with pytest.raises(UserError, match="in the middle.* after 3 characters; ask again"):
            next(stream)
    assert len(stub.bodies) == 1 and engine.pauses == []


def test_a_stream_that_breaks_after_the_finish_is_whole():
    with serving(lambda body, number: Reply(chunks=WHOLE[:6], cut=True)) as stub:
        assert streamed(engine_at(stub))[1].finish == "stop"


def test_an_error_in_a_stream_is_told():
    with serving(lambda body, number: Reply(chunks=(WHOLE[2], b'data: {"error": {"message": "out of memory"}}\n\n'))) as stub:
        stream = engine_at(stub).stream(ask(), Sampling())
        next(stream)
        with pytest.raises(UserError, match="broke off its answer: out of memory"):
            next(stream)


def test_a_stream_is_tried_again_before_it_has_begun():
    with serving(lambda body, number: error(503, "busy") if number == 0 else Reply(chunks=WHOLE)) as stub:
        engine = engine_at(stub)
        assert streamed(engine)[1].finish == "stop"
    assert len(engine.pauses) == 1


def test_a_server_that_does_not_stream_gives_its_answer_in_one_piece():
    with serving() as stub:
        pieces, response = streamed(engine_at(stub))
    assert pieces == ["hello"] and response.finish == "stop"


def test_the_package_loads_no_torch():
    code = "import tutelage.remote.openai_client, sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
