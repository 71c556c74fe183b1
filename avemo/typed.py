"""Dataclasses from the plain values of JSON and YAML, by their fields' types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    str: (str,),
    Path: (str, Path),
    dict: (dict,),
}


def build(cls: type[T], values: Any, name: str = "") -> T:
    """A dataclass, nested ones included, of what `asdict` gave; the rest is as by default.

    In a hundredth of the time that a parser of command lines takes for it.

    Args:
        cls: a dataclass whose fields are plain values, paths, literals, tuples, dictionaries, dataclasses or unions of
            these.
        values: by name.
        name: of the dataclass in errors.

    Raises:
        ValueError: a field is unknown, is missing or has the wrong type; the message names it.
    """
    if not isinstance(values, Mapping):
        raise _wrong(name or cls.__name__, "settings by name", values)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"unknown setting: {_joined(name, unknown[0])}")
    for key, field in known.items():
        if key not in values and field.default is field.default_factory is MISSING:
            raise ValueError(f"{_joined(name, key)} is missing")
    kinds = get_type_hints(cls)
    return cls(**{key: _value(kinds[key], v, _joined(name, key)) for key, v in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, name)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, UnionType):
        return _one_of(arguments, value, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_value(k, v, name) for k, v in zip(kinds, value, strict=True))
    if origin is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-3 for text
        except ValueError:
            raise _wrong(name, "a number", value) from None
    allowed = _PLAIN.get(origin, ())
    if isinstance(value, allowed) and (origin is bool or not isinstance(value, bool)):
        return origin(value)
    raise _wrong(name, str(kind).replace("typing.", "") if arguments else kind.__name__, value)


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _value(kind, value, name)
            except ValueError as error:
                errors.append(error)
    raise errors[0]


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else str(key)


def _wrong(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {value!r}")
