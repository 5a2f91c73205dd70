"""Quotas: how many weights each layer keeps, in whole numbers with an exact sum, from rates or shares."""

import math
from collections.abc import Callable


def quotas(survivors: list[int], total: int, rates: list[float]) -> list[int]:
    """How many of its `survivors` each layer keeps so that exactly `total` remain.

    Layer i keeps survivors_i * (1 - p * rates_i), with the one p that makes the sum `total`; rounded by largest
    remainder, ties to the first layer, at least 1 each. Where p * rates_i would pass 1, that layer keeps 1. Layers of
    rate 0 give way only when all others are down to 1.
    Raises ValueError where `total` is less than one weight a layer or more than the survivors.
    """
    most = 1.0 / min((rate for rate in rates if rate > 0), default=1.0)
    return _shared(survivors, total, rates, lambda i, x: survivors[i] * (1 - min(1.0, (1 - x) * most * rates[i])))


def filled(survivors: list[int], total: int, shares: list[int], rates: list[float]) -> list[int]:
    """As quotas, but layer i keeps min(survivors_i, eps * shares_i), or all its survivors where its rate is 0."""
    most = max(n / share for n, share in zip(survivors, shares, strict=True))
    return _shared(
        survivors, total, rates,
        lambda i, x: min(survivors[i], x * most * shares[i]) if rates[i] else float(survivors[i]),
    )  # fmt: skip


def _shared(survivors: list[int], total: int, rates: list[float], keep: Callable[[int, float], float]) -> list[int]:
    """Whole numbers with the sum `total`, from the one x in [0, 1] at which the sum of keep(layer, x), which rises with
    x to its survivors, is that."""
    floors = [min(1, n) for n in survivors]
    if not sum(floors) <= total <= sum(survivors):
        raise ValueError(
            f"cannot keep {total} of {sum(survivors)} weights in {sum(floors)} layers; each keeps at least 1"
        )

    def kept(x: float) -> list[float]:
        return [max(float(floor), keep(i, x)) for i, floor in enumerate(floors)]

    if sum(kept(0.0)) > total:
        spared = [i for i, rate in enumerate(rates) if rate == 0]
        others = sum(floor for i, floor in enumerate(floors) if i not in spared)
        counts = iter(quotas([survivors[i] for i in spared], total - others, [1.0] * len(spared)))
        return [next(counts) if i in spared else floor for i, floor in enumerate(floors)]
    low, high = 0.0, 1.0  # bisection, since the floor of 1 makes the sum piecewise linear
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle)) < total else (low, middle)
    ideal = kept(low)
    counts = [max(floor, math.floor(x)) for floor, x in zip(floors, ideal, strict=True)]
    by_remainder = sorted(range(len(ideal)), key=lambda i: counts[i] - ideal[i])
    for i in [i for i in by_remainder if counts[i] < survivors[i]] * 2:
        if sum(counts) == total:
            break
        counts[i] += counts[i] < survivors[i]
    return counts
