"""The size of a network, counted on one sample."""

import torch
from torch import nn

from edgesmith.compressor.structure import Size, measure


class Queries(nn.Module):
    """Learned queries `(3, 4)` go into a layer beside tokens, as in a DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 4))
        self.embed, self.head = nn.Linear(6, 4), nn.Linear(4, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.queries.expand(len(x), -1, -1)) + self.embed(x).mean()


def test_a_view_of_a_weight_that_goes_into_a_layer_is_counted() -> None:
    module = Queries()
    # 5 tokens of 6 into 4, 3 queries of 4 into 5.
    assert measure(module, {"x": torch.zeros(2, 5, 6)}, ()) == Size(
        macs=5 * 6 * 4 + 3 * 4 * 5, params=12 + 28 + 20, channel=0
    )
    assert module.queries.requires_grad and module.queries.grad is None
