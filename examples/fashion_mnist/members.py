"""Trains the members of the ensemble: `python members.py`. What is there already is not trained again.

`seed0` to `seed4` start from random weights of their own; `shared` is one more of them, and `tuned0` to `tuned4` go on
from it, each with its own order of the images and its own learning rate, as a search for one would leave them behind.
Writes `checkpoints/members/NAME.safetensors` and `.log`; one core needs about 10 minutes. `--seeds 10` trains five more
members from random weights, for draws of five out of ten.
"""

import argparse

import safetensors.torch
import torch
from images import splits
from networks import SmallResNet
from train import CHECKPOINTS, accuracy, load, train

FOLDER = CHECKPOINTS / "members"
SEEDS = tuple(f"seed{i}" for i in range(5))
TUNED = {"tuned0": 0.01, "tuned1": 0.02, "tuned2": 0.03, "tuned3": 0.04, "tuned4": 0.05}  # name -> learning rate


def trained(name: str) -> SmallResNet:
    """A member from its checkpoint."""
    module = SmallResNet()
    load(f"members/{name}", module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tuning-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="members from random weights, five or more")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = splits()
    plans = [(name, None, options.epochs, 0.1) for name in (*SEEDS, "shared")]
    plans += [(name, "shared", options.tuning_epochs, rate) for name, rate in TUNED.items()]
    plans += [(f"seed{i}", None, options.epochs, 0.1) for i in range(len(SEEDS), options.seeds)]
    for number, (name, start, epochs, rate) in enumerate(plans):
        path = FOLDER / f"{name}.safetensors"
        if path.exists():
            continue
        settings = argparse.Namespace(
            epochs=epochs, batch_size=128, learning_rate=rate, seed=number, bfloat16=options.bfloat16
        )
        torch.manual_seed(number)
        module = (SmallResNet() if start is None else trained(start)).to(memory_format=torch.channels_last)
        said = f"epochs={epochs} learning_rate={rate} seed={number} bfloat16={options.bfloat16}"
        lines = [f"{name} start={start} {said} torch={torch.__version__}"]
        train(module, data["train"], data["validation"], None, settings, lines.append)
        lines.append(f"test accuracy {accuracy(module, data['test']):.4f}")
        print(lines[0], lines[-2], lines[-1], sep="\n", flush=True)
        path.with_suffix(".log").write_text("\n".join(lines) + "\n")
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        safetensors.torch.save_file(state, path)


if __name__ == "__main__":
    main()
