"""Which database of people's judgements is meant, and `feedback:P` in recipes.  Imports nothing that is not needed to tell."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

PREFIX = "feedback:"
FILE, VARIABLE = "people.db", "TUTELAGE_DATABASE"


def database_address(given: str | None, workspace: Path) -> str:
    """--database, else the environment's TUTELAGE_DATABASE, else people.db of the workspace."""
    return given or os.environ.get(VARIABLE) or str(workspace / FILE)


def resolve(name: str, workspace: Path, *, command: str, method: str = "",
            tell: Callable[[str], None] = lambda line: None) -> str:
    """A recipe's data name with `feedback:P[@ROW]` replaced by the snapshot that it means; other names as they are."""
    if not str(name).startswith(PREFIX):
        return name
    # only here is a database library needed; importing it takes half a second
    return import_module("tutelage.commands.feedback_data").frozen_name(name, workspace, command=command, method=method, tell=tell)
