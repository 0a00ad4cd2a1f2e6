"""Trains the originals: `python train.py resnet20`, then `mobilenet`, then `lenet`, which the ResNet teaches.

Writes `checkpoints/NAME.safetensors` and `checkpoints/NAME.log`. Two quiet cores with bfloat16 instructions need about
20 minutes for the ResNet with --bfloat16. Beside other work give it one thread then (OMP_NUM_THREADS=1).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from images import Images, augment, splits
from networks import LeNet, MobileNet, ResNet20
from torch import nn
from torch.nn import functional

NETWORKS: dict[str, type[nn.Module]] = {"resnet20": ResNet20, "mobilenet": MobileNet, "lenet": LeNet}
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def load(name: str, module: nn.Module) -> None:
    """Load a checkpoint in place."""
    module.load_state_dict(safetensors.torch.load_file(CHECKPOINTS / f"{name}.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision; slower for the mobilenet")
    options = parser.parse_args()
    CHECKPOINTS.mkdir(exist_ok=True)
    log = (CHECKPOINTS / f"{options.name}.log").open("w")

    def say(line: str) -> None:
        print(line, flush=True)
        print(line, file=log, flush=True)

    torch.manual_seed(options.seed)
    say(f"{' '.join(f'{key}={value}' for key, value in vars(options).items())} torch={torch.__version__}")
    module = NETWORKS[options.name]().to(memory_format=torch.channels_last)
    data = splits()
    train(module, data["train"], data["validation"], teacher(options.name), options, say)
    say(f"test accuracy {accuracy(module, data['test']):.4f}")
    state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    safetensors.torch.save_file(state, CHECKPOINTS / f"{options.name}.safetensors")


def teacher(name: str) -> nn.Module | None:
    """The ResNet, for the LeNet."""
    if name != "lenet":
        return None
    module = ResNet20().to(memory_format=torch.channels_last)
    load("resnet20", module)
    return module.eval()


def train(
    module: nn.Module,
    data: Images,
    validation: Images,
    taught_by: nn.Module | None,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """SGD with Nesterov momentum in one cycle; the weights after the last epoch are kept."""
    steps = len(data) // options.batch_size
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        options.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=options.epochs * steps)
    generator = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()
    for epoch in range(1, options.epochs + 1):
        module.train()
        total = 0.0
        for chosen in torch.randperm(len(data), generator=generator)[: steps * options.batch_size].split(
            options.batch_size
        ):
            arrays, labels = data.batch(chosen.numpy())
            images = augment({"image": torch.from_numpy(arrays["image"])}, generator)["image"]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                loss = objective(module, images, torch.from_numpy(labels), taught_by)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        score = accuracy(module, validation)
        say(f"epoch {epoch} loss {total / steps:.4f} validation {score:.4f} {time.monotonic() - started:.0f} s")


def objective(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, taught_by: nn.Module | None
) -> torch.Tensor:
    """Cross-entropy, and beside it the teacher's softened answers (Hinton et al., 2015) where there is one."""
    images = images.contiguous(memory_format=torch.channels_last)
    answers = module(images).float()
    if taught_by is None:
        return functional.cross_entropy(answers, labels)
    with torch.no_grad():
        target = taught_by(images).float()
    soft = functional.kl_div(
        functional.log_softmax(answers / 4, 1), functional.log_softmax(target / 4, 1), log_target=True, reduction="none"
    )
    return functional.cross_entropy(answers, labels) + 16 * soft.sum(1).mean()


@torch.inference_mode()
def accuracy(module: nn.Module, data: Images) -> float:
    """Share of images whose largest logit is the label's, in float32."""
    module.eval()
    right = 0
    for start in range(0, len(data), 500):
        arrays, labels = data.batch(np.arange(start, min(start + 500, len(data))))
        images = torch.from_numpy(arrays["image"]).contiguous(memory_format=torch.channels_last)
        right += int((module(images).argmax(1).numpy() == labels).sum())
    return right / len(data)


if __name__ == "__main__":
    main()
