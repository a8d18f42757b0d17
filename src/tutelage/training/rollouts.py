"""Answers to prompts, what judges say of them, and both as tensors: the first half of every on-policy step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from tutelage.core.errors import UserError
from tutelage.core.protocols import Engine, Judge
from tutelage.core.words import Judgement, Prompt, Response, Sampling
from tutelage.text.chat import render_prompt
from tutelage.text.mask import Row
from tutelage.text.pack import family_batches, micro_batches
from tutelage.training.actor_critic import Networks
from tutelage.training.batch import Held, Rollouts, collate
from tutelage.training.dense import span_rewards
from tutelage.training.on_policy import TrainState


class ScoreConfig(Protocol):
    temperature: float
    token_budget: int


def answer(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[Response]:
    """`sampling.n` responses to every prompt, in the order of the prompts and of the index."""
    found = {(r.prompt_id, r.index): r for r in engine.respond([(prompt, sampling) for prompt in prompts])}
    return [found[prompt.id, index] for prompt in prompts for index in range(sampling.n)]


def judge_all(judge: Judge, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Judgement]:
    """One Judgement a prompt, over its responses; a value that is not finite is refused by name of the prompt."""
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    out = judge.judge([(prompt, by_prompt[prompt.id]) for prompt in prompts])
    for prompt, judgement in zip(prompts, out, strict=True):
        if not all(math.isfinite(value) for value in (*judgement.values, *(span.value for span in judgement.spans))):
            raise UserError(f"the reward {judgement.judge} gave {judgement.values} for prompt {prompt.id[:12]} "
                            f"({prompt.messages[-1].text[:80]!r}); a reward must be a finite number")
    return out


def sampled_rows(prompt_ids: Mapping[str, list[int]], responses: Sequence[Response]) -> list[Row]:
    """The very tokens that were sampled behind those of their prompts (by prompt id), trained on alone (C3)."""
    return [Row(prompt_ids[r.prompt_id] + list(r.token_ids), [0.0] * len(prompt_ids[r.prompt_id]) + [1.0] * len(r.token_ids))
            for r in responses]


@torch.no_grad()
def logps_of(model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], responses: Sequence[Response],
             config: ScoreConfig) -> list[float]:
    """Log-prob under `model` of each response's own token ids, nats, at `config.temperature`."""
    networks = Networks(model, reference=None, heads=())
    rows = sampled_rows({prompt.id: render_prompt(tokenizer, prompt) for prompt in prompts}, responses)
    out = [0.0] * len(rows)
    for group in micro_batches([len(row.token_ids) for row in rows], token_budget=config.token_budget):
        batch = collate([rows[at] for at in group], device=next(model.parameters()).device)
        logp_BT = networks.forward(batch.token_BT, batch.acted_BT, temperature=config.temperature, entropy=False).logp_BT
        for at, logp in zip(group, logp_BT.sum(1).tolist(), strict=True):  # 0 where not acted
            out[at] = logp
    return out


def score(
    state: TrainState, prompts: Sequence[Prompt], responses: Sequence[Response], config: ScoreConfig, *,
    judgements: Sequence[Judgement] = (), policy: Literal["now", "held", "later"] = "now", entropy_grad: bool = False,
) -> Rollouts:
    """Log-probs under policy and reference, and values, of the very token ids that were sampled (C3).  No gradient.

    `judgements`: given by algorithms that credit single tokens, for the rewards on spans in them.  `policy`: "held" where the first
    update takes all rows at once: if one micro-batch has room for them, its forward pass is this one, kept with its gradient
    (`entropy_grad`: the entropy's, too).  "later" where there is one update and nothing is credited by what the policy says: that
    update's own passes write it.
    """
    networks, tokenizer = state.networks, state.engine.tokenizer
    device = next(networks.parameters()).device
    prompt_ids = {prompt.id: render_prompt(tokenizer, prompt) for prompt in prompts}
    number = {prompt.id: at for at, prompt in enumerate(prompts)}
    rows = sampled_rows(prompt_ids, responses)
    batch = collate(rows, device=device)
    sampler_BT, logp_BT, ref_BT, entropy_BT = (torch.zeros(batch.token_BT.shape, device=device) for _ in range(4))
    value_BT, cost_BT = (None if head is None else torch.zeros(batch.token_BT.shape, device=device)
                         for head in (networks.value_head, networks.cost_head))
    for at, (row, response) in enumerate(zip(rows, responses, strict=True)):
        start = len(row.token_ids) - len(response.token_ids)
        sampler_BT[at, start:len(row.token_ids)] = torch.tensor(response.logps, device=device)
    lengths, begins = [len(row.token_ids) for row in rows], [len(prompt_ids[r.prompt_id]) for r in responses]
    families = [number[r.prompt_id] for r in responses]
    groups = family_batches(lengths, begins, families, token_budget=config.token_budget, shared=networks.shares)
    hold, held = policy == "held" and len(groups) == 1, None
    with torch.no_grad():
        for group in groups:
            width = max(lengths[i] for i in group)
            token_BT, acted_BT = batch.token_BT[group, :width], batch.acted_BT[group, :width]
            found = [(ref_BT, networks.reference_logps(token_BT, acted_BT, temperature=config.temperature))]
            if policy != "later":
                with torch.set_grad_enabled(hold):
                    out = networks.forward(token_BT, acted_BT, temperature=config.temperature, entropy_grad=hold and entropy_grad)
                if hold:
                    held = Held(group, out)
                found += [(logp_BT, out.logp_BT), (entropy_BT, out.entropy_BT), (value_BT, out.value_BT), (cost_BT, out.cost_value_BT)]
            for whole_BT, part_BT in found:
                if whole_BT is not None:
                    whole_BT[group, :width] = part_BT
    return Rollouts(
        token_BT=batch.token_BT, real_BT=batch.real_BT, acted_BT=batch.acted_BT, sampler_logp_BT=sampler_BT, logp_BT=logp_BT,
        ref_logp_BT=ref_BT, value_BT=value_BT, cost_value_BT=cost_BT, entropy_BT=entropy_BT,
        group_B=torch.tensor([number[r.prompt_id] for r in responses], device=device),
        stopped_B=torch.tensor([not r.is_truncated() for r in responses], device=device),
        dense_BT=span_rewards(tokenizer, responses, judgements, batch.acted_BT) if any(j.spans for j in judgements) else None,
        held=held, scored=policy != "later")
