"""PPO on a language model with nothing hidden: sample, score, GAE, clipped update.  Read it from top to bottom.

    python examples/flat_ppo.py --model smollm2-135m --steps 20

The reward is a rule that anybody can check: the share of an answer's words that are in a small list of polite words,
and nothing for an answer that never ended.  What the full loop (src/tutelage/training/ppo.py) adds: reward models, LoRA
with the reference in the same trunk, a sampler that is fast, micro-batches, checkpoints.

Schulman et al. 2017 (https://arxiv.org/abs/1707.06347); Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593).
B = responses, T = token positions; column t belongs to the choice of token t.
"""

import argparse
import copy
import random

import torch
from torch import nn

from tutelage.data import starter
from tutelage.models.load import load

POLITE = {"please", "thank", "thanks", "welcome", "glad", "happy", "sorry", "help", "sure", "kindly", "appreciate", "great"}


def reward_of(text, stopped):
    """1 for three polite words or more, less for fewer, -1 for an answer that the length limit cut off."""
    words = [word.strip(".,!?").lower() for word in text.split()]
    return min(1.0, sum(word in POLITE for word in words) / 3) if stopped else -1.0


@torch.no_grad()
def sample(model, prompt_ids, stop_id, length, generator):
    """One answer, token by token, at temperature 1 with no filter: the policy that is trained is the one sampled from."""
    ids, cache, answer = torch.tensor([prompt_ids]), None, []
    for _ in range(length):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        probability_V = out.logits[0, -1].float().softmax(-1)
        token = int(torch.multinomial(probability_V, 1, generator=generator))
        answer.append(token)
        if token == stop_id:
            break
        ids = torch.tensor([[token]])
    return answer


def collate(prompts, answers):
    """Right-padded tokens, and True where the policy chose the token (its stop token included)."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    token_BT = torch.zeros(len(prompts), width, dtype=torch.int64)
    acted_BT = torch.zeros(len(prompts), width, dtype=torch.bool)
    for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        token_BT[at, :len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        acted_BT[at, len(prompt):len(prompt) + len(answer)] = True
    return token_BT, acted_BT


def logps_and_values(model, value_head, token_BT, acted_BT):
    """Log-probability and value of every acted token, 0 elsewhere; both come from the hidden state one column before."""
    out = model(input_ids=token_BT, output_hidden_states=True)
    logp_BTV = out.logits[:, :-1].float().log_softmax(-1)
    logp_BT = torch.zeros(token_BT.shape).index_copy(1, torch.arange(1, token_BT.shape[1]),
                                                     logp_BTV.gather(2, token_BT[:, 1:, None])[..., 0])
    if value_head is None:
        return torch.where(acted_BT, logp_BT, 0.0), None
    value_BT = torch.zeros(token_BT.shape).index_copy(1, torch.arange(1, token_BT.shape[1]),
                                                      value_head(out.hidden_states[-1][:, :-1].float())[..., 0])
    return torch.where(acted_BT, logp_BT, 0.0), torch.where(acted_BT, value_BT, 0.0)


def gae(reward_BT, value_BT, acted_BT, lam=0.95):
    """Schulman et al. 2016, eq. 16, at gamma = 1.  Answers are one unbroken run of acted tokens here."""
    advantage_BT = torch.zeros_like(reward_BT)
    next_value_B = next_advantage_B = torch.zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        delta_B = reward_BT[:, t] + next_value_B - value_BT[:, t]
        advantage_BT[:, t] = torch.where(acted_BT[:, t], delta_B + lam * next_advantage_B, 0.0)
        next_value_B = torch.where(acted_BT[:, t], value_BT[:, t], 0.0)
        next_advantage_B = advantage_BT[:, t]
    return advantage_BT, torch.where(acted_BT, advantage_BT + value_BT, 0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step; each is answered twice")
    parser.add_argument("--length", type=int, default=32, help="longest answer, in tokens")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.05, help="KL penalty, per nat")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    loaded = load(args.model, dtype="float32")
    policy, tokenizer = loaded.model, loaded.tokenizer
    reference = copy.deepcopy(policy).requires_grad_(False)
    value_head = nn.Linear(policy.config.hidden_size, 1)
    nn.init.zeros_(value_head.weight)
    nn.init.zeros_(value_head.bias)
    optimizer = torch.optim.AdamW([*policy.parameters(), *value_head.parameters()], lr=args.learning_rate, eps=1e-5,
                                  betas=(0.9, 0.95), weight_decay=0.0)
    stop_id = tokenizer.eos_token_id
    questions = [tokenizer.apply_chat_template([{"role": "user", "content": example.messages[0].text}], tokenize=False,
                                               add_generation_prompt=True)
                 for example in starter.instructions() if example.messages[0].role == "user" and "lang:en" in example.tags]
    question_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in questions]

    for step in range(args.steps):
        # answer
        picked = random.Random(f"{args.seed}/{step}").sample(question_ids, args.prompts)
        prompts = [ids for ids in picked for _ in range(2)]
        answers = [sample(policy, ids, stop_id, args.length, generator) for ids in prompts]
        # judge
        score_B = torch.tensor([reward_of(tokenizer.decode(a, skip_special_tokens=True), a[-1] == stop_id) for a in answers])
        # score the sampled ids under policy and reference
        token_BT, acted_BT = collate(prompts, answers)
        with torch.no_grad():
            old_logp_BT, old_value_BT = logps_and_values(policy, value_head, token_BT, acted_BT)
            ref_logp_BT, _ = logps_and_values(reference, None, token_BT, acted_BT)
        # credit: the KL penalty at every token, the score at the last one
        kl_BT = old_logp_BT - ref_logp_BT
        last_B = torch.where(acted_BT, torch.arange(token_BT.shape[1]), -1).amax(1)
        reward_BT = -args.beta * kl_BT
        reward_BT[torch.arange(len(last_B)), last_B] += score_B
        advantage_BT, return_BT = gae(reward_BT, old_value_BT, acted_BT)
        mean, var = advantage_BT[acted_BT].mean(), advantage_BT[acted_BT].var(unbiased=False)
        advantage_BT = (advantage_BT - mean) / (var + 1e-8).sqrt()
        # improve: two passes over the same answers
        for _ in range(2):
            logp_BT, value_BT = logps_and_values(policy, value_head, token_BT, acted_BT)
            ratio_BT = (logp_BT - old_logp_BT).clamp(-20, 20).exp()
            policy_BT = -torch.minimum(ratio_BT * advantage_BT, ratio_BT.clamp(0.8, 1.2) * advantage_BT)
            near_BT = old_value_BT + (value_BT - old_value_BT).clamp(-0.2, 0.2)
            value_loss_BT = 0.5 * torch.maximum((value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2)
            # where, not *: an uncounted position may hold anything
            loss = torch.where(acted_BT, policy_BT + 0.1 * value_loss_BT, 0.0).sum() / acted_BT.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*policy.parameters(), *value_head.parameters()], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(f"step {step + 1}/{args.steps}: reward {score_B.mean():.3f}, KL {kl_BT.sum(1).mean():.3f} nats a response, "
              f"length {acted_BT.sum(1).float().mean():.1f}", flush=True)


if __name__ == "__main__":
    main()
