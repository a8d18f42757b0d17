"""Recipes: YAML read strictly into the dataclass of a command, with dotted overrides, and the workspace that they run in.

A recipe is found by path, or by name in the workspace's `recipes/`, then among those that come with Tutelage.  Every fault
of recipe and overrides is reported at once, under the recipe's name.
"""

import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tutelage.core.config import bind, override
from tutelage.core.errors import ConfigError, UserError, nearest

C = TypeVar("C")

SETTINGS = "tutelage.yaml"
BUILT_IN = (
    Path(__file__).resolve().parents[2] / "recipes",  # a clone
    Path(sysconfig.get_path("data")) / "share" / "tutelage" / "recipes",
)  # an installed package


class _Strict(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice, where YAML readers silently take the last."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f'the key "{key}" stands twice (first on line {seen[key]})', key_node.start_mark
            )
        seen[key] = key_node.start_mark.line + 1
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(text: str, *, where: str) -> dict[str, Any]:
    """The mapping in `text`; an empty text is an empty mapping.  ConfigError names the line of a fault."""
    try:
        values = yaml.load(text, Loader=_Strict)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError([f"{line}{getattr(error, 'problem', None) or error}"], where=where) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"wanted keys with values (`key: value`), got {type(values).__name__}"], where=where)
    return values


def read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return read_yaml(text, where=str(path))


def known_recipes(workspace: Path | None = None) -> dict[str, Path]:
    """Recipes by name; the workspace's own hide built-in ones of the same name."""
    folders = [*reversed(BUILT_IN), *([workspace / "recipes"] if workspace else [])]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.y*ml"))}


def find_recipe(name: str | Path, workspace: Path | None = None) -> Path:
    """The file behind a path or a name.  UserError names the nearest known recipe."""
    path = Path(name)
    if path.is_file():
        return path
    known = known_recipes(workspace)
    if str(name) in known:
        return known[str(name)]
    if path.suffix in (".yaml", ".yml") and path.stem in known and len(path.parts) == 1:
        return known[path.stem]
    raise UserError(f"no recipe {str(name)!r}: neither a file nor the name of one{nearest(path.stem, known)}")


def assignments(words: Iterable[str], faults: list[str]) -> list[tuple[str, Any]]:
    """`a.b=value` as path and YAML value; what is no assignment is appended to `faults`.

    >>> assignments(["optim.learning_rate=1e-4", "loop.epochs=3", "labels=[a, b]"], [])
    [('optim.learning_rate', 0.0001), ('loop.epochs', 3), ('labels', ['a', 'b'])]
    """
    out = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not all(key.split(".")):
            faults.append(f'"{word}" is no override; wanted key=value, for instance optim.learning_rate=1e-5')
            continue
        try:
            out.append((key, _scalar(yaml.load(value, Loader=_Strict))))  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            faults.append(f"{key}: {value!r} is not YAML ({getattr(error, 'problem', None) or error})")
    return out


def _scalar(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text
        except ValueError:
            return value
    return value


def overridden(values: Mapping[str, Any], words: Sequence[str], faults: list[str]) -> dict[str, Any]:
    """`values` with the overrides applied; one that cannot be applied is left out and its fault appended."""
    out = dict(values)
    for assignment in assignments(words, faults):
        try:
            out = override(out, [assignment])
        except ConfigError as error:
            faults += error.faults
    return out


def read_config(
    kind: type[C] | Callable[[Mapping[str, Any]], type[C]], recipe: str | Path | None = None, words: Sequence[str] = (), *,
    workspace: Path | None = None,
) -> C:
    """The configuration `kind` of a recipe (None: its defaults) with overrides; ConfigError with every fault at once.

    `kind` may be a function of the recipe's values that says which dataclass they are for.
    """
    path = find_recipe(recipe, workspace) if recipe is not None else None
    where = str(path) if path else "configuration"
    faults: list[str] = []
    values = overridden(read_file(path) if path else {}, words, faults)
    try:
        config = bind(kind if isinstance(kind, type) else kind(values), values, where=where)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults, where=where)
    return config


# The workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `tutelage.yaml` may say."""

    model: str = "smollm2-135m"  # for commands that were given no model
    track: tuple[str, ...] = ()  # tensorboard, trackio, wandb, mlflow: for every training run


def find_workspace(given: str | Path | None = None) -> Path:
    """The folder given; else the nearest one upwards that holds a tutelage.yaml; else here."""
    if given is not None:
        folder = Path(given)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workspace {folder} is a file; wanted a folder")
        return folder
    here = Path.cwd()
    found = next((folder for folder in (here, *here.parents) if (folder / SETTINGS).is_file()), here)
    return Path() if found == here else found


def read_settings(workspace: Path) -> Settings:
    path = workspace / SETTINGS
    return bind(Settings, read_file(path), where=str(path)) if path.is_file() else Settings()


def model_of(name: str, workspace: Path) -> str:
    """A model's name or folder; the name of a run means the model that it made.

    UserError for a run that has made none yet.
    """
    run = workspace / "runs" / name
    if name == "test" or ":" in name or Path(name).is_dir() or not (run / "manifest.json").is_file():
        return name
    if not (run / "final").is_dir():
        raise UserError(f"the run {name} has not finished, so it has no model yet; see `tutelage runs {name}`")
    return str(run / "final")


def short_name(model: str) -> str:
    """What to call a model: the run's name where it is the result of one.

    >>> short_name("runs/sft-0001/final"), short_name("smollm2-135m"), short_name("hf:org/name")
    ('sft-0001', 'smollm2-135m', 'name')
    """
    path = Path(model)
    return path.parent.name if path.name == "final" and path.parent.name else path.name or model
