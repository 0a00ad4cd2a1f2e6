"""Networks that are trained for the comparison, on Fashion-MNIST's images `(N, 1, 28, 28)`."""

import torch
from torch import nn

GROWTH, LAYERS = 12, 5  # of DenseNet: channels that a layer adds, layers of a stage

Weights = dict[str, torch.Tensor]


class Vgg(nn.Module):
    """Six 3x3 convolutions of 64, 128 and 256 channels, two at each resolution (Simonyan & Zisserman, 2014)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)):
            if inputs == outputs // 2:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


class Dense(nn.Module):
    """A layer of DenseNet: norm, ReLU, 3x3 convolution; its output is joined to all that came before it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.convolution = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.convolution(self.norm(x).relu())], 1)


class DenseNet(nn.Module):
    """Huang et al. (CVPR 2017), three stages of five layers with halved transitions."""

    def __init__(self) -> None:
        super().__init__()
        width = 2 * GROWTH
        stages: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False)]
        for stage in range(3):
            for _ in range(LAYERS):
                stages.append(Dense(width))
                width += GROWTH
            stages += [nn.BatchNorm2d(width), nn.ReLU()]
            if stage < 2:
                stages += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.features = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


def widened(state: Weights, factor: int, noise: float) -> Weights:
    """The weights of a network `factor` times as wide that computes nearly the same (Net2WiderNet, Chen et al., 2016).

    Every channel is there `factor` times and counts a `factor`-th in the next layer. Noise, as a share of each
    weight's standard deviation, makes the copies differ, so that training can take them apart.
    """
    generator, wide = torch.Generator().manual_seed(0), {}
    for name, tensor in state.items():
        if tensor.ndim == 4:
            inputs = 1 if tensor.shape[1] == 1 else factor  # an image's own channel stays one
            tensor = tensor.repeat_interleave(factor, 0).repeat_interleave(inputs, 1) / inputs
            tensor = tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
        elif tensor.ndim == 2:
            tensor = tensor.repeat_interleave(factor, 1) / factor
        elif tensor.ndim == 1 and not name.startswith("classifier"):
            tensor = tensor.repeat_interleave(factor)
        wide[name] = tensor
    return wide
