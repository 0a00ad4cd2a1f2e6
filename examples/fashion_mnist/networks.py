"""Four networks for images `(N, 1, 28, 28)`; each returns logits `(N, 10)`."""

import torch
from torch import nn
from torch.nn import functional


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the residual sum; where the shape changes, a 1x1 convolution projects the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.first(x))
        return functional.relu(self.second(y) + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR network of He et al. (2015) with 20 layers: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = _convolution(1, width, 3)
        self.stage1 = nn.Sequential(*(BasicBlock(width, width, 1) for _ in range(3)))
        self.stage2 = nn.Sequential(*(BasicBlock(width * (1 + (i > 0)), 2 * width, 1 + (i == 0)) for i in range(3)))
        self.stage3 = nn.Sequential(*(BasicBlock(width * (2 + 2 * (i > 0)), 4 * width, 1 + (i == 0)) for i in range(3)))
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class SmallResNet(nn.Module):
    """One residual block a stage at 14x14, 7x7 and 4x4: 78 thousand parameters, ten of which train in minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1, 16, 3, 2)
        self.blocks = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu(self.stem(x)))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 (Sandler et al., 2018): widen by 1x1, filter each channel by 3x3, narrow by 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = _convolution(inputs, hidden, 1)
        self.filter = _convolution(hidden, hidden, 3, stride, groups=hidden)
        self.project = _convolution(hidden, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self.filter(functional.relu6(self.expand(x))))
        y = self.project(y)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """MobileNetV2 scaled to 28x28 images: eight inverted residuals, most of them at 14x14 and 7x7."""

    def __init__(self) -> None:
        super().__init__()
        plan = ((24, 2), (24, 1), (24, 1), (48, 2), (48, 1), (48, 1), (96, 1), (96, 1))  # channels, stride
        self.stem = _convolution(1, 16, 3)
        blocks, inputs = [], 16
        for outputs, stride in plan:
            blocks.append(InvertedResidual(inputs, outputs, stride, expansion=4))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = _convolution(inputs, 256, 1)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu6(self.stem(x)))
        x = functional.relu6(self.last(x))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class LeNet(nn.Module):
    """The size of LeNet-5 (LeCun et al., 1998): two convolutions, two hidden layers, 62 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))
