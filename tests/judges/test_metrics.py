"""Metrics against sacrebleu's and rouge-score's own corpus figures and against hand-worked F1."""

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.judges import metrics
from tutelage.judges.metrics import MetricJudge, contains, corpus_bleu, corpus_chrf, exact_match, rouge, token_f1

EN = ["The cat sat on the mat.", "A quick brown fox jumps over the dog.", "It rains in the small town today."]
EN_REF = [
    "The cat is sitting on the mat.", "The quick brown fox jumped over the lazy dog.",
    "It is raining in the small town today.",
]
ZH = ["今天天气很好，我们去公园。", "他喜欢喝茶。"]
ZH_REF = ["今天天气很好，我们去公园玩。", "他很喜欢喝绿茶。"]


def test_corpus_figures_equal_sacrebleu():
    refs = [[r] for r in EN_REF]
    assert corpus_bleu(EN, refs) == pytest.approx(sacrebleu.corpus_bleu(EN, [EN_REF]).score)
    assert corpus_chrf(EN, refs) == pytest.approx(sacrebleu.corpus_chrf(EN, [EN_REF]).score)
    zh = [[r] for r in ZH_REF]
    assert corpus_bleu(ZH, zh) == pytest.approx(sacrebleu.corpus_bleu(ZH, [ZH_REF], tokenize="zh").score)
    assert corpus_bleu(ZH, zh) > 20  # the default tokenizer would give close to nothing
    assert corpus_chrf(ZH, zh) == pytest.approx(sacrebleu.corpus_chrf(ZH, [ZH_REF]).score)


def test_several_references_of_different_number():
    refs = [[EN_REF[0], "The cat sat on the mat."], [EN_REF[1]], [EN_REF[2]]]
    witness = sacrebleu.corpus_bleu(EN, [EN_REF, ["The cat sat on the mat.", None, None]])
    assert corpus_bleu(EN, refs) == pytest.approx(witness.score)


def test_perfect_and_empty():
    refs = [[r] for r in EN_REF]
    assert corpus_bleu(EN_REF, refs) == pytest.approx(100) and corpus_chrf(EN_REF, refs) == pytest.approx(100)
    assert corpus_bleu([""] * 3, refs) == 0 and corpus_chrf([""] * 3, refs) == 0
    assert rouge("", EN_REF[:1], kind="rougeL") == 0 and token_f1("", ["x"]) == 0


def test_rouge_equals_rouge_score_and_takes_the_best_reference():
    witness = RougeScorer(["rougeL"], use_stemmer=True).score(EN_REF[0], EN[0])["rougeL"].fmeasure
    assert rouge(EN[0], [EN_REF[0]], kind="rougeL") == pytest.approx(100 * witness)
    assert rouge(EN[0], ["nothing alike", EN[0]], kind="rougeL") == pytest.approx(100)


def test_chinese_rouge_by_hand():
    # rjieba cuts 他 / 喜欢 / 喝茶 and 他 / 喜欢 / 喝茶 / 吗: 3 of 3 and 3 of 4 -> F = 6/7
    assert rouge("他喜欢喝茶", ["他喜欢喝茶吗"], kind="rouge1") == pytest.approx(100 * 6 / 7)
    assert rouge("他喜欢喝茶", ["茶"], kind="rouge1") == 0


@pytest.mark.parametrize("text, reference, exact, f1, inside", [
    ("Paris", "paris.", 1, 1, 1),
    ("The Paris", "Paris", 1, 1, 1),  # articles are dropped
    ("It is Paris", "Paris", 0, 0.5, 1),  # precision 1/3, recall 1
    ("Parisian", "Paris", 0, 0, 0),
    ("北京", "北京。", 1, 1, 1),
    ("答案是北京", "北京", 0, 4 / 7, 1),  # characters: 2 shared of 5 and of 2
    ("1,000 km", "1000 km", 1, 1, 1),
    ("", "x", 0, 0, 0),
])
def test_answers_by_hand(text, reference, exact, f1, inside):
    assert exact_match(text, [reference]) == exact
    assert token_f1(text, [reference]) == pytest.approx(f1)
    assert contains(text, [reference]) == inside


def test_judges_are_the_functions_answer_by_answer():
    prompt = Prompt(messages=(Message(role="user", text="Capital?"),), references=("Paris", "City of Paris"))
    responses = [Response(prompt_id=prompt.id, text=text) for text in ("Paris", "London", "City of Paris")]
    for name, fn in metrics.METRICS.items():
        (got,) = MetricJudge(name).judge([(prompt, responses)])
        assert got.judge == f"metric:{name}@1" and got.values == tuple(fn(r.text, prompt.references) for r in responses)
        assert got.values[0] > got.values[1]


def test_missing_reference_names_the_prompt():
    prompt = Prompt(messages=(Message(role="user", text="Tell me."),), references=(" ",))
    with pytest.raises(UserError, match="'Tell me.'.*no reference"):
        MetricJudge("f1").judge([(prompt, [Response(prompt_id=prompt.id, text="x")])])
    with pytest.raises(UserError, match="unknown metric"):
        MetricJudge("meteor")
