"""The Python API does what the commands do."""

import pytest
from calling import instructions, write_lines

import tutelage
from tutelage.core.errors import ConfigError, UserError
from tutelage.training.loop import LoopConfig
from tutelage.training.sft import SFTConfig

QUICK = {"model": "test", "device": "cpu", "dtype": "float32"}


def test_every_name_of_the_package_is_there():
    for name in tutelage._API:
        assert callable(getattr(tutelage, name)), name
    with pytest.raises(AttributeError):
        tutelage.nothing  # noqa: B018


def test_from_files_to_answers(tmp_path):
    snapshot = tutelage.import_data(
        write_lines(tmp_path / "chat.jsonl", instructions()), workspace=tmp_path, name="chat"
    )
    made = tutelage.sft(data=snapshot.name, workspace=tmp_path, loop={"max_steps": 2, "rows_per_step": 4}, **QUICK)
    assert made.path == tmp_path / "runs" / "sft-0001" / "final" and made.outcome.steps == 2
    engine = tutelage.load(made.path, device="cpu")
    one = tutelage.respond(engine, "Hello", max_tokens=4)
    several = tutelage.respond("sft-0001", ["Bye", "Hello"], n=2, temperature=1.0, max_tokens=4, workspace=tmp_path)
    assert len(one) == 1 and [response.index for response in several] == [0, 1, 0, 1]
    assert several[2].prompt_id == one[0].prompt_id


def test_recipes_come_as_names_dictionaries_or_configurations():
    by_name = tutelage.api.recipe("sft", "tiny_sft", loop={"max_steps": 7})
    assert by_name.model == "test" and by_name.loop.max_steps == 7 and by_name.loop.rows_per_step == 8
    assert tutelage.api.recipe(
        "sft", {"model": "test", "loop": {"epochs": 3}}, loop={"max_steps": 2}
    ).loop == LoopConfig(epochs=3, max_steps=2)
    assert tutelage.api.recipe("sft", SFTConfig(model="test"), seed=4) == SFTConfig(model="test", seed=4)
    with pytest.raises(ConfigError, match='did you mean "seed"'):
        tutelage.api.recipe("sft", "tiny_sft", sed=1)
    with pytest.raises(UserError, match='did you mean "seed"'):
        tutelage.api.recipe("sft", SFTConfig(), sed=1)


def test_evaluate_and_compare(trained):
    report = tutelage.evaluate("test", "sft-0001", limit=6, max_tokens=4, workspace=trained)
    assert report.models == ("test", "sft-0001") and len(report.prompts) == 6
    win = tutelage.compare("sft-0001", "test", judge="rule:length", limit=4, max_tokens=4, workspace=trained)
    assert win.wins + win.ties + win.losses == 4
