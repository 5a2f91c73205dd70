"""lth: research software for the Lottery Ticket Hypothesis (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635).

Train a dense network, remove the weights that matter least, set the survivors back to where they were early in
training, train again: the sparse network matches the dense one. Everything here finds such tickets, tests the claim
against its controls, and measures when it holds.
"""

__version__ = "0.1.0"
