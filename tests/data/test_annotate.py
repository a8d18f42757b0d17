"""Words, tags and lengths."""

import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Example, Message, Prompt
from tutelage.data import annotate as module
from tutelage.data.annotate import UNIVERSAL_TAGS, annotate, count_words, english_tagger, token_statistics

TAGGERS = [
    "rules",
    pytest.param(
        "perceptron",
        marks=pytest.mark.skipif(english_tagger() == "rules", reason="needs the extra `pos` (denckring-en-pos)"),
    ),
]


@pytest.fixture(params=TAGGERS)
def tagger(request, monkeypatch):
    if request.param == "rules":
        monkeypatch.setattr(module, "_tag_english", lambda: module._by_rules)
    return request.param


# Plain sentences, tagged by hand after the UD guidelines.
BY_HAND = {
    "The old man walked slowly to the river.": "DET ADJ NOUN VERB ADV ADP DET NOUN PUNCT",
    "She has two beautiful cats and they sleep in London.": "PRON AUX NUM ADJ NOUN CCONJ PRON VERB ADP PROPN PUNCT",
    "Please translate the following sentence into French.": "INTJ VERB DET ADJ NOUN ADP PROPN PUNCT",
    "It costs 3.50 euros, or 20% more!": "PRON VERB NUM NOUN PUNCT CCONJ NUM SYM ADJ PUNCT",
    "I don't know what they want.": "PRON AUX VERB PRON PRON VERB PUNCT",
}


def test_english_tags_against_hand_tags(tagger):
    pairs = [pair for text, tags in BY_HAND.items() for pair in zip(annotate(text, "en"), tags.split(), strict=True)]
    right = sum(token.tag == want for token, want in pairs)
    assert right / len(pairs) >= {"perceptron": 0.9, "rules": 0.75}[tagger], [(t, w) for t, w in pairs if t.tag != w]


def test_chinese_words_and_tags():
    words = annotate("我们今天去北京学习自然语言处理，花了3.5元。", "zh")
    tags = {token.text: token.tag for token in words}
    assert [token.text for token in words][:4] == ["我们", "今天", "去", "北京"]
    assert tags["我们"] == "PRON" and tags["北京"] == "PROPN" and tags["学习"] == "VERB"
    assert tags["，"] == tags["。"] == "PUNCT" and tags["3.5"] == "NUM" and tags["了"] == "PART"


@pytest.mark.parametrize(
    "text", [*BY_HAND, "我爱 NLP，don’t you? 12:30 见！😀", "", "  \n", "C3PO_x ½ naïve café", "一\u3000二"]
)
def test_tokens_joined_are_the_text_without_spaces(text, tagger):
    for lang in ("en", "zh"):
        tokens = annotate(text, lang)
        assert "".join(token.text for token in tokens) == "".join(text.split())
        assert {token.tag for token in tokens} <= set(UNIVERSAL_TAGS)


def test_detected_language_chooses_the_tagger():
    assert [token.text for token in annotate("自然语言")] == [token.text for token in annotate("自然语言", "zh")]
    with pytest.raises(UserError, match="no part-of-speech tagger for language 'fr'"):
        annotate("Bonjour tout le monde", "fr")


def test_words_are_counted_without_punctuation():
    assert count_words("Don't stop, it's 3.5 km!", "en") == 5
    assert count_words("我们学习语言。", "zh") == 3


def example(question: str, answer: str) -> Example:
    return Example(messages=(Message(role="user", text=question), Message(role="assistant", text=answer)))


def test_statistics_by_hand():
    records = [
        example("How many legs has a spider?", "Eight legs in all."),
        example("What is the colour of grass?", "It is green."),
        example("蜘蛛有几条腿？", "八条腿。"),
        Prompt(messages=(Message(role="user", text="今天的天气怎么样？"),)),
    ]
    got = token_statistics(records, tokenize=lambda text: [ord(c) for c in text[::2]])
    assert got.records == {"en": 2, "zh": 2, "all": 4}
    # question + line break + answer: 27 + 1 + 18 = 46, 28 + 1 + 12 = 41, 7 + 1 + 4 = 12, 9
    assert (got.chars["en"].p5, got.chars["en"].most, got.chars["en"].mean) == (41, 46, 43.5)
    assert (got.chars["zh"].p5, got.chars["zh"].most) == (9, 12)
    assert got.words["en"].most == 10 and got.words["en"].p5 == 9
    assert got.tokens["en"].most == 23 and got.tokens["en"].p5 == 21
    assert got.answer_chars["zh"].p5 == 0 and got.answer_chars["zh"].most == 4  # a prompt has no answer
    assert got.chars_per_token["en"] == pytest.approx(87 / 44)
    assert got.to_dict()["chars"]["all"]["most"] == 46


def test_percentiles_of_one_to_a_hundred():
    got = token_statistics(example("q", "a" * (n - 2)) for n in range(3, 103)).chars["all"]
    assert (got.p5, got.p95, got.most) == (8, 97, 102)  # sizes 3 to 102
    assert got.p50 in (52, 53)  # the middle of an even number of values: either will do
    assert got.mean == 52.5


def test_without_a_tokenizer_there_are_no_tokens():
    got = token_statistics([example("How are you today?", "Very well, thank you.")])
    assert got.tokens == {} and got.chars_per_token == {}
    assert token_statistics([]).records == {}
