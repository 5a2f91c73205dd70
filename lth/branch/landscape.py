"""Landscape: curvature and sharpness of the training loss, inside the mask, at the state a network is trained from (its
rewind point) and at the end of its training. See lth/landscape.py for the methods and their sources."""

from dataclasses import dataclass, field, replace
from typing import Any

from lth.branch import networks
from lth.data import Source
from lth.landscape import hessian_extremes, hessian_product, hessian_trace, sharpness
from lth.mask import Mask
from lth.seeds import generator
from lth.stage import Numbers, task
from lth.state import TrainState, load


@task(version=1, value=Numbers)
def landscape(
    context: Any, model: Any, data: Source, mask: Mask | None, start: TrainState, end: TrainState, seed: int,
    settings: "Landscape",
) -> Numbers:  # fmt: skip
    """What the loss looks like at two states of one network, prefixed start_ and end_.

    largest_eigenvalue, most_negative_eigenvalue, smallest_positive_eigenvalue and condition_number (None where Lanczos
    did not reach them), trace and its standard error trace_error, sharpness: mean rise of the loss, in nats, at the
    largest radius. eigenvalues: the num_eigenvalues largest, descending. rises: the mean rise at each of radii.
    """
    network, train = context.model(model, data), context.data(data).train
    part = train[: settings.num_examples]  # splits are dealt at random: any part is a sample
    kept = mask or Mask.dense(network)
    numbers: dict[str, Any] = {"num_kept": kept.num_kept, "num_total": kept.num_total}
    for where, state in (("start", start), ("end", end)):
        load(network, state.params, state.buffers)
        rng = generator(seed)
        product, dim = hessian_product(network, mask, part)
        extremes = hessian_extremes(product, dim, settings.num_eigenvalues, min(settings.num_steps, dim), rng)
        smallest = extremes["smallest_positive"]
        trace, trace_error = hessian_trace(product, dim, settings.num_vectors, rng)
        rises = sharpness(network, mask, part, settings.radii, settings.num_directions, rng)
        found = {
            "largest_eigenvalue": extremes["largest"][0]["value"],
            "most_negative_eigenvalue": extremes["most_negative"]["value"],
            "smallest_positive_eigenvalue": smallest["value"] if smallest and smallest["converged"] else None,
            "condition_number": extremes["condition_number"],
            "trace": trace,
            "trace_error": trace_error,
            "sharpness": rises[settings.radii.index(max(settings.radii))],
            "eigenvalues": [eigenvalue["value"] for eigenvalue in extremes["largest"]],
            "rises": rises,
        }
        numbers |= {f"{where}_{name}": value for name, value in found.items()}
    return Numbers(numbers)


@dataclass(frozen=True)
class Landscape:
    """of: ticket, dense (from rewind step k on), or other branches of this study. num_examples: of the training split,
    over which the loss is taken. num_eigenvalues: how many of the largest, at most num_steps, the steps of Lanczos.
    num_vectors: of Hutchinson's trace, at least 2. radii: how far along num_directions random directions, 1 being the
    norm of each filter."""

    of: list[str] = field(default_factory=lambda: ["ticket"])
    num_examples: int = 1000
    num_eigenvalues: int = 5
    num_steps: int = 40
    num_vectors: int = 10
    radii: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.5])
    num_directions: int = 5

    def __post_init__(self) -> None:
        least = {"num_examples": 1, "num_eigenvalues": 1, "num_steps": 1, "num_vectors": 2, "num_directions": 1}
        for name, bound in least.items():
            if (number := getattr(self, name)) < bound:
                raise ValueError(f"branch.landscape.{name}={number} must be at least {bound}")
        if self.num_eigenvalues > self.num_steps:
            raise ValueError(
                f"branch.landscape.num_eigenvalues={self.num_eigenvalues} must be at most num_steps={self.num_steps}"
            )
        if not self.radii:
            raise ValueError("branch.landscape.radii=[] must name at least one radius")

    def __call__(self, ticket, lab):
        settings, seed = replace(self, of=[]), lab.seed("landscape")
        found = {}
        for name, run in networks(self.of, ticket, lab, "branch.landscape").items():
            end = ticket.dense.end if name == "dense" else run.end
            found[name] = landscape(
                model=lab.model, data=lab.data, mask=run.mask, start=run.start, end=end, seed=seed, settings=settings
            )
        return found
