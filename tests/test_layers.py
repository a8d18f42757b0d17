"""The import graph is an artefact: it goes down only, imports stand at the top, and what promises no torch loads none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage

SRC = Path(tutelage.__file__).parent
MAY_IMPORT = {
    "core": set(),
    "algos": set(),
    "stats": set(),
    "text": {"core"},
    "data": {"core"},
    "models": {"core"},
    "remote": {"core"},
    "store": {"core", "stats"},
    "rollout": {"core", "text", "models", "remote"},
    "judges": {"core", "text", "models"},
    "training": {"core", "algos", "stats", "text", "data", "models", "store", "rollout", "judges"},
    "evals": {"core", "stats", "data", "store", "judges"},
    "explain": {"core", "text", "models", "store", "judges"},
    "preflight": {"core", "text", "data", "models", "store", "rollout", "judges", "training"},
    "scale": {"core", "rollout", "training"},
    "pipeline": {"core", "stats", "data", "models", "store", "rollout", "judges", "training", "evals", "preflight"},
    "web": {"core", "stats", "store", "data", "remote"},
    "serve": {"core", "stats", "store", "rollout", "judges", "remote"},
    # parts of the front door that know nothing of what stands behind it
    "recipes": {"core"},
    "terminal": {"core"},
}
FRONT = {"__init__", "__main__", "api", "cli", "commands", "simple"}  # may import all, and no room may import them
LAZY = {"__init__", "__main__", "api", "cli"}  # may do so inside functions: `tutelage --help` loads no torch
TORCH_FREE = ("core", "stats", "data", "store", "evals", "remote", "web")
FILES = sorted(path for path in SRC.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> list[tuple[int, str]]:
    """(line, full dotted name) of everything imported anywhere in the file, function bodies included.

    `from a import b` counts as `a.b`: b may be a module.  Relative imports are spelled out.  `import_module("x")` with a
    literal counts too.
    """
    package = ("tutelage", *path.relative_to(SRC).parent.parts)
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            out += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                out.append((node.lineno, str(node.args[0].value)))
    return out


def faults(source: str, path: Path) -> list[str]:
    """Every line of the file that imports what its room may not."""
    here, out = room(path), []
    for line, name in imported(ast.parse(source), path):
        parts = name.split(".")
        if parts[0] != "tutelage" or here in FRONT:
            continue
        there = parts[1] if len(parts) > 1 else ""
        if there != here and there not in MAY_IMPORT.get(here, set()) and name != "tutelage.__version__":
            out.append(f"{path.relative_to(SRC)}:{line}: {here} may not import {name}")
    return out


def inner_imports(source: str, path: Path) -> list[str]:
    """Imports that do not stand at the top of the file.  `if TYPE_CHECKING:` and `try:` at the top do."""

    def imports(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) in ("import_module", "__import__")
        return isinstance(node, (ast.Import, ast.ImportFrom))

    bodies = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    lines = {node.lineno for body in ast.walk(ast.parse(source)) if isinstance(body, bodies)
             for node in ast.walk(body) if imports(node)}
    return [f"{path.relative_to(SRC)}:{line}" for line in sorted(lines)]


def test_every_room_is_in_the_table():
    rooms = {room(path) for path in FILES} - FRONT
    assert rooms <= set(MAY_IMPORT), f"rooms that the plan does not know: {sorted(rooms - set(MAY_IMPORT))}"


def test_the_table_has_no_circle():
    left = {name: set(below) for name, below in MAY_IMPORT.items()}
    while left:
        ground = {name for name, below in left.items() if not below & set(left)}
        assert ground, f"a circle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in ground}


def test_nobody_imports_what_the_table_does_not_allow():
    found = [fault for path in FILES for fault in faults(path.read_text(encoding="utf-8"), path)]
    assert not found, "\n".join(found)


def test_imports_stand_at_the_top():
    """But for optional packages (core.extras.require), the lazy front door, and the database behind a recipe's `feedback:P`."""
    allowed = {SRC / "core" / "extras.py", SRC / "commands" / "database.py"}
    found = [line for path in FILES if path not in allowed and room(path) not in LAZY
             for line in inner_imports(path.read_text(encoding="utf-8"), path)]
    assert not found, "imports inside functions or classes:\n" + "\n".join(found)


@pytest.mark.parametrize("path, source, caught", [
    ("store/x.py", "from tutelage.core.errors import UserError", False),
    ("store/x.py", "from tutelage.store import runs", False),
    ("store/x.py", "import tutelage.text.chat", True),
    ("store/x.py", "from tutelage import text", True),
    ("store/x.py", "from ..text import chat", True),
    ("store/x.py", "from .runs import Run", False),
    ("store/x.py", "from .. import training", True),
    ("judges/safety/x.py", "from ...training import sft", True),
    ("judges/safety/x.py", "from ..rules import r", False),
    ("store/x.py", "def f():\n    from tutelage.models import load", True),
    ("store/x.py", "def f():\n    import_module('tutelage.models')", True),
    ("store/x.py", "from tutelage.api import sft", True),
    ("store/x.py", "from tutelage import __version__", False),
    ("core/x.py", "import torch", False),  # not this test's matter: see below
    ("cli.py", "from tutelage.training import sft", False),
    ("training/x.py", "from tutelage.commands import sft", True),
])
def test_the_witness_sees_each_way_to_import(path, source, caught):
    assert bool(faults(source, SRC / path)) is caught


@pytest.mark.parametrize("source, caught", [
    ("import os\nfrom x import y", False),
    ("try:\n    import resource\nexcept ImportError:\n    resource = None", False),
    ("def f():\n    import os", True),
    ("class A:\n    def f(self):\n        if 1:\n            from x import y", True),
    ("class A:\n    import os", True),
    ("async def f():\n    import os", True),
    ("def f():\n    return __import__('os')", True),
    ("def f():\n    return importlib.import_module('os')", True),
    ("def f():\n    wandb = require('wandb')", False),
])
def test_the_witness_sees_imports_inside(source, caught):
    assert bool(inner_imports(source, SRC / "store" / "x.py")) is caught


def fresh(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_tutelage_loads_no_torch():
    done = fresh("import sys, tutelage; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


NO_TORCH = """
import importlib, sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
print("\\n".join(failed))
"""


def test_the_rooms_of_words_and_disk_import_where_there_is_no_torch():
    names = [".".join(("tutelage", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
             for path in FILES if room(path) in TORCH_FREE]
    assert len(names) > 10
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), done.stdout
    caught = subprocess.run([sys.executable, "-c", NO_TORCH, "tutelage.algos.gae"], capture_output=True, text=True)
    assert "torch is not there" in caught.stdout  # the witness sees what we forbid
