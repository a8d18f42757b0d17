"""Self-instruct with an engine that follows a script."""

import json
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from tutelage.core.errors import UserError
from tutelage.core.words import Example, Message, Response, Sampling
from tutelage.data.expand import expand, parse_instructions, rouge_l

SEEDS_EN = [
    "Explain how a bicycle stays upright.",
    "Suggest a name for a small bakery.",
    "Describe the smell of rain.",
    "List three uses for old newspapers.",
    "Give advice to someone who cannot sleep.",
]
SEEDS_ZH = ["请解释自行车为什么不会倒。", "给一家小面包店起个名字。", "描述下雨天的气味是什么样的。"]


def seeds(*texts: str) -> list[Example]:
    return [
        Example(
            messages=(Message(role="user", text=text), Message(role="assistant", text="An answer.")), license="CC0-1.0"
        )
        for text in texts
    ]


class Scripted:
    """Answers requests for tasks from a script, and any other prompt with `answer`; remembers what it was shown."""

    policy = "scripted-1"

    def __init__(self, lists, answer=lambda text: ("Here you are.", "stop")):
        self.lists, self.answer, self.shown, self.sampled = list(lists), answer, [], []

    def respond(self, requests):
        requests = list(requests)
        out = []
        for prompt, sampling in requests:
            text = prompt.messages[0].text
            self.sampled.append(sampling)
            if "numbered list" in text or "编号列出" in text:
                self.shown.append(text)
                reply = self.lists.pop(0) if self.lists else "I have no more ideas."
                reply, finish = reply if isinstance(reply, tuple) else (reply, "stop")
            else:
                reply, finish = self.answer(text)
            out.append(Response(prompt_id=prompt.id, text=reply, finish=finish))
        return reversed(out)  # engines answer in any order

    def score(self, items):
        raise NotImplementedError


def instructions(examples):
    return [example.messages[0].text for example in examples]


def test_new_instructions_are_kept_with_their_answers():
    engine = Scripted(["1. Write a short letter to a lighthouse keeper.\n2. Compare tea with coffee in two sentences."])
    report = expand(seeds(*SEEDS_EN), engine, wanted=2, seed=1, at_once=1)
    assert instructions(report.kept) == [
        "Write a short letter to a lighthouse keeper.",
        "Compare tea with coffee in two sentences.",
    ]
    for example in report.kept:
        assert example.messages[1] == Message(role="assistant", text="Here you are.")
        assert (example.author, example.source, example.license, example.tags) == (
            "model:scripted-1",
            "expand",
            "CC0-1.0",
            ("lang:en",),
        )
    assert report.enough and report.rounds == 1 and not report.rejected


REFUSED = [
    ("Draw a picture of an old elephant.", "blocked word"),
    ("Summarise the attached file in one sentence.", "blocked word"),
    ("请根据这张图片写一段介绍文字。", "blocked word"),
    ("Sing a song.", "too short"),
    ("唱首歌。", "too short"),
    ("Tell me about " + "very " * 160 + "long things.", "too long"),
    ("*Explain why leaves change colour.", "odd start"),
    ("“解释为什么树叶会变颜色。”", "odd start"),
    ("describe the smell of RAIN", "duplicate"),
    ("Describe the smell of the rain.", "too similar"),  # ROUGE-L 10/11
    ("请描述下雨天的气味是什么样的。", "too similar"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_is_refused_and_why(text, reason):
    engine = Scripted([f"1. {text}\n2. Name a river that flows through two countries."])
    report = expand(seeds(*SEEDS_EN, *SEEDS_ZH), engine, wanted=1, seed=1, at_once=1)
    assert report.rejected == {reason: 1}
    assert instructions(report.kept) == ["Name a river that flows through two countries."]


def test_similar_instructions_of_one_round_are_refused_against_each_other():
    engine = Scripted(
        ["1. Name a river that flows through two countries.", "1. Name one river that flows through two countries."]
    )
    report = expand(seeds(*SEEDS_EN), engine, wanted=2, seed=1, at_once=2)
    assert len(report.kept) == 1 and report.rejected["too similar"] == 1


def test_similarity_is_an_argument():
    engine = Scripted(["1. Describe the smell of the rain."])
    assert len(expand(seeds(*SEEDS_EN), engine, wanted=1, seed=1, at_once=1, similarity=0.95).kept) == 1


def test_answers_that_failed_take_their_instruction_with_them():
    endings = {
        "Name": ("", "stop"),
        "Compare": ("It begins well but", "length"),
        "Write": ("boom", "error"),
        "Tell": ("Good.", "stop"),
    }
    engine = Scripted(
        [
            "1. Name a river of Europe.\n2. Compare tea with green coffee.\n"
            "3. Write a very short story.\n4. Tell me about old lighthouses."
        ],
        answer=lambda text: endings[text.split()[0]],
    )
    report = expand(seeds(*SEEDS_EN), engine, wanted=4, seed=1, at_once=1)
    assert instructions(report.kept) == ["Tell me about old lighthouses."]
    assert report.rejected == {"unanswered": 2, "answer cut off": 1}
    assert not report.enough and report.rounds == 21  # one fruitful round and twenty without


def test_the_last_item_of_a_list_that_was_cut_off_is_left_out():
    engine = Scripted([("1. Name a river of Europe.\n2. Write a story about an old", "length")])
    report = expand(seeds(*SEEDS_EN), engine, wanted=2, seed=1, at_once=1)
    assert instructions(report.kept) == ["Name a river of Europe."] and report.rejected["cut off"] == 1


def test_prompts_show_seeds_of_one_language():
    engine = Scripted([])
    expand(seeds(*SEEDS_EN, *SEEDS_ZH), engine, wanted=1, seed=3, per_prompt=3)
    chinese = [text for text in engine.shown if "任务1" in text]
    english = [text for text in engine.shown if "Task 1" in text]
    assert chinese and english and len(chinese) + len(english) == len(engine.shown)
    for text in engine.shown:
        here = {seed for seed in SEEDS_EN + SEEDS_ZH if seed in text}
        assert len(here) == 3 and (here <= set(SEEDS_EN) or here <= set(SEEDS_ZH))


def test_new_instructions_are_shown_in_later_rounds():
    engine = Scripted(["1. Name a river that flows through two countries."])
    expand(seeds(*SEEDS_EN), engine, wanted=2, seed=1, at_once=1)
    assert any("Name a river" in text for text in engine.shown[1:]) and "Name a river" not in engine.shown[0]


def test_rounds_sample_with_their_own_stream():
    engine = Scripted([])
    expand(seeds(*SEEDS_EN), engine, wanted=1, seed=9, at_once=1, ask=Sampling(max_tokens=7, temperature=0.5))
    assert [(s.seed, s.step, s.max_tokens) for s in engine.sampled[:3]] == [(9, 0, 7), (9, 1, 7), (9, 2, 7)]


def test_parse_instructions():
    text = "当然！\n1. 写一首诗。\n2、翻译这句话。\n任务3：解释\n什么是光。\nTask 4: Count to 10. 5 is enough.\n5) \n"
    assert parse_instructions(text) == ["写一首诗。", "翻译这句话。", "解释 什么是光。", "Count to 10. 5 is enough."]
    assert parse_instructions("no list at all") == []


def test_rouge_l_against_rouge_score():
    draw, scorer = random.Random(4), RougeScorer(["rougeL"])
    for _ in range(300):
        a, b = ([draw.choice("aa bb cc dd ee".split()) for _ in range(draw.randint(1, 80))] for _ in range(2))
        expected = scorer.score(" ".join(a), " ".join(b))["rougeL"].fmeasure
        assert rouge_l(a, b) == pytest.approx(expected)
        limit = draw.random()
        assert (rouge_l(a, b, at_least=limit) > limit) == (expected > limit)  # the short cut decides the same
    assert rouge_l([], ["a"]) == 0.0


LISTS = [
    f"1. {a} {b} for a {c} audience.\n2. Describe {c} {b} without naming it."
    for a, b, c in [
        ("Explain", "volcanoes", "young"),
        ("Summarise", "chess rules", "busy"),
        ("Praise", "mountain soup", "hungry"),
        ("Question", "wooden ships", "sleepy"),
        ("Defend", "slow trains", "angry"),
        ("Sketch", "winter gardens", "royal"),
    ]
]


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    def engine(skip=0):
        return Scripted(LISTS[skip:], answer=lambda text: (f"About {text}", "length" if "chess" in text else "stop"))

    whole = expand(seeds(*SEEDS_EN), engine(), wanted=8, seed=2, at_once=1, output=tmp_path / "whole.jsonl")
    part = tmp_path / "part.jsonl"
    expand(seeds(*SEEDS_EN), engine(), wanted=8, seed=2, at_once=1, output=part)
    lines = part.read_bytes().splitlines(keepends=True)
    assert len(lines) == whole.rounds + 1 > 4
    part.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # three rounds, and a torn fourth
    again = expand(seeds(*SEEDS_EN), engine(skip=3), wanted=8, seed=2, at_once=1, output=part)
    assert again == whole
    assert part.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    finished = expand(seeds(*SEEDS_EN), Scripted([]), wanted=8, seed=2, at_once=1, output=part)
    assert finished == whole  # nothing left to do: the engine is not asked
    with pytest.raises(UserError, match="holds another expansion"):
        expand(seeds(*SEEDS_EN), engine(), wanted=8, seed=3, at_once=1, output=part)


def test_the_seed_decides_what_is_shown_and_a_resumed_run_shows_the_same(tmp_path):
    def shown(seed, output=None, script=LISTS):
        engine = Scripted(script)
        expand(seeds(*SEEDS_EN), engine, wanted=8, seed=seed, at_once=1, per_prompt=3, output=output)
        return engine.shown

    path = tmp_path / "out.jsonl"
    whole = shown(1, path)
    assert whole == shown(1) != shown(2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # two rounds
    assert shown(1, path, LISTS[2:]) == whole[2:]


def test_an_instruction_that_could_not_be_answered_is_remembered_across_an_interruption(tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(["1. Name a river of Europe."], answer=lambda text: ("", "stop"))
    expand(seeds(*SEEDS_EN), engine, wanted=1, seed=1, at_once=1, output=output)
    first = json.loads(output.read_text(encoding="utf-8").splitlines()[1])
    assert first["kept"] == [] and first["tried"] == ["Name a river of Europe."]
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2]))
    report = expand(
        seeds(*SEEDS_EN), Scripted(["1. Name a river of Europe."]), wanted=1, seed=1, at_once=1, output=output
    )
    assert report.kept == [] and report.rejected == {"unanswered": 1, "duplicate": 1}


def test_progress_is_told():
    told = []
    expand(seeds(*SEEDS_EN), Scripted(LISTS), wanted=3, seed=1, at_once=1, progress=lambda *row: told.append(row))
    assert told[-1] == ("expand", 3, 3) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"wanted": 0}, "at least 1"),
        ({"similarity": 1.2}, "above 0 and at most 1"),
    ],
)
def test_impossible_arguments_are_refused(fault, message):
    arguments = {"seeds": seeds(*SEEDS_EN), "wanted": 1, "similarity": 0.7} | fault
    with pytest.raises(UserError, match=message):
        expand(arguments.pop("seeds"), Scripted([]), seed=1, **arguments)
