"""New instructions from old ones by any engine: Self-Instruct (Wang et al. 2022, https://arxiv.org/abs/2212.10560).

A round shows the engine a few instructions, reads the new ones out of its list, filters them against everything that is
there already, has the rest answered, and adds what is left to what later rounds are shown.

Departures from the paper:
1. No classification of tasks and no separate inputs (sections 2.2, step 2 and 3): one answer an instruction.
2. A quarter of what is shown comes from the new instructions (the paper: 2 of 8).
3. "Write a program" is not refused; the paper's models could not answer it, today's can.
4. English and Chinese: a prompt shows instructions of one language; similarity counts words, or single characters.
5. An answer that was cut off, failed or is empty takes its instruction with it.
"""

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, read_jsonl, sha256_bytes
from tutelage.core.protocols import Engine, Progress, silent
from tutelage.core.words import Example, Message, Prompt, Response, Sampling
from tutelage.data.dedupe import units
from tutelage.data.language import detect_language

ASK = Sampling(max_tokens=256, temperature=0.9, top_p=0.95)
ANSWER = Sampling(max_tokens=256, temperature=0.0)
_NEW = 4  # instructions asked for at a time
_FEWEST, _MOST = {"en": 4, "zh": 5}, {"en": 150, "zh": 250}  # words (paper: more than 3, at most 150); characters
_FRUITLESS = 20  # rounds in a row without a single new instruction before we give up
_BLOCKED = {  # what a text model cannot look at or do; the English list is that of the paper's code
    "en": ("image", "images", "picture", "pictures", "graph", "graphs", "file", "files", "map", "maps", "draw", "plot",
           "video", "videos", "audio", "music", "flowchart", "diagram"),
    "zh": ("图片", "图像", "照片", "图表", "文件", "地图", "画一", "绘制", "视频", "音频", "音乐", "流程图"),
}
_FRAME = {
    "en": ("Here are some tasks for an assistant:\n", "Task {}: {}",
           "\nWrite {} new and different tasks of the same kind, one a line, as a numbered list. "
           "Each must be clear without further context. Do not answer them."),
    "zh": ("下面是给助手的一些任务：\n", "任务{}：{}",
           "\n请再写{}个新的、各不相同的同类任务，每行一个，用编号列出。每个任务不需要其他背景也能看懂。不要回答它们。"),
}
_NUMBERED = re.compile(r"^\s*(?:(?:task|任务)\s*)?\d{1,3}\s*[.):：、）]\s*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandReport:
    """What came of it.  `rejected` counts instructions per reason."""

    kept: list[Example]
    rejected: Counter
    rounds: int
    enough: bool  # False: gave up after 20 rounds in a row without a new instruction


def expand(
    seeds: list[Example], engine: Engine, *, wanted: int, seed: int, per_prompt: int = 4, similarity: float = 0.7,
    progress: Progress = silent, at_once: int = 8, ask: Sampling = ASK, answer: Sampling = ANSWER,
    output: Path | None = None,
) -> ExpandReport:
    """Ask `engine` for new instructions and answers until `wanted` are kept.

    `per_prompt`: instructions shown in one prompt; `at_once`: prompts in a round; `similarity`: ROUGE-L F1 above which
    an instruction is too close to one that is there.  With `output`, each round is a line of that file, and a second
    call goes on behind the last whole line, to the same end as a call that was never interrupted.
    """
    _check(seeds, wanted=wanted, per_prompt=per_prompt, similarity=similarity)
    pool = _Pool(similarity)
    for example in seeds:
        pool.add(_instruction(example))
    licenses = {example.license for example in seeds}
    license = licenses.pop() if len(licenses) == 1 else ""
    own = {"seed": seed, "policy": engine.policy, "per_prompt": per_prompt, "similarity": similarity,
           "at_once": at_once, "ask": ask.to_dict(), "answer": answer.to_dict(),
           "seeds": sha256_bytes(canonical_json([example.to_dict() for example in seeds]).encode("utf-8"))}
    kept: list[Example] = []
    rejected: Counter = Counter()
    number = fruitless = 0
    for line in _earlier_rounds(output, own):
        for text in line["tried"]:
            pool.add(text)
        new = [Example.from_dict(row) for row in line["kept"]]
        kept += new
        rejected += Counter(line["rejected"])
        fruitless = 0 if new else fruitless + 1
        number = line["round"] + 1
    while len(kept) < wanted and fruitless < _FRUITLESS:
        draw = random.Random(f"{seed}/{number}")  # by round: a resumed call draws what the first would have drawn
        shown = [_show(seeds, kept, draw, per_prompt) for _ in range(at_once)]
        reasons: Counter = Counter()
        fresh = []
        for text in _ask(engine, shown, replace(ask, seed=seed, step=number), reasons):
            reason = pool.refuse(text)
            if reason:
                reasons[reason] += 1
            else:
                pool.add(text)
                fresh.append(text)
        new = _answer(engine, fresh, replace(answer, seed=seed, step=number), reasons, license=license)
        new = new[:wanted - len(kept)]
        kept += new
        rejected += reasons
        fruitless = 0 if new else fruitless + 1
        _write(output, {"round": number, "kept": [example.to_dict() for example in new], "tried": fresh,
                        "rejected": dict(reasons)})
        number += 1
        progress("expand", len(kept), wanted)
    return ExpandReport(kept=kept, rejected=rejected, rounds=number, enough=len(kept) >= wanted)


def _check(seeds: Sequence[Example], *, wanted: int, per_prompt: int, similarity: float) -> None:
    if not seeds:
        raise UserError("expand needs at least one seed example; got none")
    if wanted < 1 or per_prompt < 1:
        raise UserError(f"expand: wanted and per_prompt must be at least 1; got {wanted} and {per_prompt}")
    if not 0 < similarity <= 1:
        raise UserError(f"expand: similarity is a ROUGE-L F1 above 0 and at most 1; got {similarity}; try 0.7")


def _instruction(example: Example) -> str:
    return next((m.text for m in example.messages if m.role == "user"), "")


# Asking

def _show(seeds: Sequence[Example], kept: Sequence[Example], draw: random.Random, per_prompt: int) -> Prompt:
    """A prompt with `per_prompt` instructions of one language, that of a seed drawn at random."""
    first = _instruction(draw.choice(seeds))
    lang = _language(first)
    own = [text for text in map(_instruction, seeds) if text != first and text and _language(text) == lang]
    new = [text for text in map(_instruction, kept) if _language(text) == lang]
    from_new = draw.sample(new, min(len(new), per_prompt // 4))
    from_own = draw.sample(own, min(len(own), per_prompt - 1 - len(from_new)))
    shown = [first, *from_own, *from_new]
    draw.shuffle(shown)
    head, line, tail = _FRAME[lang]
    lines = [line.format(number, " ".join(text.split())) for number, text in enumerate(shown, start=1)]
    text = head + "\n".join(lines) + tail.format(_NEW)
    return Prompt(messages=(Message(role="user", text=text),), tags=(f"lang:{lang}",))


@functools.lru_cache(maxsize=65_536)
def _language(text: str) -> str:
    return "zh" if detect_language(text) == "zh" else "en"


def _ask(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, reasons: Counter) -> list[str]:
    """New instructions in the order of the prompts, whatever order the engine answers in."""
    texts = []
    for response in _respond(engine, prompts, sampling):
        if response is None or response.finish == "error":
            reasons["failed"] += 1
            continue
        found = parse_instructions(response.text)
        if response.is_truncated() and found:  # the last one has no end
            found.pop()
            reasons["cut off"] += 1
        texts += found
    return texts


def _respond(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[Response | None]:
    unique = {prompt.id: prompt for prompt in prompts}
    answers = {response.prompt_id: response for response in engine.respond([(p, sampling) for p in unique.values()])}
    return [answers[key] if key in answers else None for key in unique]


def parse_instructions(text: str) -> list[str]:
    """Items of a numbered list.  What stands before the first number is chatter; a text without numbers has none.

    >>> parse_instructions("Sure!\\n1. Name three rivers.\\n2) Explain rain\\nto a child.")
    ['Name three rivers.', 'Explain rain to a child.']
    """
    starts = list(_NUMBERED.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    items = [" ".join(text[match.end():end].split()) for match, end in zip(starts, ends, strict=False)]
    return [item for item in items if item]


def _answer(
    engine: Engine, texts: Sequence[str], sampling: Sampling, reasons: Counter, *, license: str
) -> list[Example]:
    prompts = [Prompt(messages=(Message(role="user", text=text),)) for text in texts]
    out = []
    for prompt, response in zip(prompts, _respond(engine, prompts, sampling), strict=True):
        if response is None or response.finish == "error" or not response.text.strip():
            reasons["unanswered"] += 1
        elif response.is_truncated():
            reasons["answer cut off"] += 1
        else:
            messages = (*prompt.messages, Message(role="assistant", text=response.text.strip()))
            out.append(Example(messages=messages, author=f"model:{engine.policy}", source="expand", license=license,
                               tags=(f"lang:{_language(prompt.messages[0].text)}",)))
    return out


# Filtering

class _Pool:
    """All instructions so far, and the rule for a new one."""

    def __init__(self, similarity: float):
        self._similarity = similarity
        self._units: list[list[str]] = []
        self._texts: set[tuple[str, ...]] = set()

    def add(self, text: str) -> None:
        words = units(text)
        self._texts.add(tuple(words))
        self._units.append(words)

    def refuse(self, text: str) -> str | None:
        """Why not, in a word or two; None when the instruction is new and usable."""
        lang, words = _language(text), units(text)
        if not text[:1].isalpha():
            return "odd start"
        if len(words) < _FEWEST[lang]:
            return "too short"
        if len(words) > _MOST[lang]:
            return "too long"
        if set(words) & set(_BLOCKED["en"]) or any(word in text for word in _BLOCKED["zh"]):
            return "blocked word"
        if tuple(words) in self._texts:
            return "duplicate"
        if any(rouge_l(words, other, at_least=self._similarity) > self._similarity for other in self._units):
            return "too similar"
        return None


def rouge_l(a: Sequence[str], b: Sequence[str], *, at_least: float = 0.0) -> float:
    """ROUGE-L F1 (Lin 2004): twice the longest common subsequence over the sum of the lengths.

    Where it cannot exceed `at_least`, an upper bound is returned instead, which costs less.

    >>> round(rouge_l("the cat sat on the mat".split(), "the cat lay on the mat".split()), 3)
    0.833
    """
    if not a or not b:
        return 0.0
    shared = sum((Counter(a) & Counter(b)).values()) if at_least else len(a)
    bound = 2 * min(shared, len(a), len(b)) / (len(a) + len(b))
    return bound if bound <= at_least else 2 * _lcs(a, b) / (len(a) + len(b))


def _lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for position, word in enumerate(a):
        places[word] = places.setdefault(word, 0) | 1 << position
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        matched = row & places.setdefault(word, 0)
        row = ((row + matched) | (row - matched)) & everything
    return len(a) - row.bit_count()


# Going on after an interruption

def _earlier_rounds(output: Path | None, own: dict) -> list[dict]:
    """Whole lines of an output file, which is begun where there is none; a torn last line is cut off."""
    if output is None:
        return []
    data = output.read_bytes() if output.exists() else b""
    whole = data[:data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(output, "r+b") as file:
            file.truncate(len(whole))
    if not whole:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write(output, own)
        return []
    first, *rounds = read_jsonl(output)
    if first != json.loads(json.dumps(own)):
        raise UserError(f"{output} holds another expansion ({first}); this one is {own}; name another output file")
    return rounds


def _write(output: Path | None, row: dict) -> None:
    if output is not None:
        with open(output, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
