"""The inputs of the benchmarks, written to disk once, so that both sides read the same token ids.

    folder/work.json     rows, pairs and prompts as token ids (and prompts as text)
    folder/base          SmolLM2-135M-Instruct in float32
    folder/endless       the same with a plain chat template and an end token that it does not say: every answer has all its tokens
    folder/reward        a reward model with a fresh head, for PPO

Everything comes from the starter data.
"""

import json
from pathlib import Path

from rows import CURVE, PAIRS, RL, SAMPLING, SFT

from tutelage.core.words import Example, Preference, Prompt
from tutelage.data import starter
from tutelage.models.heads import reward_model, save_scalar
from tutelage.models.load import load, save
from tutelage.text.chat import render, render_prompt
from tutelage.text.mask import answer_row, rows_of
from tutelage.text.pack import epochs_of_steps

PLAIN = ("{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}")
NEVER = "<file_sep>"


def examples() -> list[Example]:
    return list(starter.instructions())[:SFT["rows_per_step"] * SFT["steps"]]


def pairs() -> list[Preference]:
    """Pairs of distinct prompts: a prompt of several pairs would share its tokens here and not elsewhere."""
    found = {pair.prompt.id: pair for pair in starter.preferences()}
    return list(found.values())[:PAIRS["per_step"] * PAIRS["steps"]]


def prompts(count: int) -> list[Prompt]:
    """Distinct single questions."""
    found = {pair.prompt.id: pair.prompt for pair in starter.preferences() if len(pair.prompt.messages) == 1}
    assert len(found) >= count, f"only {len(found)} prompts"
    return list(found.values())[:count]


def write(folder: Path) -> None:
    """Make whatever is missing."""
    done = folder / "work.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    base = load("smollm2-135m", dtype="float32", device="cpu")
    save(base.model, base.tokenizer, folder / "base", manifest={"kind": "base"})
    save_scalar(reward_model(base.model, seed=0), base.tokenizer, folder / "reward", manifest={"kind": "reward", "base": base.name})
    sft = [row for each in examples() for row in rows_of(base.tokenizer, each, all_tokens=False, max_tokens=SFT["block"])]
    both = []
    for pair in pairs():
        rows = [answer_row(base.tokenizer, pair.prompt, text, max_tokens=PAIRS["max_tokens"])
                for text in (pair.chosen.text, pair.rejected.text)]
        begins = [row.weights.index(1.0) for row in rows]
        chosen_ids, rejected_ids = (row.token_ids[begin:] for row, begin in zip(rows, begins, strict=True))
        both.append({"prompt_ids": rows[0].token_ids[:begins[0]], "chosen_ids": chosen_ids, "rejected_ids": rejected_ids})
    endless = load("smollm2-135m", dtype="float32", device="cpu")
    endless.tokenizer.chat_template = PLAIN
    endless.tokenizer.eos_token = NEVER
    never = endless.tokenizer.convert_tokens_to_ids(NEVER)
    endless.model.config.eos_token_id = endless.model.generation_config.eos_token_id = never
    save(endless.model, endless.tokenizer, folder / "endless", manifest={"kind": "base"})
    asked = prompts(max(RL["prompts_per_step"] * RL["steps"], SAMPLING["mixed_rows"]))
    work = {
        "sft": [{"input_ids": row.token_ids, "completion_mask": [int(weight > 0) for weight in row.weights]} for row in sft],
        # the rows of the loss curve in the order in which the loop of this project takes them, so that the peer's batches are the same
        "curve": [at for step in epochs_of_steps(CURVE["rows_per_step"] * CURVE["steps"], rows_per_step=CURVE["rows_per_step"], epochs=1,
                                                 seed=0) for at in step],
        "pairs": both,
        "prompts": [{"prompt": render(endless.tokenizer, each.messages, answer_next=True), "ids": render_prompt(endless.tokenizer, each)}
                    for each in asked],
        "chat": [{"prompt": render(base.tokenizer, each.messages, answer_next=True), "ids": render_prompt(base.tokenizer, each)}
                 for each in asked],
    }
    done.write_text(json.dumps(work), encoding="utf-8")
