"""Law 4: a hit equals a recompute. What is in a key, what is not, and the graph's own mechanics."""

import dataclasses
import pickle
from dataclasses import dataclass

import pytest
from conftest import Bench, Blobs
from hypothesis import given
from hypothesis import strategies as st

from lth.criterion.random import Random
from lth.pattern.unstructured import Unstructured
from lth.perform import value
from lth.recipe import Cosine, Recipe, Step
from lth.rewind.early import Early
from lth.stage import Numbers, Stage, canonical, describe, digest, substitute, task


@task(version=1, value=Numbers)
def add(context, a, b):
    return Numbers(sum=a + b)


@task(version=2, value=Numbers)
def add_again(context, a, b):
    return Numbers(sum=a + b)


@dataclass(frozen=True)
class Thing:
    rate: float
    sizes: list[int]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_key_says_the_value(one, two):
    """Equal canonical descriptions, equal keys; different ones, different keys."""
    equal = canonical(describe(one)) == canonical(describe(two))
    assert (add(a=one, b=0).key == add(a=two, b=0).key) == equal


def test_spelling_does_not_matter():
    """1e-3 is 0.001, 1.0 is 1, a tuple is a list, and the order of names is nothing."""
    assert describe(1e-3) == describe(0.001)
    assert canonical(describe(1.0)) == canonical(describe(1))
    assert describe((1, 2)) == describe([1, 2])
    assert add(a=1, b=2).key == Stage(add, {"b": 2, "a": 1}).key
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})


def test_bool_is_no_number():
    """True and 1 are different inputs."""
    assert add(a=True, b=0).key != add(a=1, b=0).key


@pytest.mark.parametrize("value_", [float("nan"), float("inf"), object(), {1, 2}, Thing])
def test_what_cannot_be_named_is_refused(value_):
    """No silent repr() in a key."""
    with pytest.raises((TypeError, ValueError)):
        add(a=value_, b=0)


def test_task_name_and_version_are_in_the_key():
    """Code that changes numbers bumps its task's version, and the key changes; so does another task's name."""
    assert add(a=1, b=2).key != add_again(a=1, b=2).key
    bumped = task(version=2, value=Numbers)(add.function)
    assert bumped(a=1, b=2).key != add(a=1, b=2).key


def test_class_version_is_in_the_key():
    """A configured thing whose code changes its numbers bumps its version."""

    @dataclass(frozen=True)
    class Versioned:
        rate: float

    before = describe(Versioned(0.1))
    Versioned.version = 2  # type: ignore[attr-defined]
    assert describe(Versioned(0.1)) != before


def test_a_field_may_be_left_out_of_the_key():
    """Metadata {"key": False}: where a thing lies is in no key, wherever the thing stands; what it is stays in."""

    @dataclass(frozen=True)
    class Found:
        digest: str
        path: str = dataclasses.field(metadata={"key": False})

    one, moved, other = Found("a", "here"), Found("a", "there"), Found("b", "here")
    assert add(a=[one], b=0).key == add(a=[moved], b=0).key != add(a=[other], b=0).key
    assert describe(one).keys() == {"_target_", "version", "digest"}


def test_stage_names_its_inputs():
    """A change anywhere upstream changes every key downstream, and an input's key stands for all behind it."""
    one, two = add(a=1, b=2), add(a=1, b=3)
    assert add(a=one, b=0).key != add(a=two, b=0).key
    assert add(a=one, b=0).key == add(a=one.bare(), b=0).key
    assert [p.key for p in add(a=[one, {"x": two}], b=one).parents()] == [one.key, two.key]


def test_stage_travels():
    """A stage, and its task, survive the way to a worker."""
    stage = add(a=add(a=1, b=2), b=Thing(0.1, [1]))
    copy = pickle.loads(pickle.dumps(stage))
    assert copy.key == stage.key and copy.task is add


def test_substitute_reaches_everywhere():
    """Stages in mappings, lists and dataclasses are replaced; what holds none is left as it is."""
    inputs = {"a": add(a=1, b=2), "b": [Thing(0.1, [1]), add(a=3, b=4)]}
    assert substitute(inputs, lambda stage: stage.inputs["a"]) == {"a": 1, "b": [Thing(0.1, [1]), 3]}


def leaves(node, path=()):
    """Paths of all JSON leaves of a description."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from leaves(child, (*path, name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from leaves(child, (*path, index))
    else:
        yield path


def test_every_scientific_leaf_changes_the_key(bench: Bench):
    """Every leaf of what describes a ticket's result is in its key: changing any one changes the key."""
    training = next(t for t in bench.trainings() if t.branch == "ticket")
    description = training.run.result.description
    assert digest(description) == training.run.result.key
    for path in leaves(description):
        copy = pickle.loads(pickle.dumps(description))
        node = copy
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = "changed"
        assert digest(copy) != training.run.result.key, path


VARIANTS = {
    "lr": {"recipe": Recipe("Adam", 0.02, 20, 40, 10)},
    "batch_size": {"recipe": Recipe("Adam", 0.01, 10, 40, 10)},
    "steps": {"recipe": Recipe("Adam", 0.01, 20, 41, 10)},
    "eval_every": {"recipe": Recipe("Adam", 0.01, 20, 40, 20)},
    "schedule": {"recipe": Recipe("Adam", 0.01, 20, 40, 10, schedule=Cosine())},
    "drops": {"recipe": Recipe("Adam", 0.01, 20, 40, 10, schedule=Step([20]))},
    "options": {"recipe": Recipe("Adam", 0.01, 20, 40, 10, options={"weight_decay": 1e-4})},
    "optimizer": {"recipe": Recipe("SGD", 0.01, 20, 40, 10)},
    "warmup": {"recipe": Recipe("Adam", 0.01, 20, 40, 10, warmup=5)},
    "criterion": {"criterion": Random()},
    "scope": {"pattern": Unstructured("global")},
    "output": {"pattern": Unstructured(output=1.0)},
    "rewind": {"rewind": Early(10)},
    "rewind optimizer": {"rewind": Early(10, "reset")},
}


def test_choices_have_keys_of_their_own(bench: Bench):
    """Every choice that changes numbers gives the last ticket another key, all different; and so do data, model,
    replicate and base seed."""

    def last(changed: Bench, **lab) -> str:
        return [t for t in changed.trainings(**lab) if t.branch == "ticket"][-1].run.result.key

    keys = {name: last(dataclasses.replace(bench, **change)) for name, change in VARIANTS.items()}
    keys["base"] = last(bench)
    keys["data"] = last(dataclasses.replace(bench, data=Blobs(1)(bench.store.root)))
    keys["model"] = last(dataclasses.replace(bench, model=type(bench.model)([9])))
    keys["init"] = last(dataclasses.replace(bench, model=type(bench.model)([8], "orthogonal")))
    keys["sparsity"] = last(bench, sparsity=0.3)
    keys["replicate"] = [t for t in bench.trainings(replicates=2) if t.branch == "ticket"][-1].run.result.key
    assert len(set(keys.values())) == len(keys), keys


def test_step_words_are_resolved_before_they_are_named(bench: Bench):
    """4ep is 40it is 40: 200 examples in batches of 20."""
    words = dataclasses.replace(bench, recipe=Recipe("Adam", 0.01, 20, "4ep", "10it"))
    assert [t.run.result.key for t in words.trainings()] == [t.run.result.key for t in bench.trainings()]


def test_hit_equals_recompute(bench: Bench, tmp_path):
    """Law 4 itself: what a second store computes is, stage by stage, what the first one serves."""
    trainings = bench.trainings()
    bench.run(trainings)
    again = dataclasses.replace(bench, store=type(bench.store)(tmp_path / "again"))
    again.run(again.trainings())
    assert again.numbers(trainings) == bench.numbers(trainings)
    for training in trainings:
        if training.ticket:
            masks = [value(training.ticket.mask, b.store, b.context) for b in (bench, again)]
            assert masks[0] == masks[1]
