"""What options of the command line are read as; what does not fit is an error of argparse, with the value."""

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def factor(text: str) -> float:
    """A finite number from 1 on."""
    return _finite(text, lambda value: value >= 1, "of 1 or more")


def seconds(text: str) -> float:
    """A finite number above 0."""
    return _finite(text, lambda value: value > 0, "above 0")


def loss(text: str) -> float:
    """A finite number from 0 on."""
    return _finite(text, lambda value: value >= 0, "of 0 or more")


def _finite(text: str, fits: Callable[[float], bool], which: str) -> float:
    value = float(text)
    if not (fits(value) and value < math.inf):
        raise argparse.ArgumentTypeError(f"must be a number {which}, got {text}")
    return value


def names(text: str) -> tuple[str, ...]:
    """`equalize,round`, with or without spaces."""
    return tuple(part.strip() for part in text.split(","))


def sizes(text: str) -> tuple[int, ...]:
    """`1,32`."""
    return tuple(positive(part) for part in text.split(","))


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1,48`."""
    name, equals, listed = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write it as NAME=1,48, got '{text}'")
    return name, sizes(listed)


def shapes(text: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """`NAME=1x3x32:8x3x64:32x3x96`: smallest, usual and largest."""
    name, equals, listed = text.rpartition("=")
    found = tuple(tuple(positive(size) for size in one.split("x")) for one in listed.split(":"))
    if not equals or len(found) != 3:
        raise argparse.ArgumentTypeError(f"write it as NAME=1x3x32:8x3x64:32x3x96, got '{text}'")
    return name, found
