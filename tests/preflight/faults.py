"""Set-up faults that cost others a run, made again: what was wrong, where it was reported, and the code that must catch it.

docs/preflight.md holds the same table.  Each `make(folder)` gives the arguments of `check`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import setups
import torch
from safetensors.torch import load_file, save_file
from setups import ADAPTERS, FAMILIES, HERE, LOOP, LOW_RATE, RATE, Family, asked, examples, pair, pairs, prompts, said
from tokenizers import AddedToken

from tutelage.core.words import Example, Message, Prompt, Response
from tutelage.data import starter
from tutelage.judges.rules import FunctionJudge
from tutelage.models.load import Loaded
from tutelage.models.lora import add_lora
from tutelage.preflight.setup import LONGEST_ANSWER
from tutelage.rollout.generic import GenericNet
from tutelage.rollout.local import LocalEngine
from tutelage.text.chat import render_prompt
from tutelage.training.a2c import A2CConfig
from tutelage.training.cost import CostConfig
from tutelage.training.grpo import GRPOConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.on_policy import RewardPart
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.ppo_lagrangian import PPOLagrangianConfig
from tutelage.training.prefer import PreferConfig
from tutelage.training.reward import RewardConfig
from tutelage.training.sft import SFTConfig


class Fault(NamedTuple):
    what: str
    reported: str  # issues, or the line of the checklist
    code: str
    make: Callable[[Path], dict[str, Any]]


# -- runs


def sft_run(model: Path, rows: Sequence[Any] | None = None, **more: Any) -> dict[str, Any]:
    config = SFTConfig(model=str(model), loop=LOOP, optim=RATE, **HERE, **more)
    return {"command": "sft", "config": config, "rows": {"train": rows if rows is not None else examples()}}


def reward_run(model: Path, rows: Sequence[Any] | None = None, **more: Any) -> dict[str, Any]:
    config = RewardConfig(model=str(model), loop=LOOP, optim=RATE, **HERE, **more)
    return {"command": "reward", "config": config, "rows": {"train": rows if rows is not None else pairs()}}


def prefer_run(model: Path, rows: Sequence[Any] | None = None, **more: Any) -> dict[str, Any]:
    config = PreferConfig(model=str(model), loop=LOOP, optim=LOW_RATE, **HERE, **more)
    return {"command": "prefer", "config": config, "rows": {"train": rows if rows is not None else pairs()}}


def rl_run(model: Path, rows: Sequence[Any] | None = None, kind: type = PPOConfig, *, judge: Any = None, engine: Any = None,
           loaded: Any = None, ptx: Sequence[Example] = (), **more: Any) -> dict[str, Any]:
    more = {"max_tokens": 32, "responses_per_prompt": 4, "reward": "rule:length", "lora": LoraConfig(rank=0), "optim": LOW_RATE, **more}
    config = kind(model=str(model), **HERE, **more)
    return {"command": "rl", "config": config, "rows": {"train": rows if rows is not None else prompts(), "ptx": ptx},
            "judge": judge, "engine": engine, "loaded": loaded}


def several(**rewards: str) -> dict[str, RewardPart]:
    """`rewards:` of a recipe."""
    return {name: RewardPart(reward=reward) for name, reward in rewards.items()}


def function_in(folder: Path, body: str, kind: str = "python") -> str:
    """The name of a reward function in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(f"def f(prompts, answers):\n    return {body}\n")
    return f"{kind}:{folder / 'mine.py'}:f"


# -- tokens


def no_token_ends_an_answer(folder: Path) -> dict[str, Any]:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    return sft_run(setups.policy(folder, family=Family(plain, ("<unused>",)), odds=0))


def answers_are_cut_before_they_end(folder: Path) -> dict[str, Any]:
    long = [Example(messages=(*asked(at).messages, Message(role="assistant", text=said(at) * 12))) for at in range(24)]
    return sft_run(setups.policy(folder), long, max_tokens=200)


def answers_are_cut_away(folder: Path) -> dict[str, Any]:
    return sft_run(setups.policy(folder), max_tokens=40)


def template_leaves_answers_out(folder: Path) -> dict[str, Any]:
    mute = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    return sft_run(setups.policy(folder, family=FAMILIES["chatml"]._replace(template=mute), odds=0))


def template_opens_a_turn_in_another_way(folder: Path) -> dict[str, Any]:
    other = setups.CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant:\n{% endif")
    return sft_run(setups.policy(folder, family=FAMILIES["chatml"]._replace(template=other), odds=0))


def question_stands_in_the_answer_field(folder: Path) -> dict[str, Any]:
    whole = [Example(messages=(Message(role="user", text=""), Message(role="assistant", text=asked(at).messages[0].text + said(at))))
             for at in range(24)]
    return sft_run(setups.policy(folder), whole)


def template_and_tokenizer_both_write_bos(folder: Path) -> dict[str, Any]:
    twice = FAMILIES["llama3"]._replace(template="{{ bos_token }}" + setups.LLAMA3)
    return sft_run(setups.policy(folder, family=twice))


def template_lost_its_bos(folder: Path) -> dict[str, Any]:
    without = FAMILIES["gemma"]._replace(template=setups.GEMMA.removeprefix("{{ bos_token }}"))
    return sft_run(setups.policy(folder, family=without))


def bos_before_chosen_and_rejected(folder: Path) -> dict[str, Any]:
    rows = [pair(at, "<|begin_of_text|>" + said(at), "<|begin_of_text|>" + said(at, better=False)) for at in range(24)]
    return prefer_run(setups.policy(folder, family="llama3"), rows)


def template_edited_after_sft(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder)
    (model / "chat_template.jinja").write_text(setups.CHATML.replace("<|im_start|>{{ m.role }}", "<|im_start|>[{{ m.role }}]"))
    return rl_run(model)


def shouting(folder: Path) -> str:
    """A reward or cost model with the policy's vocabulary and another template."""
    template = setups.CHATML.replace("{{ m.role }}", "{{ m.role | upper }}")
    return str(setups.judge(folder, family=FAMILIES["chatml"]._replace(template=template)))


def reward_model_has_another_template(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder / "p"), reward=shouting(folder / "r"))


def one_of_several_reward_models_has_another_template(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder / "p"), rewards=several(brief="rule:length", helpful=shouting(folder / "r")))


def cost_model_has_another_template(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder / "p"), kind=PPOLagrangianConfig, cost=shouting(folder / "c"))


def template_of_the_cost_model_was_edited(folder: Path) -> dict[str, Any]:
    cost = setups.judge(folder / "c")
    (cost / "chat_template.jinja").write_text(setups.CHATML.replace("<|im_start|>{{ m.role }}", "<|im_start|>[{{ m.role }}]"))
    return rl_run(setups.policy(folder / "p"), kind=PPOLagrangianConfig, cost=str(cost))


def demonstrations_are_cut_before_they_begin(folder: Path) -> dict[str, Any]:
    long = [Example(messages=(Message(role="user", text="word " * 60), Message(role="assistant", text=said(at)))) for at in range(16)]
    return rl_run(setups.policy(folder), ptx_coef=0.1, ptx=long)


def demonstrations_are_cut_before_they_end(folder: Path) -> dict[str, Any]:
    long = [Example(messages=(*asked(at).messages, Message(role="assistant", text=said(at) * 12))) for at in range(16)]
    return rl_run(setups.policy(folder), ptx_coef=0.1, ptx=long)


def critic_from_another_family(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder / "p"), reward=str(setups.judge(folder / "r", family="llama3")), value="separate")


def tokens_added_without_rows_for_them(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder)
    tokenizer = setups.tokenizer_of(FAMILIES["chatml"])
    tokenizer.add_tokens([AddedToken("<|user|>", special=True)])
    tokenizer.chat_template = setups.CHATML.replace("{{ m.role }}", "{{ '<|user|>' if m.role == 'user' else m.role }}")
    tokenizer.save_pretrained(model)
    (model / "manifest.json").unlink()
    return sft_run(model)


def pad_added_without_a_row_for_it(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder, family="mistral")
    tokenizer = setups.tokenizer_of(FAMILIES["mistral"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    return reward_run(model)


def only_the_end_is_left_to_pad_with(folder: Path) -> dict[str, Any]:
    alone = Family("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", ("</s>",), eos="</s>", pad="</s>")
    return reward_run(setups.policy(folder, family=alone))


def prompts_longer_than_allowed(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder), max_prompt_tokens=20)


def answers_beyond_the_context(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder, max_position_embeddings=128), max_tokens=100)


def pairs_alike_after_cutting(folder: Path) -> dict[str, Any]:
    rows = [pair(at, said(at) * 10 + " Good.", said(at) * 10 + " Bad.") for at in range(24)]
    return prefer_run(setups.policy(folder), rows, max_tokens=128)


# -- words


def pairs_alike(folder: Path) -> dict[str, Any]:
    return reward_run(setups.policy(folder), [pair(at, said(at), said(at) + " ") for at in range(24)])


def pairs_in_both_orders(folder: Path) -> dict[str, Any]:
    both = [each for at in range(12) for each in (pair(at, said(at), "No."), pair(at, "No.", said(at)))]
    return reward_run(setups.policy(folder), both)


def chosen_is_the_unsafe_one(folder: Path) -> dict[str, Any]:
    rows = [replace(each, chosen_unsafe=bool(at % 2), rejected_unsafe=False) for at, each in enumerate(pairs())]
    return reward_run(setups.policy(folder), rows)


def all_votes_are_up(folder: Path) -> dict[str, Any]:
    return prefer_run(setups.policy(folder), [replace(each, desirable=True) for each in setups.votes()], method="kto")


def all_rated_votes_are_up(folder: Path) -> dict[str, Any]:
    """The ratings differ, and KTO does not look at them."""
    votes = [replace(each, desirable=True, rating=float(at % 5)) for at, each in enumerate(setups.votes())]
    return prefer_run(setups.policy(folder), votes, method="kto")


def all_answers_are_flagged_safe(folder: Path) -> dict[str, Any]:
    rows = [replace(each, rejected_unsafe=False) for each in pairs()]
    config = CostConfig(model=str(setups.policy(folder)), loop=LOOP, optim=RATE, **HERE)
    return {"command": "cost", "config": config, "rows": {"train": rows}}


def chosen_is_always_longer(folder: Path) -> dict[str, Any]:
    return reward_run(setups.policy(folder), [pair(at, said(at) + f" It has {at} sides, and more.", "No.") for at in range(40)])


def prompt_stands_in_the_answers_too(folder: Path) -> dict[str, Any]:
    rows = [pair(at, f"{asked(at).messages[0].text} {said(at)}", f"{asked(at).messages[0].text} {said(at, better=False)}")
            for at in range(24)]
    return prefer_run(setups.policy(folder), rows)


def transcripts_in_one_field(folder: Path) -> dict[str, Any]:
    rows = [Example(messages=(*asked(at).messages, Message(role="assistant", text=said(at) + "\n\nHuman: And "
                                                                                             "then?\n\nAssistant: No.")))
            for at in range(24)]
    return sft_run(setups.policy(folder), rows)


def evaluation_prompts_in_training(folder: Path) -> dict[str, Any]:
    leaked = [Example(messages=(*prompt.messages[-1:], Message(role="assistant", text="Yes."))) for prompt in starter.evaluation()[:6]]
    return sft_run(setups.policy(folder), [*examples(), *leaked])


def evaluation_prompts_among_the_demonstrations(folder: Path) -> dict[str, Any]:
    leaked = [Example(messages=(*prompt.messages[-1:], Message(role="assistant", text="Yes."))) for prompt in starter.evaluation()[:6]]
    return rl_run(setups.policy(folder), ptx_coef=0.1, ptx=[*examples(), *leaked])


def one_prompt_over_and_over(folder: Path) -> dict[str, Any]:
    same = [Prompt(messages=asked(0).messages, group=str(at)) for at in range(12)]
    return rl_run(setups.policy(folder), same)


# -- settings


def a2c_rate_of_small_networks(folder: Path) -> dict[str, Any]:
    """As far above what language models bear as 7e-4 is for a large one; these here have 40,000 weights."""
    return rl_run(setups.policy(folder), kind=A2CConfig, optim=OptimConfig(learning_rate=0.2))


def rate_of_all_weights_for_adapters(folder: Path) -> dict[str, Any]:
    config = PreferConfig(model=str(setups.policy(folder)), loop=LOOP, optim=OptimConfig(learning_rate=1e-9), lora=ADAPTERS, **HERE)
    return {"command": "prefer", "config": config, "rows": {"train": pairs()}}


def nearly_greedy(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder), temperature=0.05)


def greedy_answers_are_all_alike(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder, odds=0, initializer_range=1.0), temperature=1e-3)


def groups_of_two(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder), kind=GRPOConfig, responses_per_prompt=2)


def learned_reward_without_a_leash(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder / "p"), reward=str(setups.judge(folder / "r")), beta=0.0)


def several_rewards_and_no_leash(folder: Path) -> dict[str, Any]:
    rewards = several(brief="rule:length", helpful=str(setups.judge(folder / "r")))
    return rl_run(setups.policy(folder / "p"), rewards=rewards, beta=0.0)


def adapters_on_layers_that_are_not_there(folder: Path) -> dict[str, Any]:
    return sft_run(setups.policy(folder), lora=LoraConfig(rank=4, targets="query_key_value"))


def more_than_the_memory(folder: Path) -> dict[str, Any]:
    made = setups.policy(folder)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 60}))
    return sft_run(made)


def policy_is_a_reward_model(folder: Path) -> dict[str, Any]:
    return rl_run(setups.judge(folder))


# -- networks that were loaded by other means


def altered(model: Path, alter: Callable[[Any], None]) -> Loaded:
    """The model as another program would hand it over."""
    found = setups.loaded_of(model)
    alter(found.model)
    return found


def adapter_loaded_frozen(folder: Path) -> dict[str, Any]:
    """peft's from_pretrained without is_trainable=True."""
    model = setups.policy(folder)
    loaded = setups.loaded_of(model)
    frozen = add_lora(loaded.model, rank=4, alpha=8.0).requires_grad_(False)
    return sft_run(model, lora=ADAPTERS) | {"loaded": replace(loaded, model=frozen)}


def adapter_of_two_frozen(folder: Path) -> dict[str, Any]:
    """The embedding learns, and of the adapters none does."""
    model = setups.policy(folder)
    loaded = setups.loaded_of(model)
    adapted = add_lora(loaded.model, rank=4, alpha=8.0).requires_grad_(False)
    adapted.get_input_embeddings().requires_grad_(True)
    return sft_run(model, lora=ADAPTERS) | {"loaded": replace(loaded, model=adapted)}


def preferences_for_a_frozen_model(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder)
    return prefer_run(model) | {"loaded": altered(model, lambda network: network.requires_grad_(False))}


def pad_row_gets_no_gradient(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder, family="chatml-pad-is-eos")

    def alter(network: Any) -> None:
        embedding = network.get_input_embeddings()
        embedding.padding_idx = embedding.num_embeddings - 1  # <|im_end|>, as transformers does where config.pad_token_id is set

    return sft_run(model) | {"loaded": altered(model, alter)}


def dropout_left_on(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder, "gpt2")

    def alter(network: Any) -> None:
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1

    return rl_run(model, loaded=altered(model, alter))


def weights_in_float16(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder)
    return reward_run(model) | {"loaded": altered(model, lambda network: network.half())}


def weights_are_not_finite(folder: Path) -> dict[str, Any]:
    model = setups.policy(folder)
    return sft_run(model) | {"loaded": altered(model, lambda network: network.lm_head.weight.data.fill_(float("inf")))}


def tokenizer_of_another_model(folder: Path) -> dict[str, Any]:
    """A network that is sure of each next token (it says what it reads), given a tokenizer whose ids mean other tokens."""
    model = setups.policy(folder)
    loaded = altered(model, lambda network: None)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.copy_(200 * loaded.model.get_input_embeddings().weight.roll(97, 0))
    return sft_run(model) | {"loaded": loaded}


# -- samplers


class Sampler(LocalEngine):
    """An engine that samples in its own way and reports the log-probabilities of what it did."""

    def __init__(self, loaded: Loaded, **changes: Any):
        super().__init__(loaded.model, loaded.tokenizer, policy="other")
        self.changes = changes

    def respond(self, requests: Any) -> Any:
        return super().respond([(prompt, replace(sampling, **self.changes)) for prompt, sampling in requests])


def sampled_by(folder: Path, **changes: Any) -> dict[str, Any]:
    loaded = setups.loaded_of(setups.policy(folder, odds=0, initializer_range=0.4))
    return rl_run(folder, loaded=loaded, engine=Sampler(loaded, **changes))


def sampler_at_another_temperature(folder: Path) -> dict[str, Any]:
    return sampled_by(folder, temperature=0.6)


def sampler_with_top_p(folder: Path) -> dict[str, Any]:
    return sampled_by(folder, top_p=0.8)


def sampler_with_top_k(folder: Path) -> dict[str, Any]:
    return sampled_by(folder, top_k=20)


def sampler_that_may_not_stop(folder: Path) -> dict[str, Any]:
    """min_length: the end token is taken away, and the rest renormalised."""
    loaded = setups.loaded_of(setups.policy(folder, odds=200))
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy="other")
    end = loaded.tokenizer.eos_token_id

    class NoEnd(GenericNet):
        def _forward(self, token_RT: Any) -> Any:
            logits = super()._forward(token_RT)
            logits[:, end] = -torch.inf
            return logits

    engine._net, engine._seen = NoEnd(loaded.model), engine._versions()
    return rl_run(folder, loaded=loaded, engine=engine)


def sampler_without_position_ids(folder: Path) -> dict[str, Any]:
    """GPT-2's learned positions, left-padded and counted from the padding."""
    loaded = setups.loaded_of(setups.policy(folder, "gpt2", odds=0, initializer_range=0.4))
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy="other")

    class Unplaced(GenericNet):
        def _forward(self, token_RT: Any) -> Any:
            width = self.real_RT.shape[1]
            places = torch.arange(width - token_RT.shape[1], width).expand(len(token_RT), -1)
            out = self.decoder(input_ids=token_RT, attention_mask=self.real_RT, past_key_values=self.cache, use_cache=True,
                               position_ids=places)
            return self.post(self.head(out.last_hidden_state[:, -1]))

    engine._net, engine._seen = Unplaced(loaded.model), engine._versions()
    uneven = [Prompt(messages=(Message(role="user", text="word " * (1 + 7 * at)),)) for at in range(8)]
    return rl_run(folder, uneven, loaded=loaded, engine=engine)


def sampler_with_old_weights(folder: Path) -> dict[str, Any]:
    """A server that was not told of the last update."""
    loaded = setups.loaded_of(setups.policy(folder, odds=0, initializer_range=0.4))
    old = setups.loaded_of(setups.policy(folder / "old", odds=0, initializer_range=0.4, seed=5))
    return rl_run(folder, loaded=loaded, engine=LocalEngine(old.model, old.tokenizer, policy="old"))


def never_stops(folder: Path) -> dict[str, Any]:
    return rl_run(setups.policy(folder, odds=1e-3), max_tokens=16)


def never_stops_in_long_answers(folder: Path) -> dict[str, Any]:
    """Allowed are more tokens than a check draws at first."""
    return rl_run(setups.policy(folder, odds=1e-3), max_tokens=LONGEST_ANSWER + 16)


def end_tokens_begin_answers(folder: Path) -> dict[str, Any]:
    """generation_config.eos_token_id holds every byte: each completion ends with its first token."""
    model = setups.policy(folder)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(259))}))
    return rl_run(model)


# -- rewards


def reward_by(folder: Path, fn: Callable[..., Any]) -> dict[str, Any]:
    return rl_run(setups.policy(folder), judge=FunctionJudge(fn))


def reward_is_constant(folder: Path) -> dict[str, Any]:
    return reward_by(folder, lambda prompts, responses: [0.0] * len(responses))


def reward_model_is_constant(folder: Path) -> dict[str, Any]:
    from_labels = setups.judge(folder / "r")
    _rewrite(from_labels, lambda tensors: tensors | {"score.weight": tensors["score.weight"] * 0})
    return rl_run(setups.policy(folder / "p"), reward=str(from_labels))


def reward_model_overflows(folder: Path) -> dict[str, Any]:
    broken = setups.judge(folder / "r")
    _rewrite(broken, lambda tensors: tensors | {"score.weight": tensors["score.weight"] * float("nan")})
    return rl_run(setups.policy(folder / "p"), reward=str(broken))


def _rewrite(model: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors", metadata={"format": "pt"})


def one_of_several_rewards_is_nan(folder: Path) -> dict[str, Any]:
    nan = function_in(folder / "f", "[float('nan')] * len(answers)")
    return rl_run(setups.policy(folder / "p"), rewards=several(helpful=nan, brief="rule:length"))


def reward_on_a_scale_of_its_own(folder: Path) -> dict[str, Any]:
    """0 to 100, and as it is; score_clip says 5."""
    hundred = FunctionJudge(lambda prompts_, responses: [float(sum(map(ord, r.text)) % 101) for r in responses])
    return rl_run(setups.policy(folder), judge=hundred, normalise_on=0)


def reward_fails_on_short_answers(folder: Path) -> dict[str, Any]:
    return reward_by(folder, lambda prompts, responses: [len(r.text) / (len(r.text.split()) - 1) for r in responses])


def reward_is_a_lottery(folder: Path) -> dict[str, Any]:
    draws = iter(torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist())
    return reward_by(folder, lambda prompts, responses: [next(draws) for _ in responses])


def classifier_judge(folder: Path, read: Callable[[Any, Any, Any], Any], *, side: str = "right") -> dict[str, Any]:
    """A user's function over a transformers classifier: `read(network, ids [B, T], real [B, T])` -> scores [B]."""
    found = setups.loaded_of(setups.policy(folder / "c", odds=0, initializer_range=0.4, family="chatml-pad-is-eos"))
    head = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def score(asked_: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        end = [found.tokenizer.eos_token_id]
        rows = [render_prompt(found.tokenizer, p) + list(r.text.encode()) + end for p, r in zip(asked_, responses, strict=True)]
        width = max(map(len, rows))
        padded = lambda row, filler: filler * (width - len(row)) + row if side == "left" else row + filler * (width - len(row))
        ids = torch.tensor([padded(row, end) for row in rows])  # pad = eos
        real = torch.tensor([padded([True] * len(row), [False]) if side == "right" else [False] * (width - len(row)) + [True] * len(row)
                             for row in rows])
        with torch.no_grad():
            hidden = found.model.base_model(input_ids=ids, use_cache=False).last_hidden_state @ head
        return read(hidden, ids, real).tolist()

    return reward_by(folder / "p", score)


def reward_at_the_last_column(folder: Path) -> dict[str, Any]:
    """pad_token_id is None: the last column is read, padding or not."""
    return classifier_judge(folder, lambda hidden, ids, real: hidden[:, -1])


def reward_before_the_first_pad(folder: Path) -> dict[str, Any]:
    """pad = eos: what is read stands before the first eos, which ends the user's turn; the answer is never looked at."""
    return classifier_judge(folder, lambda hidden, ids, real: hidden.gather(
        1, (ids == ids[real][-1]).int().argmax(1, keepdim=True) - 1)[:, 0])


def reward_one_column_too_far(folder: Path) -> dict[str, Any]:
    """Off by one: the first padding column, and the last real one where there is no padding."""
    return classifier_judge(folder, lambda hidden, ids, real: hidden.gather(
        1, real.sum(1, keepdim=True).clamp(max=ids.shape[1] - 1))[:, 0])


def reward_of_left_padded_rows(folder: Path) -> dict[str, Any]:
    """Padded at the left, read as if it were padded at the right."""
    return classifier_judge(folder, lambda hidden, ids, real: hidden.gather(1, real.sum(1, keepdim=True) - 1)[:, 0], side="left")


def reward_changes_with_the_batch(folder: Path) -> dict[str, Any]:
    """Scores standardised over whatever stands in the batch."""

    def score(asked_: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        lengths = torch.tensor([float(len(r.text)) for r in responses])
        return ((lengths - lengths.mean()) / (lengths.std(unbiased=False) + 1e-6)).tolist()

    return reward_by(folder, score)


FAULTS = (
    # tokens
    Fault("no token ends an answer: template and tokenizer name none", "trl #1623, #3091", "no-end", no_token_ends_an_answer),
    Fault("rows are cut before their turn ends", "trl #1623, transformers #34494", "untrained-turn-ends", answers_are_cut_before_they_end),
    Fault("rows are cut before their answer begins", "transformers #34494", "empty-loss-mask", answers_are_cut_away),
    Fault("the template does not write what the assistant says: an empty mask", "marin #7237, trl #4879", "template-refuses",
          template_leaves_answers_out),
    Fault("the generation prompt is not how the turn begins: a mask at the wrong place", "trl #4201", "template-refuses",
          template_opens_a_turn_in_another_way),
    Fault("the question stands in the answer's field: a full mask", "Megatron-Bridge #3359, Automodel #832", "full-loss-mask",
          question_stands_in_the_answer_field),
    Fault("two BOS: template and tokenizer both write one", "OpenRLHF #393, reward-bench #164", "double-bos",
          template_and_tokenizer_both_write_bos),
    Fault("no BOS: the template lost it", "RLHF-Reward-Modeling #16", "missing-bos", template_lost_its_bos),
    Fault("BOS before chosen and rejected", "axolotl #1616", "special-in-text", bos_before_chosen_and_rejected),
    Fault("the template was edited after SFT", "SimPO #24, open-r1 #473", "template-changed", template_edited_after_sft),
    Fault("the reward model reads with another template", "ms-swift #9160", "template-mismatch", reward_model_has_another_template),
    Fault("one of several reward models reads with another template", "ms-swift #9160", "template-mismatch",
          one_of_several_reward_models_has_another_template),
    Fault("the cost model reads with another template", "C5, ms-swift #9160", "template-mismatch", cost_model_has_another_template),
    Fault("the cost model's template was edited after its training", "C5, open-r1 #473", "template-changed",
          template_of_the_cost_model_was_edited),
    Fault("the demonstrations of ptx_data are cut before their answer begins", "transformers #34494", "empty-loss-mask",
          demonstrations_are_cut_before_they_begin),
    Fault("the demonstrations of ptx_data are cut before their turn ends", "trl #1623", "untrained-turn-ends",
          demonstrations_are_cut_before_they_end),
    Fault("the critic begins from a model with another tokenizer", "safe-rlhf #109, #55", "critic-tokenizer", critic_from_another_family),
    Fault("special tokens were added, and the model was not enlarged", "tokenizers #1609, transformers #12763", "vocabulary",
          tokens_added_without_rows_for_them),
    Fault("a pad token was added, and the model was not enlarged", "transformers #10848", "vocabulary", pad_added_without_a_row_for_it),
    Fault("only eos is left to pad with", "trl #937, transformers #35352", "pad-is-end", only_the_end_is_left_to_pad_with),
    Fault("prompts longer than the limit", "trl #2551", "prompt-too-long", prompts_longer_than_allowed),
    Fault("prompt and answer longer than the context", "C2", "context", answers_beyond_the_context),
    Fault("chosen and rejected alike once they are cut", "LLaMA-Factory #4402", "identical-pairs", pairs_alike_after_cutting),
    # words
    Fault("chosen and rejected are the same text", "RLHF_CORRECTNESS 4.7", "identical-pairs", pairs_alike),
    Fault("the same pair in both orders", "C35", "contradicting-pairs", pairs_in_both_orders),
    Fault("chosen is the unsafe answer", "RLHF_CORRECTNESS 4.8, trlx #474", "label-direction", chosen_is_the_unsafe_one),
    Fault("KTO with good votes alone", "RLHF_CORRECTNESS 4.7", "one-sided-labels", all_votes_are_up),
    Fault("KTO with good votes alone, whose ratings differ", "RLHF_CORRECTNESS 4.7", "one-sided-labels", all_rated_votes_are_up),
    Fault("a cost model from safe answers alone", "RLHF_CORRECTNESS 4.8", "one-sided-labels", all_answers_are_flagged_safe),
    Fault("the longer answer always wins", "C36", "length-bias", chosen_is_always_longer),
    Fault("the prompt stands in the answers too", "C7", "prompt-in-answer", prompt_stands_in_the_answers_too),
    Fault("whole transcripts in the answer's field", "trl #2059", "turns-in-answer", transcripts_in_one_field),
    Fault("evaluation prompts among the training rows", "Brown et al. 2020, appendix C", "evaluation-in-training",
          evaluation_prompts_in_training),
    Fault("evaluation prompts among the demonstrations of ptx_data", "Brown et al. 2020, appendix C", "evaluation-in-training",
          evaluation_prompts_among_the_demonstrations),
    Fault("one prompt over and over", "trl #204", "few-prompts", one_prompt_over_and_over),
    # settings
    Fault("A2C with the learning rate of small networks", "RLHF_CORRECTNESS 4.5, trl #5174", "learning-rate", a2c_rate_of_small_networks),
    Fault("adapters with a learning rate for all weights", "trl #2153", "learning-rate", rate_of_all_weights_for_adapters),
    Fault("sampling nearly greedily", "C8", "temperature", nearly_greedy),
    Fault("all answers to a prompt alike", "ms-swift #4512, trl #3857", "identical-samples", greedy_answers_are_all_alike),
    Fault("GRPO with groups of two", "RLHF_CORRECTNESS 4.6", "group-size", groups_of_two),
    Fault("a learned reward and no KL penalty", "trl #204", "kl-off", learned_reward_without_a_leash),
    Fault("several rewards, a learned one among them, and no KL penalty", "trl #204", "kl-off", several_rewards_and_no_leash),
    Fault("a reward model as the policy: its language-model head is drawn at random", "trl #1379 (its mirror image)", "wrong-kind",
          policy_is_a_reward_model),
    Fault("adapters for layers that the model has not", "C38, peft #1410", "nothing-to-train", adapters_on_layers_that_are_not_there),
    Fault("a model larger than the memory", "RLHF_CORRECTNESS 4.1", "memory", more_than_the_memory),
    # networks
    Fault("an adapter loaded frozen", "peft #282, alpaca-lora #352", "nothing-to-train", adapter_loaded_frozen),
    Fault("adapters frozen beside something that learns", "trl #3926", "nothing-to-train", adapter_of_two_frozen),
    Fault("a frozen model that is to learn preferences", "peft #282", "nothing-to-train", preferences_for_a_frozen_model),
    Fault("pad = eos: the end's embedding gets no gradient", "trl #6357, Megatron-Bridge #4660", "pad-frozen", pad_row_gets_no_gradient),
    Fault("dropout left on", "trl #3234, #2042", "dropout", dropout_left_on),
    Fault("weights in float16", "trl #3236, #878", "float16", weights_in_float16),
    Fault("weights that are not finite", "trl #3236", "not-finite", weights_are_not_finite),
    Fault("the tokenizer of another model", "tokenizers #1609", "worse-than-chance", tokenizer_of_another_model),
    # samplers
    Fault("the sampler's temperature is not the trainer's", "trl #4159", "sampler-gap", sampler_at_another_temperature),
    Fault("top-p in the sampler alone", "trl #6789, #7269", "sampler-gap", sampler_with_top_p),
    Fault("top-k in the sampler alone", "trl #235, #925", "sampler-gap", sampler_with_top_k),
    Fault("a minimum length: the sampler may not stop", "trl #235, #351, #1005, #1017", "sampler-gap", sampler_that_may_not_stop),
    Fault("left padding without position ids", "OpenRLHF #217, trl #469, #6800", "sampler-gap", sampler_without_position_ids),
    Fault("the sampler holds old weights", "C9", "sampler-gap", sampler_with_old_weights),
    Fault("no answer ever ends", "trl #3750, #5338, #2387", "all-truncated", never_stops),
    Fault("no answer ever ends, and long ones are allowed", "trl #3750, #5338", "all-truncated", never_stops_in_long_answers),
    Fault("the list of eos ids holds what begins an answer", "transformers #48016", "empty-answers", end_tokens_begin_answers),
    # rewards
    Fault("a constant reward", "trl #3857, #3452", "reward-constant", reward_is_constant),
    Fault("a reward model that says the same of everything", "ms-swift #4512", "reward-constant", reward_model_is_constant),
    Fault("a reward that is NaN", "trl #3236, LLaMA-Factory #273", "reward-not-finite", reward_model_overflows),
    Fault("one of several rewards is NaN", "trl #3236", "reward-not-finite", one_of_several_rewards_is_nan),
    Fault("a reward from 0 to 100, neither normalised nor clipped by its own measure", "C20", "score-clip", reward_on_a_scale_of_its_own),
    Fault("a reward that fails on short answers", "C12", "reward-raises", reward_fails_on_short_answers),
    Fault("a reward that differs from call to call", "C10", "reward-noisy", reward_is_a_lottery),
    Fault("the score is read at the last column: no pad id", "trl #937", "reward-batch", reward_at_the_last_column),
    Fault("the score is read before the first eos, in the prompt: pad = eos", "transformers #35352, Generalizable-Reward-Model "
                                                                              "#1",
          "reward-constant", reward_before_the_first_pad),
    Fault("the score is read one column too far", "gpt-neox #1285", "reward-batch", reward_one_column_too_far),
    Fault("left-padded rows read from the left", "trl #2778", "reward-batch", reward_of_left_padded_rows),
    Fault("the score depends on the batch", "reward-bench #137", "reward-batch", reward_changes_with_the_batch),
)
