"""Byte, pixel and depth budgets, checked before anything is decoded.

A 12 MB file can ask for gigabytes (a decompression bomb). Every reader asks here first; nothing else guards a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medray.errors import ReadError

MAX_FILE_BYTES = 4 << 30
MAX_ARRAY_BYTES = 1 << 30  # one decoded image, volume or signal
MAX_INFLATE_RATIO = 200  # gzip of clinical tables reaches 5 to 30, lossy images 10 to 60
FREE_BYTES = 64 << 20  # decoded from however little: a blank image compresses without limit


def check_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> int:
    """The file's size in bytes.

    Raises:
        ReadError: missing, empty, not a plain file, or larger than `max_bytes`.
    """
    if not path.is_file():
        raise ReadError(path, "not a file")
    size = path.stat().st_size
    if size == 0:
        raise ReadError(path, "empty file")
    if size > max_bytes:
        raise ReadError(path, f"{size:,} bytes is over the budget of {max_bytes:,}")
    return size


def check_array(path: Path, shape: Sequence[int], itemsize: int, max_bytes: int = MAX_ARRAY_BYTES) -> None:
    """Refuse an array that a header announces before it is decoded.

    Raises:
        ReadError: a dimension is not positive, or shape x itemsize is over the budget.
    """
    if any(size <= 0 for size in shape):
        raise ReadError(path, f"announces an empty array of shape {tuple(shape)}")
    size = math.prod(shape) * itemsize
    if size > max_bytes:
        raise ReadError(path, f"announces {size:,} bytes of samples, over the budget of {max_bytes:,}")


def check_inflation(path: Path, encoded: int, decoded: int, max_ratio: float = MAX_INFLATE_RATIO) -> None:
    """Refuse what grows from `encoded` to more than `max_ratio` times as many `decoded` bytes.

    Raises:
        ReadError: a decompression bomb, or a blank image too large to be told from one.
    """
    if decoded > max(FREE_BYTES, max_ratio * encoded):
        budget = f"over the budget of 1 to {max_ratio:g}"
        raise ReadError(path, f"{encoded:,} bytes would decode to {decoded:,} or more, {budget}")
