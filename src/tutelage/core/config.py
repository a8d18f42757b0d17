"""Strict binding of a recipe (nested dictionaries) to dataclasses, with dotted overrides.

A dataclass may say in `REFUSED: ClassVar[dict[str, str]]` why a key that people know from elsewhere is none of its own.

All faults are collected and reported at once; an unknown key names the nearest known one.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from tutelage.core.errors import ConfigError, nearest

C = TypeVar("C")


def bind(kind: type[C], values: Mapping[str, Any], *, where: str = "recipe") -> C:
    """An instance of dataclass `kind` from `values`; ConfigError with every fault when something is off."""
    faults: list[str] = []
    out = _bind(kind, values, (), faults)
    if faults:
        raise ConfigError(faults, where=where)
    return out


def _bind(kind: type[C], values: Mapping[str, Any], path: tuple[str, ...], faults: list[str]) -> C | None:
    before = len(faults)
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in dataclasses.fields(kind)}
    here = ".".join(path) or "the top level"
    taken: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            refused = getattr(kind, "REFUSED", {}).get(key)
            faults.append(f"{'.'.join((*path, key))} is not possible here: {refused}" if refused else
                          f'unknown key "{key}" in {here}{nearest(str(key), known)}')
            continue
        taken[key] = _value(hints[key], value, (*path, key), faults)
    for name, item in known.items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.append(f'missing key "{".".join((*path, name))}" ({_type_name(hints[name])})')
    if len(faults) > before:
        return None
    try:
        return kind(**taken)
    except ValueError as error:
        faults.extend(f"{here}: {line}" if path else line for line in str(error).split("\n") if line)
        return None


def _value(hint: Any, value: Any, path: tuple[str, ...], faults: list[str]) -> Any:
    name = ".".join(path)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is type(None):
                continue
            trial: list[str] = []
            out = _value(option, value, path, trial)
            if not trial:
                return out
            if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                faults.extend(trial)  # a section that may be left out: say what is wrong inside it
                return None
        faults.append(f"{name} must be {_type_name(hint)}; got {value!r}")
        return None
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _bind(hint, value, path, faults)
        faults.append(f"{name} must be a section with keys; got {value!r}")
        return None
    if origin is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            hint_at = nearest(str(value), map(str, options))
            faults.append(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}{hint_at}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            faults.append(f"{name} must be a list; got {value!r}")
            return None
        inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        return (tuple if origin is tuple else list)(
            _value(inner[0] if inner else Any, each, (*path, str(at)), faults) for at, each in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            faults.append(f"{name} must be a section with keys; got {value!r}")
            return None
        inner = typing.get_args(hint)[1:]  # dict[str, X]: every value is an X
        if not inner:
            return dict(value)
        return {str(key): _value(inner[0], each, (*path, str(key)), faults) for key, each in value.items()}
    if hint is Any:
        return value
    return _scalar(hint, value, name, faults)


def _scalar(hint: Any, value: Any, name: str, faults: list[str]) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    faults.append(f"{name} must be {_type_name(hint)}; got {value!r}")
    return None


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint).replace("typing.", ""))


def override(values: Mapping[str, Any], assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of nested `values` with dotted paths set.

    >>> override({"ppo": {"clip": 0.2}}, [("ppo.clip", 0.1), ("seed", 3)])
    {'ppo': {'clip': 0.1}, 'seed': 3}
    """
    out = {key: (override(value, []) if isinstance(value, Mapping) else value) for key, value in values.items()}
    for dotted, value in assignments:
        parts = dotted.split(".")
        place = out
        for depth, part in enumerate(parts[:-1]):
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError([f"{dotted}: {'.'.join(parts[: depth + 1])} is a value, not a section"], where="override")
            place = inner
        place[parts[-1]] = value
    return out


def to_dict(config: Any) -> Any:
    """Nested plain dictionaries of a dataclass, to print and to store as the resolved configuration."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {item.name: to_dict(getattr(config, item.name)) for item in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(each) for each in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config
