"""The short rows of the table, as ratios against a baseline interleaved in the same run; each prints what it measured.

pytest -n 0 -s tests/benchmarks
"""

import pytest
import torch

from tests.benchmarks.measure import Line, Options, table
from tests.benchmarks.train_rows import c1, c7

SHORT = Options(rounds=7, scale=0.2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checked(line: Line) -> float:
    """The ratio of a line whose losses agree; prints it."""
    print(f"\n{table([line])}")
    assert line.ratio and not line.failed
    return line.ratio.median


def test_masked_step_against_dense_step():
    """C7: a masked step costs at most 2% more than a dense one; 25% slack in this short form."""
    for line in c7(SHORT):
        assert checked(line) > 0.98 * 0.75


def test_step_against_peer_style_loop():
    """C1 without a checkout of open_lth: 8 times a loop in its style is asked of the whole row, with float32 products
    by the fastest back end; of reference numerics, which have torch's own, 3.7 times; 25% slack in this short form."""
    for line in c1(SHORT):
        assert checked(line) > 3.7 * 0.75
