"""Duplicates, against a brute-force Jaccard similarity that shares no code with the index."""

import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from tutelage.core.errors import UserError
from tutelage.data.dedupe import ExactIndex, MinHasher, NearDuplicateIndex, bands_for, shingle_hashes, units

ENGLISH = [a + b for a in "ba ce di fo gu ha je ki lo mu na pe".split() for b in "r st nd lm x ck th sh mp v".split()]
CHINESE = [chr(0x4E00 + 7 * i) for i in range(600)]


def write(draw: random.Random, lang: str, length: int) -> list[str]:
    return [draw.choice(ENGLISH if lang == "en" else CHINESE) for _ in range(length)]


def join(words: list[str], lang: str) -> str:
    return (" " if lang == "en" else "").join(words)


def jaccard(a: list[str], b: list[str]) -> float:
    """The definition, on triples, one by one."""
    left, right = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a, b))
    return len(left & right) / len(left | right)


def edit(draw: random.Random, words: list[str], lang: str, times: int) -> list[str]:
    words = list(words)
    for _ in range(times):
        place = draw.randrange(len(words))
        kind = draw.randrange(3)
        if kind == 0:
            words[place] = write(draw, lang, 1)[0]
        elif kind == 1:
            del words[place]
        else:
            words.insert(place, write(draw, lang, 1)[0])
    return words


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_planted_near_duplicates_are_found_and_distinct_texts_are_left_alone(tmp_path, lang):
    draw = random.Random(5)
    originals = [write(draw, lang, draw.randint(60, 120)) for _ in range(300)]
    copies = [(number, edit(draw, words, lang, 2)) for number, words in enumerate(originals)]
    planted = [(number, words) for number, words in copies if jaccard(words, originals[number]) >= 0.85]
    assert len(planted) > 200  # the witness agrees that we planted what we claim
    with NearDuplicateIndex(tmp_path / "near.db", 0.8) as index:
        wrong = sum(index.add(str(number), join(words, lang)) is not None for number, words in enumerate(originals))
        found = sum(index.add(f"copy {number}", join(words, lang)) == str(number) for number, words in planted)
    assert wrong / len(originals) < 0.01
    # An estimate over 128 places has a standard error of 0.032 at 0.85; far fewer than one in ten fall below 0.8.
    assert found / len(planted) >= 0.9


def test_verdicts_agree_with_brute_force_on_pairs_of_every_similarity(tmp_path):
    draw = random.Random(11)
    wrong = pairs = 0
    with NearDuplicateIndex(tmp_path / "near.db", 0.7) as index:
        for number in range(200):
            words = write(draw, "en", 100)
            other = edit(draw, words, "en", draw.randint(0, 40))
            truth = jaccard(words, other)
            if abs(truth - 0.7) < 0.1:  # within two and a half standard errors of the threshold anything may happen
                continue
            pairs += 1
            assert index.add(f"first {number}", join(words, "en")) is None
            wrong += (index.add(f"second {number}", join(other, "en")) is not None) != (truth > 0.7)
    assert pairs > 100 and wrong / pairs <= 0.02


def test_signature_estimates_the_jaccard_similarity_without_bias():
    draw, hasher = random.Random(2), MinHasher(128)
    errors = []
    for _ in range(150):
        words = write(draw, "en", 120)
        other = edit(draw, words, "en", 12)
        equal = (hasher.signature(join(words, "en")) == hasher.signature(join(other, "en"))).mean()
        errors.append(equal - jaccard(words, other))
    # One estimate has a standard error of at most 0.044, the mean of 150 about 0.004; the bound is five times that.
    assert abs(np.mean(errors)) < 0.02
    assert 0.02 < np.std(errors) < 0.07


def test_the_signature_of_a_long_text_is_the_minimum_of_those_of_its_parts():
    hasher, words = MinHasher(128), write(random.Random(8), "en", 9_000)
    thirds = [hasher.signature(join(words[start : start + 3_002], "en")) for start in (0, 3_000, 6_000)]  # all triples
    assert (hasher.signature(join(words, "en")) == np.minimum.reduce(thirds)).all()


def test_near_duplicates_ignore_case_punctuation_and_spacing(tmp_path):
    with NearDuplicateIndex(tmp_path / "near.db", 0.8) as index:
        assert index.add("a", "What is the capital of France, please?") is None
        assert index.add("b", "what is  the capital of france please") == "a"
        assert index.add("c", "法国的首都是哪里？") is None
        assert index.add("d", "法国的首都，是哪里") == "c"
        assert index.add("e", "What is the capital of Japan, then?") is None


def test_every_part_must_be_near(tmp_path):
    question = "Decide whether the following review is positive or negative and answer with one word only. " * 3
    with NearDuplicateIndex(tmp_path / "near.db", 0.8) as index:
        assert index.add("a", question + "positive", parts=(question, "positive")) is None
        assert index.add("b", question + "negative", parts=(question, "negative")) is None
        assert index.add("c", question + "Positive!", parts=(question, "Positive!")) == "a"


def test_a_closed_index_remembers(tmp_path):
    path = tmp_path / "near.db"
    with NearDuplicateIndex(path, 0.8) as index:
        index.add("first", "a text that was there before the program ended")
    with NearDuplicateIndex(path, 0.8) as index:
        assert index.add("again", "A text that was there before the program ended.") == "first"
    with pytest.raises(UserError, match="built with threshold 0.8, 128 permutations, not with threshold 0.5"):
        NearDuplicateIndex(path, 0.5)


def test_shingle_hashes_are_splitmix64_of_crc32_and_so_the_same_in_every_process():
    """Python's own hash differs from run to run; an index that is continued needs one that does not."""

    def scramble(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert scramble(0) == 0xE220A8397B1DCDAF  # first output of the published generator for seed 0
    expected = []
    for run in (("one", "two", "three"), ("two", "three", "four")):
        mixed = 0
        for word in run:
            mixed = scramble((mixed + zlib.crc32(word.encode())) % 2**64)
        expected.append(mixed)
    assert shingle_hashes(units("one two three four")).tolist() == expected
    assert shingle_hashes(units("two one three")).tolist() != shingle_hashes(units("one two three")).tolist()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_a_pair_at_the_threshold(threshold):
    bands, rows = bands_for(threshold, 128)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.98
    fewer = 128 // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** fewer < 0.98  # one more row would lose too many


@pytest.mark.parametrize("text", ["", "?!", "。", "a", "字"])
def test_texts_without_a_shingle_are_no_trouble(tmp_path, text):
    with NearDuplicateIndex(tmp_path / "near.db", 0.8) as index:
        assert index.add("a", text) is None
        assert index.add("b", text) == "a"


def test_exact_index_names_the_first(tmp_path):
    with ExactIndex(tmp_path / "exact.db") as index:
        assert index.add("line 1", "ab" * 32) is None
        assert index.add("line 2", "cd" * 32) is None
        assert index.add("line 3", "ab" * 32) == "line 1"
    with ExactIndex(tmp_path / "exact.db") as index:
        assert index.add("line 4", "cd" * 32) == "line 2"


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5])
def test_impossible_threshold_is_refused(tmp_path, threshold):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        NearDuplicateIndex(tmp_path / "near.db", threshold)


def test_a_file_that_is_no_index_is_refused_by_name(tmp_path):
    (tmp_path / "near.db").write_text("this is a letter to my aunt " * 50)
    with pytest.raises(UserError, match="near.db as an index of duplicates"):
        NearDuplicateIndex(tmp_path / "near.db", 0.8)


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def growth(tmp_path, *, warm: int, adds: int) -> float:
    """MiB that `adds` texts cost after the first `warm`."""
    draw = random.Random(1)
    with NearDuplicateIndex(tmp_path / "near.db", 0.8) as index:
        for number in range(warm):
            index.add(str(number), join(write(draw, "en", 20), "en"))
        before = resident()
        for number in range(warm, warm + adds):
            index.add(str(number), join(write(draw, "en", 20), "en"))
        return resident() - before


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc (Linux)")


@linux
def test_memory_stays_flat(tmp_path):
    assert growth(tmp_path, warm=3_000, adds=4_000) < 12  # the page cache may still fill up, to 16 MiB in all


@linux
@pytest.mark.slow
def test_memory_stays_flat_over_fifty_thousand_texts(tmp_path):
    # The same index in Python dictionaries needs more than 100 MiB: 18 buckets and 256 bytes a text.
    assert growth(tmp_path, warm=10_000, adds=50_000) < 12
