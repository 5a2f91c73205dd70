"""None: keep the trained weights and train them on, at the last learning rate: fine-tuning (Han et al. 2015,
https://arxiv.org/abs/1506.02626), the comparison of Renda et al. 2020 (https://arxiv.org/abs/2003.02389)."""

from dataclasses import dataclass

from lth.rewind import check_optimizer, moments


@dataclass(frozen=True)
class Keep:
    """optimizer: keep the moments of the trained network (masked), or reset. Each level trains recipe.steps more."""

    optimizer: str = "keep"

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    from_trained = True

    def step(self, recipe):
        return 0

    def __call__(self, point, trained):
        return moments(trained, self.optimizer)
