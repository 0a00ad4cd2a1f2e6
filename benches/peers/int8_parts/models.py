"""The models that are quantized."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.core.files import atomic_directory

TASK = Path(__file__).parent / "npz_task.py"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One model.

    `prepare` fills a folder with `model.onnx`, `calibration.npz`, `test.npz` and, where there are labels,
    `validation.npz`.
    """

    name: str
    says: str
    prepare: Callable[[Path], None]
    labelled: bool = True
    torch: bool = True  # there is a torch module besides
    transformer: bool = False
    batches: tuple[int, ...] = (1, 32)  # that are timed
    calibration_batch: int = 32  # rows per run

    def folder(self, root: Path) -> Path:
        """Its files, made if they are not there; complete or absent."""
        folder = root / "models" / self.name
        if not folder.exists():
            print(f"{self.name}: preparing", flush=True)
            with atomic_directory(folder) as partial:
                self.prepare(partial)
        return folder

    def data(self, folder: Path) -> str:
        """What `edgesmith quantize --data` gets."""
        return f"{TASK}:task" if self.labelled else str(folder / "calibration.npz")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything in an .npz."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def torch_module(name: str, folder: Path) -> Any:
    """The torch module of a model, for quantizers that need one."""
    from . import fashion, texts

    return texts.module(folder) if name == "minilm" else fashion.module(name, folder)


def _fashion(name: str, folder: Path) -> None:
    from . import fashion

    fashion.prepare(name, folder)


def _texts(folder: Path) -> None:
    from . import texts

    texts.prepare(folder)


def _elsewhere(name: str, folder: Path) -> None:
    from . import elsewhere

    elsewhere.prepare(name, folder)


def _image_model(name: str, says: str, **more: Any) -> Model:
    return Model(name=name, says=says, prepare=functools.partial(_fashion, name), **more)


def _ocr(name: str, says: str, **more: Any) -> Model:
    prepare = functools.partial(_elsewhere, name)
    return Model(name=name, says=says, prepare=prepare, labelled=False, torch=False, calibration_batch=1, **more)


MODELS: tuple[Model, ...] = (
    _image_model("resnet20", "ResNet-20, 16 to 64 channels"),
    _image_model("mobilenet", "MobileNetV2-style, depthwise"),
    _image_model("resnet20-wide", "ResNet-20, 64 to 256 channels"),
    _image_model("vgg", "VGG-style, 64 to 256 channels"),
    _image_model("vit", "vision transformer, 3 layers of 64", transformer=True),
    Model(name="minilm", says="MiniLM encoder, 6 layers of 384, 48 tokens", prepare=_texts, transformer=True),
    _ocr("ocr-classifier", "PP-OCR classifier, 48x192"),
    _ocr("ocr-recognizer", "PP-OCRv6 recognizer, 48x320", batches=(1, 8)),
    _ocr("ocr-detector", "PP-OCRv6 detector, 320x320", batches=(1,)),
)
