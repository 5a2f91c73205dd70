"""What a configuration may hold: classes that it may name, and values of the kinds that those classes declare."""

import dataclasses
import math
import pkgutil
import types
import typing
from typing import Any

TARGETS = ("lth.", "torch.optim.", "torch.nn.", "torchvision.models.")


class InputError(ValueError):
    """Something asked for cannot be done; the message is one line that says what, and what would be right."""


def check_fields(thing: Any, where: str) -> None:
    """Raises InputError unless the fields of a configured thing are of the kinds that its class declares."""
    kinds = typing.get_type_hints(type(thing))
    for name in (field.name for field in dataclasses.fields(thing)):
        value = getattr(thing, name)
        check_kind(value, kinds[name], f"{where}.{name}")
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{where}.{name}")


WORDS = {int: "a whole number", float: "a finite number", str: "a word", bool: "true or false"}


def check_kind(value: Any, kind: Any, where: str) -> None:
    """Raises InputError, naming `where`, unless `value` is of a declared kind."""
    if not _fits(value, kind):
        raise InputError(f"{where}={value} must be {WORDS.get(kind, getattr(kind, '__name__', None) or kind)}")


def _fits(value: Any, kind: Any) -> bool:
    """True if `value` is of a declared kind. A bool is no number; a float is finite; an int will do for a float."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind in (int, str, bool, type(None)):
        return isinstance(value, kind)
    return kind is Any or callable(value)  # what is left are things to call, such as a schedule


def _allowed(target: str) -> bool:
    """True for a class that is defined below one of TARGETS; what such a module imports is not its own."""
    if not target.startswith(TARGETS):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(TARGETS)


def check_targets(node: Any, path: str = "") -> None:
    """Raises InputError where a configuration names a class that is not of this project or torch's own."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not _allowed(str(target)):
            raise InputError(f"{path}._target_={target} is not a class of {', '.join(TARGETS)} and no other is allowed")
        for name, child in node.items():
            check_targets(child, f"{path}.{name}".lstrip("."))
    elif isinstance(node, list):
        for child in node:
            check_targets(child, path)
