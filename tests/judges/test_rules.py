import pytest

from tutelage.core.errors import RewardError, UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.judges.ensemble import WeightedSum
from tutelage.judges.rules import (
    FormatRule,
    FunctionJudge,
    LabelRule,
    LanguageRule,
    LengthRule,
    RepetitionRule,
    function_judge,
    words_of,
)
from tutelage.judges.spans import SpanJudge, StepJudge


def ask(text="Say something.", **fields):
    return Prompt(messages=(Message(role="user", text=text),), **fields)


def values(judge, prompt, *texts):
    (got,) = judge.judge([(prompt, [Response(prompt_id=prompt.id, text=text, index=i) for i, text in enumerate(texts)])])
    assert got.judge == judge.id
    return got.values


def test_words_of_both_languages():
    assert words_of("It's 3 o'clock. 现在三点。") == ["It's", "3", "o'clock", "现", "在", "三", "点"]


def test_length_is_one_inside_and_falls_outside():
    # 2 words of at least 4: half; 4 and 8 at the edges: full; 16 of at most 8: half; nothing: nothing
    assert values(LengthRule(4, 8), ask(), "a b", "a b c d", "w " * 8, "w " * 16, "") == (0.5, 1, 1, 0.5, 0)


def test_repetition_tells_a_loop_from_prose():
    texts = ("I am fine . " * 20, "One reads slowly, then writes quickly.", "Yes.", "今天天气很好" * 10)
    loop, prose, short, zh = values(RepetitionRule(), ask(), *texts)
    assert loop < 0.1 and zh < 0.15 and prose == 1 and short == 1


def test_language_asked_for_is_the_translation_target_before_the_prompts_own():
    to_zh = ask("Translate: cat", tags=("task:translation_en_zh", "lang:en"))
    assert values(LanguageRule(), to_zh, "猫", "cat", "42", "") == (1, 0, 1, 0)
    plain = ask("Hello", tags=("lang:en",))
    assert values(LanguageRule(), plain, "Hi!", "你好", "aa你好") == (1, 0, 0.5)
    assert values(LanguageRule(), ask(), "anything") == (1,)


def test_format():
    assert values(FormatRule(r"^\d+\.$"), ask(), "42.", "It is 42.") == (1, 0)
    assert values(FormatRule(r"\{.*\}", whole=True), ask(), '{"a": 1}', 'x {"a": 1}') == (1, 0)
    with pytest.raises(UserError, match="not a regular expression"):
        FormatRule("(")


LABELS = ask("Spam?", label="spam", tags=("labels:spam|not spam",))


@pytest.mark.parametrize("text, strict, lenient", [
    ("spam", 1, 1),
    (" “Spam.” ", 1, 1),  # quotes, case and full stop do not matter
    ("It is spam.", 0, 1),  # chatter: lenient only
    ("not spam", 0, 0),  # contains the word, is the other label
    ("spam or not spam", 0, 0),  # names both
    ("\nspam\nbecause of the link", 0, 1),  # first line counts
    ("I think\nspam", 0, 0),  # a later line does not
    ("spammy", 0, 0),  # a word that begins with it
    ("", 0, 0),
])
def test_labels(text, strict, lenient):
    assert values(LabelRule(), LABELS, text) == (strict,)
    assert values(LabelRule(lenient=True), LABELS, text) == (lenient,)


def test_chinese_labels_need_no_spaces_round_them():
    prompt = ask("情感？", label="正面", tags=("labels:正面|负面",))
    assert values(LabelRule(lenient=True), prompt, "这是正面评价", "负面") == (1, 0)
    assert values(LabelRule(), prompt, "正面。", "这是正面评价") == (1, 0)


def test_label_rule_names_the_prompt_without_label():
    with pytest.raises(UserError, match="'Say something.'.*no label"):
        values(LabelRule(), ask(), "x")


def test_function_judge_keeps_order_over_items():
    def characters(prompts, responses):
        assert len(prompts) == len(responses) == 3
        return [len(r.text) for r in responses]
    one, two = ask("one"), ask("two")
    got = FunctionJudge(characters).judge([
        (one, [Response(prompt_id=one.id, text="a"), Response(prompt_id=one.id, text="bb")]),
        (two, [Response(prompt_id=two.id, text="ccc")]),
    ])
    assert [j.values for j in got] == [(1, 2), (3,)] and got[0].judge == "rule:characters"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "high"])
def test_bad_reward_names_the_prompt(bad):
    with pytest.raises(UserError, match="rule:broken: .*prompt .*'Say something.'.*finite"):
        values(FunctionJudge(lambda prompts, responses: [bad], "rule:broken"), ask(), "x")


def test_wrong_number_of_rewards_is_told():
    with pytest.raises(UserError, match="got 2 answers and returned 1 numbers"):
        values(FunctionJudge(lambda prompts, responses: [1.0], "rule:short"), ask(), "x", "y")


def test_reward_function_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def polite(prompts, responses):\n    return ['please' in r.text for r in responses]\n", encoding="utf-8")
    assert values(function_judge(f"{file}:polite"), ask(), "please sit", "sit") == (1, 0)
    for spec in (f"{file}:rude", "nowhere.py:f", "noise"):
        with pytest.raises(UserError, match="reward function"):
            function_judge(spec)


@pytest.mark.parametrize("text, said", [
    ("def f(prompts, responses):\n    return 1 /\n", "cannot be run, line 2: SyntaxError"),
    ("import json\nx = json.loads('{')\n", "cannot be run, line .*: JSONDecodeError"),
])
def test_a_file_that_cannot_be_run_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"mine.py {said}"):
        function_judge(f"{tmp_path}/mine.py:f")


@pytest.mark.parametrize("returned, said", [
    (lambda: {}["key"], r"raised KeyError: 'key' \(test_rules.py, line \d+\), in a batch of 2 answers that begins with .*Say something"),
    (lambda: None, "raised TypeError: 'NoneType' object is not iterable"),
])
def test_a_function_that_raises_is_a_reward_error_with_file_line_and_prompt(returned, said):
    items = [(ask(), [Response(prompt_id=ask().id, text=text, index=at) for at, text in enumerate("ab")])]
    for judge in (FunctionJudge(lambda prompts, responses: returned()), SpanJudge(lambda prompts, responses: returned()),
                  StepJudge(lambda prompts, steps: returned())):
        with pytest.raises(RewardError, match=said):
            judge.judge(items)


def test_spans_of_an_answer_must_be_a_list():
    with pytest.raises(UserError, match="must return a list of spans for every answer .* it returned None for"):
        SpanJudge(lambda prompts, responses: [None]).judge([(ask(), [Response(prompt_id=ask().id, text="a")])])


def test_weighted_sum():
    double = FunctionJudge(lambda p, r: [2.0 * len(x.text) for x in r], "rule:double")
    got = WeightedSum([(double, 0.5), (LengthRule(1, 5), 10)])
    assert values(got, ask(), "abc", "") == (13, 0)  # 0.5 * 6 + 10 * 1; nothing
    assert got.id == "sum:0.5*rule:double+10*rule:length@1"


def test_sum_refuses_pair_judgements_and_bad_weights():
    class Pairs:
        id = "llm:x"

        def judge(self, items):
            from_rule = LengthRule(1, 2).judge(items)
            return [type(j)(judge="llm:x", kind="pair", responses=j.responses, values=(1, 0)) for j in from_rule]
    with pytest.raises(UserError, match="'pair' judgement"):
        values(WeightedSum([(Pairs(), 1)]), ask(), "a", "b")
    with pytest.raises(UserError, match="finite"):
        WeightedSum([(Pairs(), float("nan"))])
