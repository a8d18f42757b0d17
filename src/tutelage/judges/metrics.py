"""Reference metrics: BLEU, chrF, ROUGE, exact match, token F1 and "contains", as judges and as corpus figures.

sacrebleu and rouge-score do the counting; Chinese goes to sacrebleu's `zh` tokenizer, to rjieba words for ROUGE and to
characters for exact match and F1.  BLEU, chrF and ROUGE are in points (0 to 100), the others in [0, 1].
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import rjieba
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.judges.rules import Items, language_of, rate, where, words_of

References = Sequence[str]  # every one of them is right


class _ChineseWords:
    """rjieba as a tokenizer of rouge-score, whose own one drops all that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return [word.casefold() for word in rjieba.cut(text) if any(c.isalnum() for c in word)]


# `force`: silences a warning about text that looks tokenised.  13a is the standard of WMT, zh that of WMT for Chinese.
_BLEU = {"en": BLEU(tokenize="13a", force=True), "zh": BLEU(tokenize="zh", force=True)}
_SENTENCE_BLEU = {"en": BLEU(tokenize="13a", effective_order=True), "zh": BLEU(tokenize="zh", effective_order=True)}
_CHRF = CHRF()
_ROUGE = {
    "en": RougeScorer(["rouge1", "rougeL"], use_stemmer=True),
    "zh": RougeScorer(["rouge1", "rougeL"], tokenizer=_ChineseWords()),
}


def bleu_counts(text: str, references: References) -> list[float]:
    """Lengths and n-gram counts of one answer (10 numbers); their sum over a corpus goes to `bleu_from_counts`.

    The tokenizer follows the language of the first reference, so one corpus may mix Chinese and English.
    """
    metric = _BLEU[language_of(references[0])]
    # sacrebleu's own bootstrap is built on this call; the public one draws with a seed from the environment.
    return list(metric._extract_corpus_statistics([text], [[r] for r in references])[0])


def bleu_from_counts(counts: Sequence[float]) -> float:
    return float(_BLEU["en"]._compute_score_from_stats([int(x) for x in counts]).score)


def chrf_counts(text: str, references: References) -> list[float]:
    """Character n-gram counts of one answer (18 numbers); their sum over a corpus goes to `chrf_from_counts`."""
    return list(_CHRF._extract_corpus_statistics([text], [[r] for r in references])[0])


def chrf_from_counts(counts: Sequence[float]) -> float:
    return float(_CHRF._compute_score_from_stats(list(counts)).score)


def corpus_bleu(texts: Sequence[str], references: Sequence[References]) -> float:
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002; exponential smoothing, as sacrebleu's default)."""
    return bleu_from_counts(_total(bleu_counts, texts, references))


def corpus_chrf(texts: Sequence[str], references: Sequence[References]) -> float:
    """chrF2 of a corpus, 0 to 100 (Popovic 2015; characters up to 6-grams)."""
    return chrf_from_counts(_total(chrf_counts, texts, references))


def _total(
    count: Callable[[str, References], list[float]], texts: Sequence[str], references: Sequence[References]
) -> list[float]:
    if not texts:
        raise UserError("a corpus metric needs at least one answer; got none")
    rows = [count(text, refs) for text, refs in zip(texts, references, strict=True)]
    return [sum(column) for column in zip(*rows, strict=True)]


def sentence_bleu(text: str, references: References) -> float:
    """BLEU of one answer, 0 to 100, over the n-gram orders that it is long enough for."""
    return float(_SENTENCE_BLEU[language_of(references[0])].sentence_score(text, list(references)).score)


def sentence_chrf(text: str, references: References) -> float:
    return float(_CHRF.sentence_score(text, list(references)).score)


def rouge(text: str, references: References, *, kind: str) -> float:
    """ROUGE F-measure in points, 0 to 100, against the best reference; kind: rouge1 (words) or rougeL (longest
    common subsequence)."""
    return max(100 * _ROUGE[language_of(ref)].score(ref, text)[kind].fmeasure for ref in references)


def rouge_1(text: str, references: References) -> float:
    return rouge(text, references, kind="rouge1")


def rouge_l(text: str, references: References) -> float:
    return rouge(text, references, kind="rougeL")


def squad_tokens(text: str) -> list[str]:
    """SQuAD's normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles; Chinese by characters.

    >>> squad_tokens("The Eiffel-Tower, 巴黎。")
    ['eiffeltower', '巴', '黎']
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return words_of(text)


def exact_match(text: str, references: References) -> float:
    """1 where the normalised answer is a normalised reference."""
    return float(any(squad_tokens(text) == squad_tokens(ref) for ref in references))


def token_f1(text: str, references: References) -> float:
    """Harmonic mean of precision and recall of tokens (Chinese: characters), against the best reference, in [0, 1]."""
    return max(_f1(squad_tokens(text), squad_tokens(ref)) for ref in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def contains(text: str, references: References) -> float:
    """1 where a reference stands in the answer as a run of whole tokens: "Paris" in "It is Paris.", not in "Parisian"."""
    answer = squad_tokens(text)
    for ref in map(squad_tokens, references):
        if ref and any(answer[i:i + len(ref)] == ref for i in range(len(answer) - len(ref) + 1)):
            return 1.0
    return 0.0


METRICS: dict[str, Callable[[str, References], float]] = {
    "bleu": sentence_bleu, "chrf": sentence_chrf, "rouge1": rouge_1, "rougeL": rouge_l,
    "exact": exact_match, "f1": token_f1, "contains": contains,
}


class MetricJudge:
    """A metric against `prompt.references` as a judge: `MetricJudge("chrf")`, id `metric:chrf@1`."""

    def __init__(self, metric: str, *, id: str = ""):
        if metric not in METRICS:
            raise UserError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        self.metric, self.id = metric, id or f"metric:{metric}@1"

    def value(self, prompt: Prompt, response: Response) -> float:
        return METRICS[self.metric](response.text, references_of(prompt))

    def judge(self, items: Items) -> list[Judgement]:
        return rate(items, judge=self.id, rubric=f"{self.metric}@1", value=self.value)


def references_of(prompt: Prompt) -> References:
    """The prompt's references; a prompt without one is an error that names it."""
    if not any(ref.strip() for ref in prompt.references):
        raise UserError(f"{where(prompt)} has no reference answer; a reference metric needs one: "
                        "add `references`, or judge such prompts with a rule or a reward model")
    return [ref for ref in prompt.references if ref.strip()]
