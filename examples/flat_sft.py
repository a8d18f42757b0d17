"""Supervised fine-tuning with nothing hidden: one file, one loop, no trainer.  Read it from top to bottom.

    python examples/flat_sft.py --model smollm2-135m --steps 60 --out flat-sft

What the full loop (src/tutelage/training/sft.py) adds: LM head on trained tokens only and in chunks, micro-batches by
token budget, float32 masters for bfloat16 weights, evaluation, best weights, checkpoints that survive a kill.

B = conversations of a step, T = token positions.
"""

import argparse
import random
import time

import torch
import torch.nn.functional as F

from tutelage.data import starter
from tutelage.models.load import load, save


def tokenise(tokenizer, example):
    """Token ids of a conversation, and for each whether it is the assistant's (turn end included)."""
    ids, trained = [], []
    text = ""
    messages = [{"role": message.role, "content": message.text} for message in example.messages]
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # what stands before the answer ends with the generation prompt: that is where sampling begins, too
        before = tokenizer.apply_chat_template(messages[:at], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: at + 1], tokenize=False)
        answer = after[len(before):].rstrip("\n")  # the newline after the turn end is the template's, not the answer's
        context_ids = tokenizer(before[len(text):], add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += context_ids + answer_ids
        trained += [False] * len(context_ids) + [True] * len(answer_ids)
        text = before + answer
    return ids, trained


def collate(rows):
    """Right-padded tensors.  Padding is told apart by position: the pad id may well be the eos id."""
    width = max(len(ids) for ids, _ in rows)
    token_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    trained_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, (ids, trained) in enumerate(rows):
        token_BT[at, :len(ids)] = torch.tensor(ids)
        trained_BT[at, :len(ids)] = torch.tensor(trained)
    return token_BT, trained_BT


def mean_loss(model, token_BT, trained_BT):
    """Mean cross-entropy (nats) of the trained tokens."""
    # right padding under causal attention needs no mask: a real token never looks to its right
    logits_BTV = model(input_ids=token_BT).logits[:, :-1].float()
    target_BT, counted_BT = token_BT[:, 1:], trained_BT[:, 1:]  # position t - 1 predicts token t
    return F.cross_entropy(logits_BTV[counted_BT], target_BT[counted_BT])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8, help="conversations of a step")
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="folder for the result; empty: nothing is saved")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    loaded = load(args.model, dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    torch.set_float32_matmul_precision("medium")

    rows = [tokenise(tokenizer, example) for example in starter.instructions()]
    random.Random(args.seed).shuffle(rows)
    held_out, rows = rows[:16], rows[16:]

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.0, (args.steps - step) / max(1, args.steps - warmup))))

    def evaluate():
        with torch.no_grad():
            return float(mean_loss(model, *collate(held_out)))

    print(f"step 0: held-out loss {evaluate():.4f}")
    for step in range(args.steps):
        begun = time.time()
        at = (step * args.rows) % max(1, len(rows) - args.rows)
        loss = mean_loss(model, *collate(rows[at:at + args.rows]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        print(f"step {step + 1}/{args.steps}: loss {float(loss.detach()):.4f}, {time.time() - begun:.1f} s")
    print(f"step {args.steps}: held-out loss {evaluate():.4f}")

    if args.out:
        save(model, tokenizer, args.out, manifest={"kind": "sft", "base": args.model, "made_by": "examples/flat_sft.py"})
        print(f"saved to {args.out}; try it: tutelage chat {args.out}")


if __name__ == "__main__":
    main()
