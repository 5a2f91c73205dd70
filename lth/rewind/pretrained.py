"""Pretrained: the dense network begins with pre-trained weights, and survivors restart from them, k = 0 (Chen et al.
2020, https://arxiv.org/abs/2007.12223, for BERT; 2021, https://arxiv.org/abs/2012.06908, for vision).

    theta_0 = theta_pretrained;   then as the papers of tickets have it: train to theta_T, prune, rewind to theta_0

All replicates begin with the same weights and differ in their data order. Deviation: the papers put a fresh output
layer on a pre-trained body; here the whole network is the source's, so both have as many classes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from lth.data import Source
from lth.perform import Context
from lth.rewind import at_end, moved, remaining, throughout
from lth.stage import Diverged, Stage, task
from lth.state import TrainState
from lth.store import Store, StoreError
from lth.train import result, state_at


@dataclass(frozen=True)
class File:
    """A file of weights. digest: SHA-256 of its bytes, all that a key knows of it. path: where it lies."""

    digest: str
    path: str = field(metadata={"key": False})


def opened(path: str) -> tuple[str, dict[str, Tensor]]:
    """(SHA-256, tensors by name) of a safetensors file. Raises ValueError for anything else."""
    try:
        content = Path(path).read_bytes()
        return hashlib.sha256(content).hexdigest(), load(content)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (SafetensorError, KeyError) as error:  # KeyError: a kind of number that torch has not
        raise ValueError(f"is not a safetensors file of torch tensors ({error})") from error


def matched(tensors: Mapping[str, Tensor], model: nn.Module) -> TrainState:
    """The weights in `tensors` as a state of `model` at step 0, without moments.

    Names are the model's own, or those behind "params:" and "buffers:"; optimizer:, mask: and best: are passed over.
    Raises ValueError for the first tensor that is not the model's, or is missing, or is of another shape or kind.
    """
    expected, _ = TrainState.of(model).pack()
    whole = {name.partition(":")[2]: name for name in expected}
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(("optimizer:", "mask:", "best:")):
            continue
        if (full := whole.get(name, name)) not in expected:
            raise ValueError(f"its {name[:60]} is no weight of the model, as {next(iter(whole))} is")
        if full in found:
            raise ValueError(f"holds {full.partition(':')[2]} twice, also as {full}")
        found[full] = tensor
    for name, full in whole.items():
        if full not in found:
            raise ValueError(f"has no {name}, which the model has")
        there, here = ((tuple(t.shape), t.dtype) for t in (found[full], expected[full]))
        if there != here:
            words = [f"{list(shape)} {str(kind).removeprefix('torch.')}" for shape, kind in (there, here)]
            raise ValueError(f"its {name} is {words[0]}, the model's {words[1]}")
    return TrainState.unpack(found, {"step": 0})


@task(version=1, value=TrainState)
def read(context: Any, model: Any, data: Source, file: File) -> TrainState:
    """The weights in a file. Raises ValueError where it is no longer the file that was named."""
    digest, tensors = opened(file.path)
    if digest != file.digest:
        raise ValueError(f"{file.path} is not what it was when this command began; run it again")
    return matched(tensors, context.model(model, data))


def finished(key: str, store: Store) -> tuple[Stage, TrainState]:
    """The state at the end of the training whose result is the stage `key`: (the stage by its name alone, its value).

    Raises ValueError where there is none.
    """
    if not store.present(key):
        raise ValueError(f"is not in the store {store.root}")
    named = store.manifest(key)["stage"]
    if named["task"] != result.name:
        raise ValueError(f"is a stage of {named['task']}, not of {result.name}: not a finished training")
    run = named["inputs"]["run"]
    end = state_at(run=run, step=run["num_steps"]).bare()  # a description is described by itself: the key is the run's
    if not store.holds(end.key):
        raise ValueError("its trained weights are not in the store; keep=all keeps those of dense networks and tickets")
    if isinstance(state := store.read(end), Diverged):
        raise ValueError(f"diverged at step {state.step}, so it has no weights")
    return end, state


@dataclass(frozen=True)
class Pretrained:
    """source: a safetensors file, plain names or those of a stage's value and of a saved ticket (whose removed weights
    begin at zero); or the stage of a finished training (64 hex digits: `stage` in rows.jsonl), which gives the weights
    at its end. store: where that stage lies, the job's own."""

    source: str
    store: str = field(metadata={"key": False})

    num_steps = remaining
    span = throughout
    leaves = at_end

    def step(self, recipe):
        return 0

    def __call__(self, dense, trained):
        return dense.at(0)

    def origin(self, lab: Any) -> Stage:
        model = Context().model(lab.model, lab.data)
        try:
            if re.fullmatch("[0-9a-f]{64}", self.source):
                stage, state = finished(self.source, Store(self.store))
                matched(state.pack()[0], model)
                return moved(state=stage, step=0, optimizer="reset")
            digest, tensors = opened(self.source)
            matched(tensors, model)
        except (ValueError, StoreError) as error:
            short = self.source if len(self.source) <= 80 else f"...{self.source[-77:]}"
            raise ValueError(" ".join(f"rewind.source={short} {error}".split())[:200]) from error
        return read(model=lab.model, data=lab.data, file=File(digest, str(Path(self.source).absolute())))
