"""What a model is worth before training, kept for the next run that begins with it on the same held-out rows.

    <workspace>/.cache/evaluation/<digest>.json

So a second run with another learning rate takes its first step as many seconds earlier as the held-out rows take to be read.
The digest is over everything that the figure depends on, down to the number of threads: a figure that is recalled is the one
that would have been found.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tutelage import __version__
from tutelage.core.errors import UserError
from tutelage.core.files import keyed_file, read_json, write_json

VERSION = 1  # raised when an evaluation changes what it finds


def place(cache: Path | str, **depends_on: Any) -> Path:
    """The file that holds, or will hold, the evaluation of what is named here."""
    return keyed_file(cache, [VERSION, __version__, torch.__version__, torch.get_num_threads(), depends_on])


def recalled(file: Path, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `file` holds, or what `evaluate` finds, which is kept there."""
    if file.is_file():
        try:
            found = read_json(file)
        except UserError:
            found = None  # damaged: find it anew
        if isinstance(found, dict) and all(isinstance(value, float) for value in found.values()) and "eval_loss" in found:
            return found
    found = evaluate()
    if found:
        write_json(file, found)
    return found
