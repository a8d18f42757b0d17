"""`tutelage init`: a workspace, with a first recipe to change."""

from argparse import Namespace
from pathlib import Path

from tutelage.core.errors import UserError
from tutelage.core.files import write_atomic
from tutelage.recipes import SETTINGS, find_recipe
from tutelage.terminal import Terminal, quote

FOLDERS = ("data", "runs", "reports", "recipes")
SETTINGS_TEXT = """\
# A Tutelage workspace.  Commands that run in this folder, or below it, find it by this file.

model: smollm2-135m   # for commands that were given no model: a name, a folder, a run, or hf:org/name
track: []             # for every training run: tensorboard, trackio, wandb, mlflow
"""


def init(folder: Path | str) -> Path:
    """Make the workspace.  UserError where one stands there already."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; wanted a folder")
    if (folder / SETTINGS).exists():
        raise UserError(f"{folder / SETTINGS} is there already: {folder} is a workspace")
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make a workspace in {folder}: {error.strerror}; choose a folder that you may write to"
        ) from error
    recipe = folder / "recipes" / "first_sft.yaml"
    if not recipe.exists():
        write_atomic(recipe, find_recipe("sft_starter").read_text(encoding="utf-8"))
    write_atomic(folder / SETTINGS, SETTINGS_TEXT)  # last: a workspace is whole once this file is there
    return folder


def run(args: Namespace, terminal: Terminal) -> int:
    folder = init(args.folder)
    terminal.say(f"Made a workspace in {folder.resolve()}", style="green")
    terminal.say(f"  {SETTINGS}, {', '.join(f'{name}/' for name in FOLDERS)}, recipes/first_sft.yaml")
    go = [] if folder.resolve() == Path.cwd() else [f"cd {quote(folder)}"]
    terminal.next_steps(
        *go,
        "tutelage data import YOUR_FILE --name mine",
        "tutelage sft first_sft --dry-run",
        "tutelage sft first_sft data=mine",
    )
    terminal.result({"workspace": str(folder.resolve())})
    return 0
