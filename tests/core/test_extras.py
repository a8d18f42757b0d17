import json
import tomllib
from pathlib import Path

import pytest

from tutelage.core.errors import UserError
from tutelage.core.extras import EXTRA_OF, require


def test_a_package_that_is_there_is_imported():
    assert require("json") is json


def test_a_missing_package_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"'wandb'.*pip install 'tutelage\[wandb\]'"):
        require("wandb")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tutelage\[hub\]'"):
        require("datasets")


def test_every_extra_that_we_name_exists_and_brings_its_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, extra in EXTRA_OF.items():
        brought = project["optional-dependencies"][extra]
        assert any(line.startswith(package.rpartition(".")[2]) for line in brought), (package, extra)
