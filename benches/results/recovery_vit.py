"""A small vision transformer for Fashion-MNIST, trained on the spot; `recovery.py vit` measures it."""

import importlib
import time

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, PATCH = 64, 4, 3, 4


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind its norm (Vaswani et al., 2017; pre-norm as in ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm1(x)
        query, key, value = (part(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self._parts())
        weights = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        y = x + self.narrow(functional.gelu(self.widen(self.norm2(x))))
        return y

    def _parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.query, self.key, self.value


class ViT(nn.Module):
    """Dosovitskiy et al. (2021), mean over the 49 patches in place of a class token; `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, (28 // PATCH) ** 2, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: torch.Tensor = self.classifier(self.norm(self.layers(x)).mean(1))
        return logits


def trained(epochs: int) -> nn.Module:
    """AdamW in one cycle; about a minute per epoch on one core."""
    torch.manual_seed(0)
    images = importlib.import_module("images")
    data, module = images.splits()["train"], ViT().train()
    steps = len(data) // 128
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    generator, start = torch.Generator().manual_seed(0), time.monotonic()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(data), generator=generator)[: steps * 128].reshape(steps, 128):
            arrays, labels = data.batch(chosen.numpy())
            inputs = images.augment({"image": torch.from_numpy(arrays["image"])}, generator)["image"]
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(inputs), torch.from_numpy(labels))
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} loss {float(loss.detach()):.3f} {time.monotonic() - start:.0f} s", flush=True)
    return module.eval()
