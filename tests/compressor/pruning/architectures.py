"""Small networks of every kind that a pruning has to understand, with random weights; images are `(N, 3, 8, 8)`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """A stream with two blocks; one halves the image and projects."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 12, 2), ResidualBlock(12, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return (y + self.project(x)).relu()


def frozen_norms() -> nn.Module:
    """A detector's backbone: the numbers of its batch norms are buffers, as DETR's and torchvision's."""
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    module, generator = Residual(), torch.Generator().manual_seed(0)
    for block in module.blocks:
        for name in ("norm1", "norm2"):
            norm = DetrFrozenBatchNorm2d(getattr(block, name).num_features)
            for each in norm.buffers():
                each.uniform_(0.5, 1.5, generator=generator)
            setattr(block, name, norm)
    return module


class Depthwise(nn.Module):
    """MobileNet's block: widen, filter each channel, narrow, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand, self.norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.filter = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.project(functional.relu6(self.filter(functional.relu6(self.norm(self.expand(x))))))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two whole ones, as in ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.last = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.grouped(self.stem(x).relu()).relu()).relu().mean((2, 3)))


class Transposed(nn.Module):
    """An autoencoder whose decoder is transposed, one of them grouped; a map comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.middle = nn.Conv2d(8, 12, 3, 2, 1)
        self.up1 = nn.ConvTranspose2d(12, 8, 2, 2)
        self.up2 = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.down(x).relu()).relu()
        return self.last(self.up2(self.up1(x).relu()).relu())


class Dense(nn.Module):
    """DenseNet's: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * index) for index in range(3))
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.norm(x).relu().mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x).relu())


class UNet(nn.Module):
    """Two levels; what was on the way down is joined on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 16, 3, padding=1)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(24, 12, 3, padding=1)
        self.join1 = nn.Conv2d(20, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x).relu()
        second = self.down2(functional.max_pool2d(first, 2)).relu()
        y = self.up2(self.middle(functional.max_pool2d(second, 2)).relu())
        y = self.join2(torch.cat([second, y], 1)).relu()
        y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.last(self.join1(torch.cat([first, y], 1)).relu())


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.last(x * gate).relu().mean((2, 3)))


class ExcitedConcat(nn.Module):
    """Two branches side by side, with one gate for both: each has a part of the channels that leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.last(x * gate).relu().mean((2, 3)))


class PixelShuffle(nn.Module):
    """Super-resolution: four channels become a pixel's four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.widen = nn.Conv2d(8, 24, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.shuffle(self.widen(self.stem(x).relu())).relu())


class PixelUnshuffle(nn.Module):
    """The inverse: a pixel's four become channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shuffle = nn.PixelUnshuffle(2)
        self.mix = nn.Conv2d(32, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.shuffle(self.stem(x).relu())).relu().mean((2, 3)))


class ChannelShuffle(nn.Module):
    """ShuffleNet's: grouped, shuffled, grouped; the shuffle is two views and a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = nn.Conv2d(8, 16, 1, groups=2)
        self.second = nn.Conv2d(16, 16, 1, groups=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x).relu()).relu()
        count, channels, height, width = x.shape
        x = x.reshape(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)
        return self.head(self.second(x).relu().mean((2, 3)))


class GroupNormed(nn.Module):
    """GroupNorm, whose groups are of equal size, in a residual stream and outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, 8), nn.GroupNorm(2, 12)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.second(self.norm2(self.first(self.norm1(x).relu())).relu())
        return self.head(x.relu().mean((2, 3)))


class LayerNormed(nn.Module):
    """ConvNeXt's block: LayerNorm over channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.filter = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        x = x + self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, two blocks; `block` makes them: `(width) -> module`."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        self.blocks = nn.Sequential(block(16), block(16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class MultiheadBlock(nn.Module):
    """With torch's own attention, four heads of four."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.gelu(self.up(x)))


class PerceptronBlock(nn.Module):
    """`inside`: with the residual sum; else whoever calls it adds."""

    def __init__(self, width: int, inside: bool) -> None:
        super().__init__()
        self.norm, self.mlp, self.inside = nn.LayerNorm(width), Perceptron(width), inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(x))
        return x + y if self.inside else y


class ModularBlock(nn.Module):
    """A transformer's, whose two parts are modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = FusedAttention(width, 4), Perceptron(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu()


class ModularResidual(nn.Module):
    """A residual block, whose two layers are modules of one class that keep the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(8), ConvNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class LongSkip(nn.Module):
    """What goes into the first of three blocks is added to what the last gives, as in super-resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*(PerceptronBlock(16, True) for _ in range(3))), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.body(x))


class FusedAttention(nn.Module):
    """As timm writes it: one Linear for queries, keys and values, and a reshape that knows the heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class FusedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, 4)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def bert() -> nn.Module:
    """Hugging Face's, from a config: tokens `(N, 6)` below 50 and their mask."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=8, num_labels=5,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def convnext() -> nn.Module:
    """Hugging Face's ConvNeXt."""
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 2], patch_size=2, num_labels=5, num_stages=2)
    return transformers.ConvNextForImageClassification(config)


class MobileViTsAttention(nn.Module):
    """Hugging Face's, which views its heads by their width: two heads of six; tokens `(N, T, 3)`."""

    def __init__(self) -> None:
        import transformers
        from transformers.models.mobilevit import modeling_mobilevit

        super().__init__()
        config = transformers.MobileViTConfig(num_attention_heads=2)
        self.embed, self.out = nn.Linear(3, 12), nn.Linear(12, 12)
        self.attention = modeling_mobilevit.MobileViTSelfAttention(config, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x + self.out(self.attention(x))).mean(1))


def llama(keys: int) -> nn.Module:
    """Hugging Face's, with four heads: tokens `(N, 6)` below 50 and their mask.

    Args:
        keys: heads of keys and values.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=keys, max_position_embeddings=16, num_labels=5, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


def gpt2() -> nn.Module:
    """Hugging Face's, whose layers are none of torch's: tokens `(N, 6)` below 50."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=16, num_labels=5, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, use_cache=False,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


def swin() -> nn.Module:
    """Hugging Face's, which merges patches between its stages: images `(N, 3, 32, 32)`."""
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return transformers.SwinForImageClassification(config)


def vit() -> nn.Module:
    """Hugging Face's, with a stream as wide as there are patches: images `(N, 3, 32, 32)`."""
    import transformers

    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def albert() -> nn.Module:
    """Hugging Face's, whose one layer is run twice: tokens `(N, 6)` below 50 and their mask."""
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=8, num_labels=5,
    )  # fmt: skip
    return transformers.AlbertForSequenceClassification(config)
