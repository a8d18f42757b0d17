"""The same work done by a peer, in the peer's own environment; the last line printed is JSON.

    trl-env/bin/python benchmarks/peer.py FOLDER WORK SETTING [SEED]

TRL 1.16 for all but PPO, whose last series was TRL 1.11; transformers' generate for sampling.  What each peer is given beyond
its defaults is what was found to be fastest on a CPU (docs/benchmarks.md, "Settings tried").
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from datasets import Dataset
from rows import CURVE, LEARN, OPTIM, PAIRS, RL, SAMPLING, SFT, Meter, distinct_share, kindness, result
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

PRECISION = {
    "bf16-autocast": ({"bf16": True}, torch.float32),
    "bf16-pure": ({"bf16": False}, torch.bfloat16),
    "fp32": ({"bf16": False}, torch.float32),
}


class Timer(TrainerCallback):
    """Seconds from the end of a step to the end of the next."""

    def __init__(self, **amounts: float):
        self.meter, self.amounts, self.losses, self.rewards = Meter(), amounts, [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.meter.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.step(**self.amounts)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
        for name in ("objective/scores", "reward"):
            if logs and name in logs:
                self.rewards.append(logs[name])


def common(out: str, setting: str) -> dict[str, Any]:
    flags, _ = PRECISION[setting]
    return {"output_dir": out, "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1, "num_train_epochs": 1,
            "gradient_checkpointing": False, "learning_rate": OPTIM["learning_rate"], "lr_scheduler_type": "constant",
            "adam_beta1": OPTIM["betas"][0], "adam_beta2": OPTIM["betas"][1], "adam_epsilon": OPTIM["eps"],
            "max_grad_norm": OPTIM["clip"], "optim": "adamw_torch_fused", "dataloader_pin_memory": False, "disable_tqdm": True,
            "seed": 0, **flags}


def model_of(place: Path, name: str, setting: str, kind: Any = AutoModelForCausalLM, **more: Any):
    return kind.from_pretrained(place / name, dtype=PRECISION[setting][1], attn_implementation="sdpa", **more)


def in_order(trainer):
    """The rows as they stand in work.json."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(dataset if dataset is not None else trainer.train_dataset)
    return trainer


def run_sft(place: Path, work: dict, setting: str, out: str, *, curve: bool = False) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    class Counting(SFTTrainer):
        seen, trained = [], 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            real = inputs.get("attention_mask")
            self.seen.append(int(real.sum()) if real is not None else int((inputs["labels"] >= -100).sum()))
            type(self).trained += int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    packed = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": SFT["blocks_per_step"]}
    alone = {"packing": False, "per_device_train_batch_size": CURVE["rows_per_step"]}
    rows = [work["sft"][at] for at in work["curve"]] if curve else work["sft"]
    args = SFTConfig(**common(out, setting), **(alone if curve else packed), max_length=SFT["block"], completion_only_loss=True)
    timer = Timer()
    trainer = Counting(model_of(place, "base", setting), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                       callbacks=[timer])
    (in_order(trainer) if curve else trainer).train()
    steps = [{**step, "tokens": tokens} for step, tokens in zip(timer.meter.steps, trainer.seen, strict=True)]
    return result(steps, trained=Counting.trained, tokens=sum(trainer.seen), loss=timer.losses, rows=len(work["sft"]))


def run_pairs(place: Path, work: dict, setting: str, out: str, kind: str) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    timer = Timer(pairs=PAIRS["per_step"])
    sizes = {"per_device_train_batch_size": PAIRS["per_step"], "max_length": PAIRS["max_tokens"]}
    if kind == "reward":
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        rows = [{"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
                for row in work["pairs"]]
        model = model_of(place, "base", setting, AutoModelForSequenceClassification, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(model, args=RewardConfig(**common(out, setting), **sizes), train_dataset=Dataset.from_list(rows),
                                processing_class=tokenizer, callbacks=[timer])
    else:
        class Ready(DPOTrainer):
            def _prepare_dataset(self, dataset, *args, **kwargs):
                return dataset  # the token ids of work.json as they are

        trainer = Ready(model_of(place, "base", setting), ref_model=model_of(place, "base", setting),
                        args=DPOConfig(**common(out, setting), **sizes, beta=0.1), train_dataset=Dataset.from_list(work["pairs"]),
                        processing_class=tokenizer, callbacks=[timer])
    in_order(trainer).train()
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in work["pairs"])
    return result(timer.meter.steps, tokens=tokens, loss=timer.losses, rows=len(work["pairs"]))


def learning_settings(kind: str, seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the answers of a run are, and what differs from `common` where it is one of learning.py (`seed`)."""
    return (RL, {}) if seed is None else (LEARN[kind], {"seed": seed, "learning_rate": LEARN[kind]["learning_rate"]})


def run_group(place: Path, work: dict, setting: str, out: str, kind: str, *, learning: int | None = None) -> dict[str, Any]:
    import trl

    how, more = learning_settings(kind, learning)
    if learning is not None and kind == "grpo":
        more["loss_type"] = "grpo"  # the mean over answers of the mean over tokens, as here; TRL's default weighs tokens alike
    config, trainer_of = ((trl.GRPOConfig, trl.GRPOTrainer) if kind == "grpo" else (trl.RLOOConfig, trl.RLOOTrainer))
    tokenizer = AutoTokenizer.from_pretrained(place / "endless")
    lengths: list[int] = []

    def reward(prompts, completions, completion_ids, **kwargs):
        lengths.extend(len(ids) for ids in completion_ids)
        return distinct_share(prompts, completions) if learning is None else [kindness(text) for text in completions]

    rows = [{"prompt": row["prompt"]} for row in work["prompts"][:how["prompts_per_step"] * how["steps"]]]
    n = how["prompts_per_step"] * how["responses_per_prompt"]
    timer = Timer(responses=n)
    args = config(**common(out, setting) | more, per_device_train_batch_size=n, num_generations=how["responses_per_prompt"],
                  max_completion_length=how["tokens"], beta=how["beta"], temperature=1.0, num_iterations=1, steps_per_generation=1)
    trainer = trainer_of(model_of(place, "endless", setting), args=args, reward_funcs=reward, train_dataset=Dataset.from_list(rows),
                         processing_class=tokenizer, callbacks=[timer])
    trainer.train()
    length = sum(lengths) / len(lengths)
    return result([{**step, "length": length} for step in timer.meter.steps], loss=timer.losses, reward=timer.rewards)


class Rule(torch.nn.Module):
    """`kindness` in the shape of a reward model: its "hidden states" are the token ids, its scores the rule's word on the answer."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.backbone = self.ids_as_states

    @staticmethod
    def ids_as_states(input_ids, **kwargs):
        return SimpleNamespace(hidden_states=[input_ids.double()[..., None]])

    def score(self, hidden):
        texts = self.tokenizer.batch_decode(hidden[..., 0].long(), skip_special_tokens=True)
        scores = torch.tensor([kindness(text.rpartition("assistant:")[2]) for text in texts])
        return scores[:, None, None].expand(*hidden.shape[:2], 1)


def run_ppo(place: Path, work: dict, setting: str, out: str, *, learning: int | None = None) -> dict[str, Any]:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    how, more = learning_settings("ppo", learning)
    tokenizer = AutoTokenizer.from_pretrained(place / "endless", padding_side="left")
    tokenizer.pad_token = "<repo_name>"
    n = how["prompts_per_step"] * how["responses_per_prompt"]
    rows = [{"input_ids": row["ids"]} for row in work["prompts"][:how["prompts_per_step"] * how["steps"]]
            for _ in range(how["responses_per_prompt"])]
    timer = Timer(responses=n, length=how["tokens"])
    args = PPOConfig(**common(out, setting) | more, per_device_train_batch_size=n, gradient_accumulation_steps=1, num_mini_batches=1,
                     total_episodes=n * how["steps"], num_ppo_epochs=how["ppo_epochs"], response_length=how["tokens"],
                     local_rollout_forward_batch_size=n, temperature=1.0, kl_coef=how["beta"], num_sample_generations=0,
                     missing_eos_penalty=None)
    value = model_of(place, "reward", setting, AutoModelForSequenceClassification, num_labels=1)
    judge = model_of(place, "reward", setting, AutoModelForSequenceClassification, num_labels=1) if learning is None else Rule(tokenizer)
    policy, reference = (model_of(place, "endless", setting) for _ in range(2))
    dataset = Dataset.from_list(rows)
    trainer = PPOTrainer(args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=judge, value_model=value,
                         train_dataset=dataset, eval_dataset=dataset.select(range(n)), callbacks=[timer])
    timer.meter.start()
    trainer.train()
    return result(timer.meter.steps, reward=timer.rewards)


def run_sampling(place: Path, work: dict, setting: str, kind: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(place / "endless", padding_side="left")
    tokenizer.pad_token = "<repo_name>"
    model = AutoModelForCausalLM.from_pretrained(
        place / "endless", dtype=torch.bfloat16 if setting == "bf16" else torch.float32, attn_implementation="sdpa").eval()
    rows = SAMPLING["mixed_rows"] if kind == "sample-mixed" else int(kind.removeprefix("sample-"))
    rng = random.Random(0)
    lengths = ([min(SAMPLING["mixed_longest"], 4 + round(rng.expovariate(1 / 36))) for _ in range(rows)] if kind == "sample-mixed"
               else [SAMPLING["tokens"]] * rows)
    batch = tokenizer([row["prompt"] for row in work["prompts"][:rows]], return_tensors="pt", padding=True)
    meter = Meter()
    for number in range(SAMPLING["rounds"]):
        torch.manual_seed(number)
        meter.start()
        with torch.inference_mode():
            out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max(lengths),
                                 min_new_tokens=max(lengths), pad_token_id=tokenizer.pad_token_id)
        assert out.shape[1] - batch["input_ids"].shape[1] == max(lengths)
        meter.step(tokens=sum(lengths))  # useful ones: of each answer up to its own end
    return result(meter.steps)


def main() -> None:
    place, kind, setting = Path(sys.argv[1]), sys.argv[2], sys.argv[3].rpartition(":")[2]
    work = json.loads((place / "work.json").read_text(encoding="utf-8"))
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as out:
        if kind in ("sft", "curve"):
            found = run_sft(place, work, setting, out, curve=kind == "curve")
        elif kind in ("reward", "dpo"):
            found = run_pairs(place, work, setting, out, kind)
        elif kind in ("grpo", "rloo"):
            found = run_group(place, work, setting, out, kind)
        elif kind == "ppo":
            found = run_ppo(place, work, setting, out)
        elif kind == "learn-ppo":
            found = run_ppo(place, work, setting, out, learning=int(sys.argv[4]))
        elif kind == "learn-grpo":
            found = run_group(place, work, setting, out, "grpo", learning=int(sys.argv[4]))
        else:
            found = run_sampling(place, work, setting, kind)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if not kind.startswith("sample"):
        import trl

        versions["trl"] = trl.__version__
    print(json.dumps({**found, "versions": versions}))


if __name__ == "__main__":
    main()
