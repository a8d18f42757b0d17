"""Checks of a few sampled answers and of what the reward says of them (`rl`)."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tutelage.core.errors import RewardError, UserError
from tutelage.core.protocols import Judge
from tutelage.core.words import Prompt, Response
from tutelage.models.heads import lm_parts
from tutelage.preflight.findings import Finding, of
from tutelage.preflight.setup import Named, Setup, is_folder
from tutelage.text.chat import render_prompt
from tutelage.training.batch import collate, forward
from tutelage.training.rollouts import sampled_rows

LONG = "A longer answer says the same thing in more words, and then goes on to say it once more with other words. " * 2
PROBES = ("Yes.", "No, I do not think so.", LONG)  # answers that any reward should be able to tell apart


def endings(setup: Setup) -> Iterator[Finding]:
    responses = setup.responses
    if not responses:
        return
    if not setup.some_end:
        yield Finding(
            code="all-truncated", severity="warning",
            cause=f"all {len(responses)} sampled answers were cut off at max_tokens={setup.config.max_tokens}: every one gets "
                  "the score of an answer that never ended, so there may be nothing to learn from",
            cure="raise max_tokens; or begin from a model that has learned to stop (tutelage sft)",
            reference="C12; trl #3750, #5338, #2387")
    at_once = sum(len(response.token_ids or ()) <= 1 and response.finish == "stop" for response in responses)
    if at_once >= len(responses) / 2:
        yield Finding(
            code="empty-answers", severity="error" if at_once == len(responses) else "warning",
            cause=f"{of(at_once, len(responses))} sampled answers ended with their first token",
            cure="look at eos_token_id in the model's generation_config.json (a token that begins answers may stand among "
                 "them), and at the template's generation prompt", reference="C13; transformers #48016")


def identical_samples(setup: Setup) -> Iterator[Finding]:
    by_prompt: dict[str, set[tuple[int, ...]]] = {}
    for response in setup.responses:
        by_prompt.setdefault(response.prompt_id, set()).add(response.token_ids or ())
    longest = max((len(response.token_ids or ()) for response in setup.responses), default=0)
    alike = bool(by_prompt) and longest > 2 and all(len(texts) == 1 for texts in by_prompt.values())
    if alike and setup.config.responses_per_prompt > 1:
        yield Finding(
            code="identical-samples", severity="warning",
            cause=f"both answers to each of {len(by_prompt)} prompts are the same tokens: answers that do not differ cannot be "
                  "compared",
            cure=f"raise temperature (now {setup.config.temperature:g}), or begin from a model that has not collapsed",
            reference="RLHF_CORRECTNESS 4.6; ms-swift #4512, trl #3857")


def sampler_gap(setup: Setup) -> Iterator[Finding]:
    """What the sampler reports of its tokens against the trainer's own pass over them, at the same temperature."""
    spoken = [response for response in setup.responses if response.token_ids and response.logps is not None]
    if not spoken:
        return
    rows = sampled_rows({prompt.id: render_prompt(setup.tokenizer, prompt) for prompt in setup.asked}, spoken)
    model = setup.loaded.model
    batch = collate(rows, device=next(model.parameters()).device)
    decoder, lm_head, post = lm_parts(model)
    with torch.no_grad():
        ours_BT = forward(decoder, lambda hidden: post(lm_head(hidden)), batch.token_BT, batch.acted_BT,
                          temperature=setup.config.temperature, entropy=False).logp_BT
    ours_N = ours_BT[batch.acted_BT].cpu()
    theirs_N = torch.tensor([logp for response in spoken for logp in response.logps])
    ratio_gap = float(((ours_N - theirs_N).clamp(-20, 20).exp() - 1).abs().mean())
    gap = float((ours_N.exp() - theirs_N.exp()).abs().mean())
    exact = next(model.parameters()).dtype == torch.float32
    # SmolLM2-135M at temperature 0.7: 0.000 in float32; in bfloat16, which rounds to 3 digits, 0.033 and 0.009.
    wrong = ratio_gap > 0.01 if exact else gap > 0.02
    if wrong or (not exact and gap > 0.015):
        yield Finding(
            code="sampler-gap", severity="error" if wrong else "warning",
            cause="sampler and trainer disagree about what was sampled: the ratio of their probabilities is off by "
                  f"{ratio_gap:.3f} on average (probabilities by {gap:.4f}); it should be 1 before the first update",
            cure=("" if exact else "try dtype=float32; ") + "sample from the distribution that is trained: the same weights "
                 "and temperature, no top-k, top-p, minimum length or repetition penalty, no dropout; positions counted from "
                 "the first real token",
            reference="C2, C8, C9; trl #4159, #6789, #7269, #235, #925; OpenRLHF #217")


class Heard(NamedTuple):
    """Scores of the same answers: all at once, all at once again, and each alone."""

    together: list[float]
    again: list[float]
    alone: list[float]


def rewards(setup: Setup) -> Iterator[Finding]:
    """Each reward and the cost by itself, then what they come to together."""
    items = _items(setup)
    if not items:
        return
    groups = [len(responses) for _, responses in items]
    paid = [0.0] * sum(groups)
    for named in setup.judges():
        heard = _listen(named, items)
        if isinstance(heard, Finding):
            yield heard
            paid = []
            continue
        yield from _told_apart(named, heard, groups=groups, loose=0.25 if _is_coarse(named.judge) else 0.05)
        if named.key != "cost":
            paid = [total + named.weight * value for total, value in zip(paid, heard.together, strict=False)]
    yield from _cut_off(setup, paid)


def _listen(named: Named, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> Heard | Finding:
    judge, it = named.judge, f"{named.key}={named.name}"
    raises = "let it return a number for any answer, short ones and empty ones too"
    try:
        return Heard(_values(judge, items), _values(judge, items), [
            value for prompt, responses in items for each in responses for value in _values(judge, [(prompt, [each])])])
    except RewardError as error:
        return Finding(code="reward-raises", cause=f"{it}: {error}", cure=raises)
    except UserError as error:
        return Finding(code="reward-not-finite", cause=f"{it}: {error}", cure="let it return one finite number an answer",
                       reference="trl #878, #3236")
    except Exception as error:  # noqa: BLE001 - the user's own code may raise anything, and that is the finding
        return Finding(code="reward-raises", cause=f"{it} raises {type(error).__name__}: {error}", cure=raises)


def _cut_off(setup: Setup, paid: Sequence[float]) -> Iterator[Finding]:
    """score_clip counts standard deviations of normalised scores; of scores that are left as they are it counts their own units."""
    clip = setup.config.score_clip
    beyond = [score for score in paid if clip is not None and abs(score) > clip]
    if setup.config.normalise_on == 0 and len(beyond) > len(paid) / 10:
        yield Finding(
            code="score-clip", severity="warning",
            cause=f"{of(len(beyond), len(paid))} scores lie beyond score_clip={clip:g} (up to {max(beyond, key=abs):.3g}), and "
                  "normalise_on=0 leaves the reward on its own scale: all of them count as the same score",
            cure="leave normalise_on above 0, so that scores are in standard deviations; or set score_clip=null, or one that "
                 "suits the reward", reference="C20")


def _is_coarse(judge: Judge) -> bool:
    """Whether scores come from a network in half precision, which rounds differently in another batch."""
    network = getattr(judge, "network", None)
    return network is not None and next(network.parameters()).dtype != torch.float32


def _items(setup: Setup) -> list[tuple[Prompt, list[Response]]]:
    """Sampled answers, the references that prompts bring, and probes of several lengths."""
    sampled: dict[str, list[Response]] = {}
    for response in setup.responses:
        sampled.setdefault(response.prompt_id, []).append(response)
    out = []
    for at, prompt in enumerate(setup.asked):
        texts = [*prompt.references, *([prompt.label] if prompt.label else []), *(PROBES if at == 0 else ())]
        made = [Response(prompt_id=prompt.id, text=text, index=10 + number) for number, text in enumerate(texts)]
        out.append((prompt, [*sampled.get(prompt.id, []), *made]))
    return out


def _values(judge: Judge, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[float]:
    return [value for judgement in judge.judge(items) for value in judgement.values]


def _told_apart(named: Named, heard: Heard, *, groups: Sequence[int], loose: float) -> Iterator[Finding]:
    """Whether scores are numbers, tell answers apart, and belong to the answer alone.  groups: answers of each prompt."""
    key, name = named.key, named.name
    together, again, alone = heard
    broken = [value for value in (*together, *alone) if not math.isfinite(value)]
    if broken:
        yield Finding(code="reward-not-finite", cause=f"{key}={name} gives {broken[0]} for "
                                                      f"{of(len(broken), len(together + alone))} answers",
                      cure="mend the function; a reward model in float16 overflows: use float32 or bfloat16",
                      reference="trl #878, #3236; LLaMA-Factory #273")
        return
    spread = statistics.pstdev(together)
    if _is_constant(together, groups):
        learned = is_folder(name)
        score = "the same score to all answers to a prompt" if spread > 1e-6 else f"{together[0]:g} to {len(together)} answers"
        yield Finding(
            code="reward-constant", severity="error" if learned or spread > 1e-6 else "warning",
            cause=f"{key}={name} gives {score}, short or long, sampled or made up: every advantage will be 0",
            cure="score two different answers to one prompt by hand; a reward model may be read before the answer begins (pad "
                 "= eos), or all its labels may have been the same",
            reference="RLHF_CORRECTNESS 4.6; trl #3857, #3452; transformers #35352; ms-swift #4512")
        return
    tolerance = loose * spread + 1e-4
    noise = max(abs(a - b) for a, b in zip(together, again, strict=True))
    apart = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    if noise > tolerance:
        yield Finding(
            code="reward-noisy", severity="warning",
            cause=f"{key}={name} gives the same answers other scores when asked again: they differ by up to {noise:.3g}, and "
                  f"all scores have a standard deviation of {spread:.3g}",
            cure="seed it, or average several calls; a sampled judge should be asked at temperature 0")
    elif apart > tolerance:
        yield Finding(
            code="reward-batch",
            cause=f"{key}={name} scores an answer differently alone than beside others: by up to {apart:.3g}, and all scores "
                  f"have a standard deviation of {spread:.3g}; the score is probably read at the padding",
            cure="find the last real token by the attention mask and not by pad id, and give left-padded rows their position "
                 "ids",
            reference="C33; transformers #35352; trl #937, #2778; gpt-neox #1285; reward-bench #137")


def _is_constant(values: Sequence[float], groups: Sequence[int]) -> bool:
    """Whether answers to the same prompt never differ in their score, but for rounding."""
    start, widest = 0, 0.0
    for count in groups:
        of_prompt = values[start:start + count]
        widest = max(widest, max(of_prompt) - min(of_prompt)) if of_prompt else widest
        start += count
    return widest <= 1e-5 * max(1.0, *map(abs, values))
