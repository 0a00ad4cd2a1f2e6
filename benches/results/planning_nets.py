"""Networks of the sizes that people deploy, with random weights, and what is fed to them, for planning.py."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """ResNet's (He et al., CVPR 2016), as torchvision has it: the 3x3 convolution carries the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        result: torch.Tensor = (self.bn3(self.conv3(y)) + self.downsample(x)).relu()
        return result


class ResNet50(nn.Module):
    """25.6 million parameters, 4.1 GMACs at 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
                inputs = 4 * width
        self.layers, self.fc = nn.Sequential(*blocks), nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) -> (N, 1000)."""
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        result: torch.Tensor = self.fc(self.layers(x).mean((2, 3)))
        return result


class InvertedResidual(nn.Module):
    """MobileNetV2's (Sandler et al., CVPR 2018): widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        widen = [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()] if expand > 1 else []
        self.layers = nn.Sequential(
            *widen,
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, outputs, H / stride, W / stride)."""
        result: torch.Tensor = x + self.layers(x) if self.adds else self.layers(x)
        return result


class MobileNetV2(nn.Module):
    """3.5 million parameters, 0.3 GMACs at 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        rows = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expand, outputs, count, stride in rows:
            for index in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) -> (N, 1000)."""
        result: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return result


class DenseLayer(nn.Module):
    """DenseNet's (Huang et al., CVPR 2017): reads all before it, adds 32 channels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C + 32, H, W)."""
        y = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(y).relu())], 1)


class DenseNet121(nn.Module):
    """8 million parameters, 2.8 GMACs at 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        width = 64
        for count in (6, 12, 24, 16):
            if width > 64:
                half = nn.Conv2d(width, width // 2, 1, bias=False)
                layers += [nn.BatchNorm2d(width), nn.ReLU(), half, nn.AvgPool2d(2)]
                width //= 2
            layers += [DenseLayer(width + 32 * index) for index in range(count)]
            width += 32 * count
        self.features, self.norm = nn.Sequential(*layers), nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) -> (N, 1000)."""
        result: torch.Tensor = self.classifier(self.norm(self.features(x)).relu().mean((2, 3)))
        return result


def vit_small() -> nn.Module:
    """ViT-S/16: 22 million parameters, 4.6 GMACs at 224 x 224."""
    return _hugging_face(
        "ViT", "ImageClassification", hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )


def bert_base() -> nn.Module:
    """110 million parameters."""
    return _hugging_face("Bert", "SequenceClassification", num_labels=2)


def mobilevit() -> nn.Module:
    """MobileViT-S (Mehta and Rastegari, ICLR 2022): 5.6 million parameters, 2 GMACs at 256 x 256."""
    return _hugging_face("MobileViT", "ImageClassification", num_labels=1000)


def llama() -> nn.Module:
    """A Llama of 8 layers, 8 heads and as many keys and values, width 512."""
    return _hugging_face(
        "Llama", "SequenceClassification", vocab_size=8192, hidden_size=512, intermediate_size=1376,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, num_labels=2, pad_token_id=0,
    )  # fmt: skip


def _hugging_face(name: str, job: str, **config: int) -> nn.Module:
    transformers: Any = importlib.import_module("transformers")
    module: nn.Module = getattr(transformers, f"{name}For{job}")(getattr(transformers, f"{name}Config")(**config))
    return module


def images(side: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """What gives `count` images (count, 3, side, side)."""
    return lambda rng, count: {"image": rng.standard_normal((count, 3, side, side)).astype(np.float32)}


def tokens(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """`count` texts (count, 64) and their masks."""
    return {"input_ids": rng.integers(1, 8192, (count, 64)), "attention_mask": np.ones((count, 64), np.int64)}


NETS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[np.random.Generator, int], dict[str, np.ndarray]]]] = {
    "resnet50": (ResNet50, images(224)),
    "mobilenetv2": (MobileNetV2, images(224)),
    "densenet121": (DenseNet121, images(224)),
    "vit-small": (vit_small, images(224)),
    "bert-base": (bert_base, tokens),
    "mobilevit": (mobilevit, images(256)),
    "llama": (llama, tokens),
}
