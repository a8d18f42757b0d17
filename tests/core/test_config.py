"""Recipes are read strictly, and all that is wrong with one is said at once."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tutelage.core.config import bind, override, to_dict
from tutelage.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    kl_beta: float = 0.05
    steps: int = 10
    schedule: Literal["linear", "cosine"] = "linear"

    def __post_init__(self):
        faults = []
        if self.kl_beta < 0:
            faults.append(f"kl_beta must be >= 0, got {self.kl_beta}; set 0 to train without a reference")
        if self.steps < 1:
            faults.append(f"steps must be >= 1, got {self.steps}")
        if faults:
            raise ValueError("\n".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    model: str
    seed: int = 0
    fast: bool = False
    rate: float | None = None
    betas: tuple[float, ...] = (0.9, 0.95)
    tags: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    ppo: Inner = field(default_factory=Inner)
    value: Inner | None = None


def faults(values: dict) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        bind(Recipe, values)
    return caught.value.faults


def test_a_whole_recipe_is_bound_with_the_right_types():
    got = bind(Recipe, {"model": "test", "seed": 3.0, "fast": True, "rate": "1e-5", "betas": [0, 1], "tags": ["a"],
                        "fields": {"x": [1]}, "ppo": {"kl_beta": 1, "schedule": "cosine"}, "value": {"steps": 2}})
    assert got == Recipe(model="test", seed=3, fast=True, rate=1e-5, betas=(0.0, 1.0), tags=["a"], fields={"x": [1]},
                         ppo=Inner(kl_beta=1.0, schedule="cosine"), value=Inner(steps=2))
    assert type(got.seed) is int and type(got.rate) is float and type(got.betas[0]) is float and type(got.ppo.kl_beta) is float


def test_what_is_left_out_has_its_default():
    assert bind(Recipe, {"model": "test"}) == Recipe(model="test")
    assert bind(Recipe, {"model": "test", "rate": None, "value": None}) == Recipe(model="test")


def test_yaml_numbers_as_text_are_read():
    assert bind(Recipe, {"model": 7, "ppo": {"kl_beta": "1e-2"}}).ppo.kl_beta == 0.01  # YAML 1.1 reads 1e-2 as text
    assert bind(Recipe, {"model": 7}).model == "7"


@pytest.mark.parametrize("values, fault", [
    ({}, 'missing key "model" (text)'),
    ({"model": "m", "ppo": {"kl_betta": 1}}, 'unknown key "kl_betta" in ppo; did you mean "kl_beta"?'),
    ({"model": "m", "zzz": 1}, 'unknown key "zzz" in the top level; known: '),
    ({"model": "m", "seed": "three"}, "seed must be a whole number; got 'three'"),
    ({"model": "m", "seed": 3.5}, "seed must be a whole number; got 3.5"),
    ({"model": "m", "seed": True}, "seed must be a whole number; got True"),
    ({"model": "m", "fast": 1}, "fast must be true or false; got 1"),
    ({"model": "m", "fast": "yes"}, "fast must be true or false; got 'yes'"),
    ({"model": "m", "rate": "quick"}, "rate must be a number or null; got 'quick'"),
    ({"model": "m", "rate": True}, "rate must be a number or null; got True"),
    ({"model": ["m"]}, "model must be text; got ['m']"),
    ({"model": None}, "model must be text; got None"),
    ({"model": "m", "betas": 0.9}, "betas must be a list; got 0.9"),
    ({"model": "m", "betas": [0.9, "x"]}, "betas.1 must be a number; got 'x'"),
    ({"model": "m", "fields": 3}, "fields must be a section with keys; got 3"),
    ({"model": "m", "ppo": 3}, "ppo must be a section with keys; got 3"),
    ({"model": "m", "ppo": {"schedule": "cosin"}},
     "ppo.schedule must be one of 'linear', 'cosine'; got 'cosin'; did you mean \"cosine\"?"),
    ({"model": "m", "ppo": {"kl_beta": -1}}, "ppo: kl_beta must be >= 0, got -1.0; set 0 to train without a reference"),
    ({"model": "m", "value": {"stepz": 1}}, 'unknown key "stepz" in value; did you mean "steps"?'),
    ({"model": "m", "value": {"steps": 0}}, "value: steps must be >= 1, got 0"),
    ({"model": "m", "value": 3}, "value must be Inner or null; got 3"),
])
def test_a_fault_names_the_key_what_came_and_what_was_wanted(values, fault):
    [said] = faults(values)
    assert said.startswith(fault)


def test_all_faults_are_reported_at_once():
    said = faults({"seed": "x", "ppo": {"kl_beta": -1, "steps": 0}, "betas": ["a", "b"], "extra": 1})
    assert len(said) == 7  # seed, two in ppo, two in betas, the unknown key, the missing model
    assert {line.split(" ")[0] for line in said} == {"seed", "ppo:", "betas.0", "betas.1", "unknown", "missing"}


def test_the_error_says_where():
    with pytest.raises(ConfigError, match=r"my\.yaml: 1 fault\(s\)"):
        bind(Recipe, {}, where="my.yaml")


def test_override_sets_dotted_paths_in_a_copy():
    before = {"ppo": {"clip": 0.2, "deep": {"a": 1}}, "seed": 0}
    after = override(before, [("ppo.clip", 0.1), ("ppo.deep.b", 2), ("new.section.key", "x"), ("seed", 3), ("seed", 4)])
    assert after == {"ppo": {"clip": 0.1, "deep": {"a": 1, "b": 2}}, "new": {"section": {"key": "x"}}, "seed": 4}
    assert before == {"ppo": {"clip": 0.2, "deep": {"a": 1}}, "seed": 0}


def test_override_does_not_step_into_a_value():
    with pytest.raises(ConfigError, match="ppo.clip.low: ppo.clip is a value, not a section"):
        override({"ppo": {"clip": 0.2}}, [("ppo.clip.low", 0.1)])


def test_to_dict_and_bind_are_inverse():
    recipe = Recipe(model="test", betas=(0.5, 0.6), value=Inner(steps=3), fields={"x": (1, 2)})
    plain = to_dict(recipe)
    assert plain["betas"] == [0.5, 0.6] and plain["value"]["steps"] == 3 and plain["fields"] == {"x": [1, 2]}
    assert to_dict(bind(Recipe, plain)) == plain
