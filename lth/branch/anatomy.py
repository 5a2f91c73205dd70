"""Anatomy of a mask: effective sparsity and dead units (lth.anatomy has definitions and sources), collapsed layers
(without a kept weight; Tanaka et al. 2020, https://arxiv.org/abs/2006.05467), and what it has in common with others.

Of the ticket alone, the Jaccard overlap with the masks that its criterion (as branch=one_shot) and others draw in one
round from the trained dense network, and with the ticket's of replicate 0 at the same level, which started from other
weights: none for replicate 0. Nothing is trained that is not trained anyway; where replicate 0 diverged, this has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lth.anatomy import jaccard, paths
from lth.branch import networks
from lth.data import Source
from lth.graph import follow
from lth.mask import Mask
from lth.stage import Numbers, task
from lth.tickets import iterative


@task(version=1, value=Numbers)
def anatomy(context: Any, model: Any, data: Source, mask: Mask, others: Mapping[str, Mask]) -> Numbers:
    """Lists have an entry a layer, in module order. effective_sparsity, dead_units and their lists are None where
    lth.graph cannot follow the network. <other>_jaccard, and <other>_chance, which random masks would have."""
    sizes = {name: kept.numel() for name, kept in mask.items()}
    numbers: dict[str, Any] = {
        "num_kept": mask.num_kept, "num_total": mask.num_total, "effective_sparsity": None, "dead_units": None,
        "collapsed_layers": list(mask.counts().values()).count(0), "layers": list(mask),
        "layer_sparsity": [1 - count / sizes[name] for name, count in mask.counts().items()],
    }  # fmt: skip
    try:
        on, dead = paths(mask, follow(context.model(model, data)))
    except ValueError:
        on, dead = {}, {}
    if on:
        left = {name: int(on[name].sum()) if name in on else 0 for name in mask}  # 0: of a layer that is never used
        numbers |= {"effective_sparsity": 1 - sum(left.values()) / mask.num_total, "dead_units": sum(dead.values())}
        numbers["layer_effective_sparsity"] = [1 - left[name] / sizes[name] for name in mask]
        numbers["layer_dead_units"] = [dead.get(name) for name in mask]
    for name, other in others.items():
        numbers[f"{name}_jaccard"], numbers[f"{name}_chance"] = jaccard(mask, other, mask)
        numbers[f"{name}_layer_jaccard"] = [jaccard(mask, other, [layer])[0] for layer in mask]
    return Numbers(numbers)


@dataclass(frozen=True)
class Anatomy:
    """of: ticket, dense, or other branches of this study that train a network. beside: other criteria by a name, on the
    command line as +criterion@branch.anatomy.beside.snip=snip."""

    of: list[str] = field(default_factory=lambda: ["ticket"])
    beside: dict[str, Any] = field(default_factory=dict)

    def __call__(self, ticket, lab):
        found = {}
        for name, run in networks(self.of, ticket, lab, "branch.anatomy").items():
            others = {}
            if name == "ticket":
                for other, criterion in {"one_shot": lab.criterion, **self.beside}.items():
                    bench = replace(lab, criterion=criterion)
                    others[other] = bench.prune(ticket.dense, lab.dense_mask(), ticket.sparsity, "criterion", 1)
                others |= {"replicate_0": _in_replicate_0(ticket, lab)} if lab.replicate else {}
            found[name] = anatomy(model=lab.model, data=lab.data, mask=run.mask or lab.dense_mask(), others=others)
        return found


def _in_replicate_0(ticket, lab):
    """The mask of the ticket's level there: its chain, built again from the sparsities that led to this one."""
    sparsities, stage = [], ticket.mask
    while "sparsity" in stage.inputs:
        sparsities, stage = [stage.inputs["sparsity"], *sparsities], stage.inputs["mask"]
    last: Any = [*iterative(replace(lab, replicate=0, branches={}), sparsities)][-1]
    return last.ticket.mask
