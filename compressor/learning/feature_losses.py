"""How a student's features follow a teacher's: the losses by name.

Each takes features of one layer as `(N, positions, channels)`, the student's and the teacher's, and returns a scalar.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureLoss:
    """A loss, whether both sides need the same number of channels (an adapter sees to it), and what it is a mean of."""

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    same_channels: bool = True
    over_positions: bool = True  # a mean over all positions; False: over samples, of what all positions of one make

    def between(self, student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """The loss of the positions that are no padding, which `real` `(N, positions)` says; None: none is."""
        if real is None:
            return self.loss(student, teacher)
        if self.over_positions:
            return self.loss(student[real][None], teacher[real][None])
        padding = ~real[..., None]
        return self.loss(student.masked_fill(padding, 0.0), teacher.masked_fill(padding, 0.0))


def fitnets(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference (Romero et al., ICLR 2015, eq. 3); beside the outputs, not in a stage before them."""
    return functional.mse_loss(student, teacher)


def pkd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of each position's normalized features (Sun et al., EMNLP 2019): direction, not size."""
    difference = functional.normalize(student, dim=2) - functional.normalize(teacher, dim=2)
    return difference.square().sum(2).mean()


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of the normalized maps of `sum_c |x|^2` (Zagoruyko & Komodakis, ICLR 2017, eq. 2, p = 2)."""
    maps = [functional.normalize(features.square().mean(2), dim=1) for features in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


FEATURES: dict[str, FeatureLoss] = {
    "fitnets": FeatureLoss(loss=fitnets),
    "pkd": FeatureLoss(loss=pkd),
    "attention": FeatureLoss(loss=attention, same_channels=False, over_positions=False),
}
