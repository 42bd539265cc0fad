"""Budgets are asked before anything is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medray import limits
from medray.errors import ReadError


def test_a_file_is_there_plain_not_empty_and_within_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    assert limits.check_file(path, max_bytes=5) == 5
    with pytest.raises(ReadError, match=r"a\.bin: 5 bytes is over the budget of 4"):
        limits.check_file(path, max_bytes=4)
    path.write_bytes(b"")
    for what, said in ((path, "empty file"), (tmp_path, "not a file"), (tmp_path / "none", "not a file")):
        with pytest.raises(ReadError, match=said):
            limits.check_file(what)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ReadError, match="not a file"):
        limits.check_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((0, 4), "an empty array"),
        ((4, -1), "an empty array"),
        ((1 << 20, 1 << 20), "1,099,511,627,776 bytes of samples"),
    ],
)
def test_an_array_that_a_header_announces_is_refused_before_it_is_made(shape: tuple[int, ...], said: str) -> None:
    limits.check_array(Path("a"), (4096, 4096), 2)
    with pytest.raises(ReadError, match=said):
        limits.check_array(Path("a"), shape, 1)


def test_what_grows_out_of_all_proportion_is_refused() -> None:
    limits.check_inflation(Path("a"), 1000, limits.FREE_BYTES)  # a blank film of ordinary size
    limits.check_inflation(Path("a"), 10 << 20, 1 << 30)
    with pytest.raises(ReadError, match="1,000 bytes would decode to 67,108,865"):
        limits.check_inflation(Path("a"), 1000, limits.FREE_BYTES + 1)
