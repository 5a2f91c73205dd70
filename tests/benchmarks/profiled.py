"""Where the time of our loop goes: each operation's own time, by what it is part of, and what is left over is Python.

The profiler slows every operation by about a microsecond, so that many small ones look larger than they are: read it
beside the rate without it, which is printed, too.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

import lth.state
from tests.benchmarks.measure import Options, timed
from tests.benchmarks.setting import Ours, Setting
from tests.benchmarks.train_rows import lenet, resnet

SETTINGS = {"C1": lenet, "C5": resnet}
SCOPES = {"data": "data", "evaluation": "evaluation", "Optimizer.": "optimiser", "aten::_foreach_mul_": "mask",
          "aten::mul_": "mask"}  # fmt: skip
PRODUCTS = re.compile(r"aten::(addmm|mm|bmm|baddbmm|\w*conv\w*|mkldnn_linear\w*)$")


def part(names: Sequence[str]) -> str:
    """What an operation is part of, by its name and those it lies in, the outermost last: a scope, or of the model its
    products or the rest."""
    for name in reversed(names):
        for start, scope in SCOPES.items():
            if name.startswith(start):
                return scope
    return "model: products" if PRODUCTS.match(names[0]) else "model: the rest"


def around(event: Any) -> list[str]:
    """The names of an event and of all that it lies in."""
    return [event.name, *around(event.cpu_parent)] if event.cpu_parent else [event.name]


class _Seen:
    """Data whose batches are made within a scope of the profiler."""

    def __init__(self, data: Any):
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batches(self, *arguments: Any) -> Iterator:
        found = self._data.batches(*arguments)
        while True:
            with record_function("data"):
                batch = next(found)
            yield batch


def shares(seconds: dict[str, float], wall: float) -> dict[str, float]:
    """Of the wall, by part, the largest first; what no operation accounts for is Python."""
    found = {name: number / wall for name, number in seconds.items()}
    found["Python"] = 1 - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def profiled(row: str, options: Options) -> str:
    setting: Setting = SETTINGS[row](options)
    ours = Ours(setting, "fast", engine="lockstep" if row == "C1" else "sequential")
    ours()
    alone = timed(ours)
    score = lth.state.score

    def seen(*arguments: Any) -> Any:
        with record_function("evaluation"):
            return score(*arguments)

    ours._data = _Seen(ours._data)  # type: ignore[assignment]
    with patch.object(lth.state, "score", seen), profile(activities=[ProfilerActivity.CPU]) as record:
        wall = timed(ours)
    seconds: dict[str, float] = defaultdict(float)
    for event in record.events():
        seconds[part(around(event))] += event.self_cpu_time_total / 1e6
    rate = f"{setting.num_steps / alone:.0f} steps/s, {setting.num_steps / wall:.0f} under the profiler"
    return "\n".join([f"{row}: {rate}", *(f"{share:6.1%}  {name}" for name, share in shares(seconds, wall).items())])
