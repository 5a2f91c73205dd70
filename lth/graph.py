"""Graph: which channel feeds which, through the linear and convolutional layers of a network, traced by torch.fx.

A unit is a channel of a convolution's output, or a neuron: what one row of a weight makes. Every tensor on the way is
described by the units along its channel axis, dimension 1. Normalisation by batch, activations, pooling and dropout
leave them as they are; flattening repeats each over its positions; a sum makes new units of its operands'; padding and
slicing move them, with zeros where nothing was (option A shortcuts of He et al. 2016, https://arxiv.org/abs/1512.03385,
section 4.2). What is not in this list is refused, in one line that names the layer.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

Units = np.ndarray  # int64 [channels]
ZERO, INPUT = 0, 1  # the unit that is always zero, and the one that stands for every input of the network
# torch's modules, and functions without "_", that keep channels apart and in their places
SAME = (
    "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "batchnorm1d", "batchnorm2d", "batchnorm3d", "relu",
    "relu6", "leakyrelu", "elu", "gelu", "silu", "tanh", "sigmoid", "hardtanh", "softplus", "maxpool1d", "maxpool2d",
    "avgpool1d", "avgpool2d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptivemaxpool2d", "contiguous", "clone",
)  # fmt: skip


class Step(NamedTuple):
    """A layer: its weight's name, its inputs [columns], its outputs [rows]; it stands there twice if it is used twice.
    Or a sum: no name, its operands [2, channels], its sums [channels]."""

    name: str
    sources: Units
    made: Units


class Graph:
    """steps, in the order of computation; outputs: the units of the logits; num_units: they are numbered from 0."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.outputs, self.num_units = np.arange(0), 2

    def add(self, name: str, sources: Units, count: int) -> Units:
        """New units, made of `sources`."""
        self.steps.append(Step(name, sources, np.arange(self.num_units, self.num_units + count)))
        self.num_units += count
        return self.steps[-1].made


def follow(model: nn.Module) -> Graph:
    """The graph of a network of one input [batch, ...]. Raises ValueError where it cannot be followed."""
    refused, graph, found = "cannot follow channels through", Graph(), {}
    try:
        nodes = fx.Tracer().trace(model).nodes
    except Exception as error:  # whatever a network's own code does when given what is no tensor
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{refused} {type(model).__name__}: {text}") from error
    made: Any = None
    for node in nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        try:
            found[node] = made = _units(node, name, module, found, graph)
        except TypeError:  # where a number is wanted there is one that the network computes
            made = None
        if made is None:
            kind = type(module).__name__ if module else name
            raise ValueError(f"{refused} {name if module else node.name} ({kind}); pattern=unstructured needs none")
    graph.outputs = made[0]
    return graph


def _units(node: fx.Node, name: str, module: Any, found: Mapping[Any, Any], graph: Graph) -> tuple | None:
    """(units, number of dimensions or None) of the tensor that a node makes; () of a size; None where it is unknown."""
    if node.op == "placeholder":
        return np.array([INPUT]), None
    args: list[Any] = [*node.args, *node.kwargs.values()]
    of = found.get(args[0]) if args and isinstance(args[0], fx.Node) else None
    if of is None or node.op == "output":
        return of or None
    if name in ("size", "getattr") or of == ():
        return ()
    (units, rank), rest, kind = of, args[1:], (type(module).__name__ if module else name.replace("_", "")).lower()
    if kind in ("linear", "conv1d", "conv2d", "conv3d") and module and getattr(module, "groups", 1) == 1:
        linear = kind == "linear"
        sources = _spread(units, module.in_features if linear else module.in_channels)
        if sources is None or (linear and rank not in (2, None)):
            return None
        return graph.add(f"{name}.weight", sources, len(module.weight)), 2 if linear else module.weight.dim()
    if kind in SAME:
        return None if kind.startswith("batchnorm") and ZERO in units else of  # a norm's bias makes something of zero
    if kind == "flatten":
        return (units, 2) if ([module.start_dim, module.end_dim] if module else [*rest, -1][:2]) == [1, -1] else None
    if kind in ("view", "reshape"):
        return (units, 2) if len(rest) == 2 and -1 in rest else None
    if kind == "mean" and rank and rest:
        axes = sorted(rest[0]) if isinstance(rest[0], tuple | list) else [rest[0]]
        return (units, 2 if rest[1:] != [True] else rank) if axes == list(range(2, rank)) else None
    if kind in ("add", "iadd") and len(rest) == 1 and found.get(rest[0]):
        pair = units, found[rest[0]][0]
        operands = np.stack([np.resize(one, max(map(len, pair))) for one in pair])  # one channel is added to all
        return (graph.add("", operands, operands.shape[1]), rank) if len({*map(len, pair), 1}) < 3 else None
    if kind == "getitem" and isinstance(rest[0], tuple) and all(isinstance(part, slice) for part in rest[0]):
        batch, channels = (*rest[0], slice(None))[:2]
        if batch != slice(None) or (channels != slice(None) and rank in (2, None)):
            return None
        return units[channels], rank
    if kind == "pad" and all(option in ("constant", None, 0) for option in rest[1:]):
        before, after = (*rest[0][2 * ((rank or 4) - 2) :], 0, 0)[:2]
        if rank == 2 or min(before, after) < 0 or (rank is None and (before or after)):
            return None
        return np.pad(units, (before, after), constant_values=ZERO), rank
    return None


def _spread(units: Units, count: int) -> Units | None:
    """Units along an axis of `count`: flattening has given each as many neighbours as it has positions."""
    return None if count % len(units) else np.repeat(units, count // len(units))


def coupled(graph: Graph) -> Units:
    """The group of each unit, int64 [num_units]: units that are summed, or made by one row of a layer that is used
    twice, are one group, called by its first unit. A sum with the zero unit couples nothing."""
    group, first = list(range(graph.num_units)), {}

    def root(unit: int) -> int:
        while group[unit] != unit:
            group[unit] = unit = group[group[unit]]
        return unit

    for step in graph.steps:
        before = first.setdefault(step.name or id(step), step)
        joined = [(before.sources, step.sources), (before.made, step.made)]
        if not step.name:
            joined = [(operand, step.made) for operand in step.sources]
        for one, other in (pair for units in joined for pair in zip(*units, strict=True) if ZERO not in pair):
            low, high = sorted((root(one), root(other)))
            group[high] = low
    return np.array([root(unit) for unit in group])


@torch.no_grad()
def positions(model: nn.Module) -> dict[str, int]:
    """At how many positions each layer computes, by weight name: height * width of a convolution, 1 of a linear layer.
    Its multiply-adds are that times its number of weights. Raises ValueError where the model has no input_shape."""
    if not hasattr(model, "input_shape"):
        raise ValueError(f"{type(model).__name__} has no input_shape, so its multiply-adds are not known")
    found: dict[str, int] = {}
    network: Any = copy.deepcopy(model).cpu().eval()
    names = {module: f"{name}.weight" for name, module in network.named_modules()}

    def count(module: Any, given: Any, made: Any) -> None:
        found[names[module]] = found.get(names[module], 0) + made[0].numel() // len(module.weight)

    for module in names:
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.register_forward_hook(count)
    network(torch.zeros(1, *network.input_shape))
    return found
