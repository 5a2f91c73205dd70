"""Random reinitialisation: the ticket's mask, fresh initial weights (Frankle & Carbin 2019,
https://arxiv.org/abs/1803.03635, section 2): is it the structure alone? Drawn anew for each level. Trained for as long
as the ticket, from the start of the schedule."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RandomReinit:
    def __call__(self, ticket, lab):
        return lab.run(lab.initialise("random_reinit", ticket.level), ticket.mask, ticket.num_steps)
