"""Stage: a task, its inputs, its key. The graph of a study is nothing but stages that name stages.

    key = sha256(canonical JSON of {task, version, inputs}),   an input stage stands in it by its own key

so a key names everything that made a value, and equal work has an equal name in every run, sweep and worker.

What may be an input: None, bool, int, finite float, str, lists and mappings of these, another Stage, and *configured
things*: frozen dataclasses (criterion, pattern, recipe, ...), which are described by their class and all their fields.
A class whose code changes its numbers bumps its `version` attribute (1 where there is none); a task bumps its own. A
field that says where a thing lies and not what it is has metadata {"key": False} and is no part of the key.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def describe(value: Any) -> Any:
    """JSON description of an input, in which equal meaning has equal spelling: 1.0 is 1 and a tuple is a list.

    Raises TypeError for a value that has no canonical description, ValueError for a float that is not finite.
    """
    if isinstance(value, Stage):
        return {"stage": value.key}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a key cannot hold {value}; only finite numbers")
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = [f.name for f in dataclasses.fields(value) if f.metadata.get("key", True)]
        fields = {name: describe(getattr(value, name)) for name in named}
        kind = type(value)
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", "version": getattr(kind, "version", 1), **fields}
    raise TypeError(
        f"{type(value).__name__} cannot be an input of a stage; use JSON values, frozen dataclasses, stages"
    )


def canonical(description: Any) -> bytes:
    """One spelling: sorted names, no spaces, ASCII."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(description: Any) -> str:
    """Full SHA-256 (64 hex digits) of a canonical description."""
    return hashlib.sha256(canonical(description)).hexdigest()


class Task:
    """A function that computes the value of a stage. Calling the task does not run it: it names the work, a Stage.

    function(context, **inputs) gets its input stages' values in their place; `context` says where to compute (device,
    data directory) and is no part of the key. `value` is the class of what it returns, with
    pack() -> (tensors, meta) and unpack(tensors, meta). `stored=False`: so cheap that it is computed again wherever
    it is needed, inside the work of its consumer.
    """

    def __init__(self, function: Callable[..., Any], version: int, value: Any, stored: bool):
        self.function, self.version, self.value, self.stored = function, version, value, stored
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.__module__, self.__qualname__, self.__doc__ = function.__module__, function.__qualname__, function.__doc__

    def __call__(self, **inputs: Any) -> "Stage":
        return Stage(self, inputs)

    def __reduce__(self) -> str:  # a worker finds a task by its name, as it does a function
        return self.__qualname__


def task(version: int, value: Any, stored: bool = True) -> Callable[[Callable[..., Any]], Task]:
    """Make a Task of a function."""
    return lambda function: Task(function, version, value, stored)


class Stage:
    """A named piece of work: task, inputs, key (64 hex digits)."""

    def __init__(self, task: Task, inputs: Mapping[str, Any]):
        self.task, self.inputs = task, inputs
        self.description = {"task": task.name, "version": task.version, "inputs": describe(inputs)}
        self.key = digest(self.description)

    def __repr__(self) -> str:
        return f"{self.task.name}:{self.key[:12]}"

    def bare(self) -> "Stage":
        """This stage by its name alone, its inputs forgotten: small to send, enough to read its value."""
        stage = object.__new__(Stage)
        stage.task, stage.key, stage.inputs, stage.description = self.task, self.key, {}, {}
        return stage

    def parents(self) -> list["Stage"]:
        """The stages that this one names, each once, in order."""
        return list({stage.key: stage for stage in _stages(self.inputs)}.values())


def ancestors(stages: Iterable[Stage]) -> Iterator[Stage]:
    """These stages and all that they are built on, each once."""
    seen, path = set(), list(stages)
    while path:
        stage = path.pop()
        if stage.key not in seen:
            seen.add(stage.key)
            yield stage
            path += stage.parents()


def _stages(value: Any) -> Iterator[Stage]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _stages(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _stages(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _stages(getattr(value, field.name))


def substitute(value: Any, replace: Callable[[Stage], Any]) -> Any:
    """`value` with every stage in it replaced by replace(stage)."""
    if isinstance(value, Stage):
        return replace(value)
    if isinstance(value, Mapping) and any(True for _ in _stages(value)):
        return {name: substitute(item, replace) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(substitute(item, replace) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and any(True for _ in _stages(value)):
        return dataclasses.replace(
            value, **{f.name: substitute(getattr(value, f.name), replace) for f in dataclasses.fields(value)}
        )
    return value


class Numbers(dict):
    """A stage's value that is JSON: numbers, words, lists of them. A number that is not finite is stored as None."""

    def pack(self) -> tuple[dict, dict]:
        return {}, _finite(self)

    @classmethod
    def unpack(cls, tensors: dict, meta: dict) -> "Numbers":
        return cls(meta)


class Tensors(dict):
    """A stage's value that is tensors, by name."""

    def pack(self) -> tuple[dict, dict]:
        return dict(self), {}

    @classmethod
    def unpack(cls, tensors: dict, meta: dict) -> "Tensors":
        return cls(tensors)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Diverged:
    """The value of a stage whose training met a loss that is not finite, at `step`, and of every stage built on it."""

    step: int

    def pack(self) -> tuple[dict, dict]:
        return {}, {"diverged_step": self.step}
