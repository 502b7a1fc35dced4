"""Typed data from the plain data that JSON holds: the way back from `dataclasses.asdict`.

Needs nothing but the standard library, so that a run can be made where no library for records is installed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_plain(kind: type[T], data: Any, where: str = "") -> T:
    """An object of the dataclass `kind`, and of those that its fields name.

    Args:
        kind: a dataclass whose fields are dataclasses, tuples, dicts, literals and plain values, or unions of those.
        data: what `dataclasses.asdict` made of one, before or after JSON.
        where: path of the data, for messages.

    Raises:
        ValueError: names are unknown or missing, or a value is of the wrong type; one line that names the place.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or kind.__name__}: expected names and values, not {data!r}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # pyright: ignore[reportArgumentType]
    hints = get_type_hints(kind)
    for name in data:
        if name not in fields:
            raise ValueError(f"{_join(where, name)}: unknown; there are {', '.join(fields)}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in data and not optional:
            raise ValueError(f"{_join(where, name)}: is missing")
    return kind(**{name: _value(hints[name], value, _join(where, name)) for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin in (Union, UnionType):
        chosen = [part for part in parts if part is not NoneType]
        return None if value is None and NoneType in parts else _value(_fitting(chosen, value), value, where)
    if origin is Literal:
        return _checked(value, value in parts, f"one of {', '.join(map(str, parts))}", where)
    if origin is tuple:
        _checked(value, isinstance(value, Sequence) and not isinstance(value, str), "a list", where)
        kinds = [parts[0]] * len(value) if parts[1:] == (...,) else parts
        _checked(value, len(kinds) == len(value), f"{len(kinds)} values", where)
        return tuple(
            _value(part, item, f"{where}.{i}") for i, (part, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        _checked(value, isinstance(value, Mapping), "names and values", where)
        return {name: _value(parts[1], item, _join(where, name)) for name, item in value.items()}
    right = hint is Any or _fits(hint, value)
    return _checked(value, right, str(getattr(hint, "__name__", hint)), where)


def _fits(hint: Any, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (hint is float or isinstance(value, int)) if hint in (int, float) else isinstance(value, hint)


def _fitting(kinds: Sequence[Any], value: Any) -> Any:
    """Of several dataclasses the first that knows all names of `value`; the first kind where none does."""
    records = [kind for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(value, Mapping)]
    known = (kind for kind in records if set(value) <= {field.name for field in dataclasses.fields(kind)})
    return next(known, kinds[0])


def _checked(value: Any, right: bool, expected: str, where: str) -> Any:
    if not right:
        raise ValueError(f"{where}: expected {expected}, not {value!r}")
    return value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
