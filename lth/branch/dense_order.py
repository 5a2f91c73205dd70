"""Dense, another order: the dense network trained again from the ticket's rewind point, in another data order: how much
of a difference is the noise of training (the fork of Frankle et al. 2020, https://arxiv.org/abs/1912.05671, its two
copies being the dense run and this one)?

    theta_k, the dense run's own, its moments too;   then steps k to T with the minibatches of the order "dense_order"

k is the ticket's rewind step. Where that is the end of training (rewind none) nothing would be left to train: then k is
0. It has no mask and is the same run at every level, so it is a row of level 0, once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseOrder:
    def __call__(self, ticket, lab):
        dense = ticket.dense
        k = ticket.rewind_step if ticket.rewind_step < dense.num_steps else 0
        return lab.run(dense.at(k), None, dense.num_steps - k, "dense_order")
