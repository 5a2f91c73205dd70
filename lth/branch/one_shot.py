"""One shot: the mask that criterion and pattern draw in a single round from the trained dense network, at the ticket's
sparsity, rewound as the ticket is (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635): is it pruning step by
step?

    m' = pattern(criterion(theta_T), 1, sparsity_l)

Its seed is that of level 1, at every level: so it is, stage for stage, the ticket of prune=one_shot at this sparsity,
and of level 1 here, where it costs nothing. A criterion that draws scores (random) draws the same ones at all levels,
so its one-shot masks are nested."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OneShot:
    def __call__(self, ticket, lab):
        mask = lab.prune(ticket.dense, lab.dense_mask(), ticket.sparsity, "criterion", 1)
        return lab.run(lab.rewind(ticket.dense, lab.rewind.leaves(ticket.dense)), mask, ticket.num_steps)
