"""Data-parallel training of one network by several processes, as torchrun starts them: ranks 0 to n - 1.

Each rank takes every n-th example of every batch, beginning with its own number, from the same data order and the same
augmentation, and gradients are averaged after backward (Li et al. 2020, https://arxiv.org/abs/2006.15704, section 2.2):

    dL/dw = 1/n sum over ranks of dL_rank/dw,   L_rank the mean over its batch_size / n examples

so that a run is the run of one process, to rounding, and has its key. Batch norm takes its statistics from the whole
batch (`normalise`). All ranks hold the same weights, moments and buffers, bit for bit, since each makes the same step
from the same sums. Deviation from DistributedDataParallel: one flat all_reduce after backward, not buckets during it.

Rank 0 plans, prunes, measures and writes; the others join it for runs alone (`together`), see lth.execute.follow. In
all else there is but one process, and every function here leaves what it is given as it is.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_joined = False  # in the middle of what all ranks do


class MismatchError(Exception):
    """Ranks that should start alike do not. All of them know, and go on with the next run."""


class RankError(Exception):
    """A rank left a run that the others are in; they cannot go on without it."""


def num_ranks() -> int:
    """Processes that torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> tuple[int, int]:
    """(rank, number of ranks) of those who work on this together: (0, 1) but within `together`."""
    return (dist.get_rank(), dist.get_world_size()) if _joined else (0, 1)


def begin() -> int:
    """Meet the other ranks, by torchrun's environment variables. Returns the rank.

    gloo carries what lies on a CPU, nccl what lies on a GPU. The others wait for rank 0 as long as it works alone: a
    dead rank is torchrun's to notice, not a timeout's.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=30))
    return dist.get_rank()


def end() -> None:
    """Rank 0 has no more to do: the others leave `follow`. Where a run broke off they are out of step, and torchrun
    ends them."""
    if not _joined:
        tell(None)
        leave()


def leave() -> None:
    """The last that a rank does with the others: none hangs up while another still listens, which gloo dies of."""
    dist.barrier()
    dist.destroy_process_group()


def tell(message: Any = None) -> Any:
    """What rank 0 has to say, on every rank: one of our own processes to the others."""
    said = [message]
    dist.broadcast_object_list(said)
    return said[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it all ranks do the same. What one of them raises leaves it there for good, but for what all raise."""
    global _joined
    _joined = True
    try:
        yield
    except MismatchError:
        _joined = False
        raise
    _joined = False


# What a training needs


def share(batch: Tensor) -> Tensor:
    """This rank's examples of a batch: every n-th. So part k of all shares is part k of it, however it is cut."""
    rank, size = world()
    return batch[rank::size] if size > 1 else batch


def sum_(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place, equal on all."""
    if world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def average_(tensors: Iterable[Tensor | None]) -> None:
    """Replace tensors by their mean over ranks, in one message; None, a gradient that is not there, stays."""
    _, size = world()
    if size == 1:
        return
    present = [tensor for tensor in tensors if tensor is not None]
    flat = sum_(torch.cat([tensor.flatten() for tensor in present])).div_(size)
    for tensor, mean in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def join(model: nn.Module, *parts: Mapping[str, Tensor]) -> None:
    """Begin a training: `parts`, tensors by name, are the same on all ranks, and batch norm is over the whole batch.

    Raises MismatchError, on every rank, where they are not. The model keeps its modules and their names.
    """
    _, size = world()
    if size == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            setattr(module, "forward", partial(normalise, module))  # noqa: B010
    digest = hashlib.sha256()
    for name, tensor in (item for part in parts for item in sorted(part.items())):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digests: list[Any] = [None] * size
    dist.all_gather_object(digests, digest.hexdigest())
    if other := [rank for rank in range(size) if digests[rank] != digests[0]]:
        raise MismatchError(
            f"rank {other[0]} starts from another mask or state than rank 0; give all ranks one store and one version "
            "of this code"
        )


class _Gather(torch.autograd.Function):
    """[...] of each rank -> [n, ...] of all. Backwards a rank's row gets the sum of what all ranks' losses send it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        rank, size = world()
        rows = own.new_zeros(size, *own.shape)
        rows[rank] = own
        return sum_(rows)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> Tensor:  # type: ignore[override]
        return sum_(slopes.clone(memory_format=torch.contiguous_format))[world()[0]]


def normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm in training, over the examples of all ranks; x: [n, channels, ...], as many on each rank.

        mean = 1/n sum mean_rank;   var = 1/n sum (var_rank + (mean_rank - mean)^2)

    Running statistics move as nn.BatchNorm's do, to the mean and the unbiased variance. nn.SyncBatchNorm says the same,
    but takes no tensor on a CPU.
    """
    _, size = world()
    if not norm.training or size == 1:
        return type(norm).forward(norm, x)
    wide = x.float() if x.dtype.itemsize < 4 else x
    of_rank = torch.stack(torch.var_mean(wide, [d for d in range(x.ndim) if d != 1], correction=0))
    variances, means = _Gather.apply(of_rank).unbind(1)  # type: ignore[union-attr]
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square().mean(0)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            num = size * x.numel() // x.shape[1]
            norm.num_batches_tracked += 1
            rate = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
            norm.running_var.lerp_((var * num / (num - 1)).to(norm.running_var.dtype), rate)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = (wide - mean.view(shape)) * (var + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)
