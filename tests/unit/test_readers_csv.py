"""CSV: what a file looks like is found out, what does not fit is kept apart by its row, and nothing is guessed."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medray.errors import ReadError
from medray.readers.csv import CHUNK_BYTES, Csv


def read(path: Path, **fields: Any) -> tuple[dict[str, list[str | None]], list[int], list[tuple[int, str]]]:
    """The columns, the numbers of the good rows, and the bad rows with their reasons."""
    cells: dict[str, list[str | None]] = {}
    rows: list[int] = []
    bad: list[tuple[int, str]] = []
    for chunk in Csv(path="*", **fields).read(path):
        assert chunk.columns.num_rows == len(chunk.rows)
        for name in chunk.columns.column_names:
            cells.setdefault(name, []).extend(chunk.columns.column(name).to_pylist())
        rows += chunk.rows
        bad += chunk.bad
    return cells, rows, bad


def wrote(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        *("a,b\n1;x,2\n3;y,4\n", "a;b\n1;x;2\n", "a\tb\n1;x\t2\n3;y\t4\n", "a|b\n1;x|2\n3;y|4\n"),
        *(
            "a,b\r\n1;x,2\r\n3;y,4\r\n",
            "a,b\r1;x,2\r3;y,4\r",
            "\ufeffa,b\n1;x,2\n3;y,4",
            '\n\n"a","b"\n"1;x","2"\n3;y,4\n',
        ),
    ],
)
def test_delimiter_line_ends_and_marks_are_found_out(text: str, tmp_path: Path) -> None:
    cells, _, bad = read(wrote(tmp_path, text))
    if text.startswith("a;b"):  # here the last line has a cell more than the header
        assert len(bad) == 1
    else:
        assert cells == {"a": ["1;x", "3;y"], "b": ["2", "4"]}
        assert not bad


def test_the_delimiter_is_the_one_that_parts_every_row_alike(tmp_path: Path) -> None:
    german = read(wrote(tmp_path, "name;value;note\nx;1,5;a, b\ny;2,5;c\n"))[0]
    assert german == {"name": ["x", "y"], "value": ["1,5", "2,5"], "note": ["a, b", "c"]}
    assert read(wrote(tmp_path, "note\na b\nc\n"))[0] == {"note": ["a b", "c"]}
    assert read(wrote(tmp_path, "a b\n1 2\n"), delimiter=" ")[0] == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize(
    ("encoding", "given"), [("latin-1", "latin-1"), ("utf-16", "utf-8"), ("utf-16-le", "utf-16-le")]
)
def test_other_encodings_are_named_or_marked(encoding: str, given: str, tmp_path: Path) -> None:
    path = wrote(tmp_path, "a,b\nJosé,2\nx,3\n".encode(encoding))
    assert read(path, encoding=given)[0] == {"a": ["José", "x"], "b": ["2", "3"]}


def test_rows_of_another_encoding_are_bad_and_the_others_good(tmp_path: Path) -> None:
    cells, rows, bad = read(wrote(tmp_path, b"a,b\nx,1\nJos\xe9,2\n\0,3\ny,4\n"))
    assert cells == {"a": ["x", "y"], "b": ["1", "4"]}
    assert rows == [0, 3]
    assert bad == [(row, "the row holds what is no utf-8: name the file's `encoding`") for row in (1, 2)]


def test_an_unknown_encoding_is_a_mistake_of_the_study() -> None:
    with pytest.raises(ValidationError, match="'utf-9' is no encoding that Python knows"):
        Csv(path="*", encoding="utf-9")


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    raw = b"a,b\n1,2\n"
    for name, content in (("a.csv", gzip.compress(raw)), ("a.csv.gz", raw), ("b.gz", gzip.compress(raw[:4]))):
        cells, _, bad = read(wrote(tmp_path, content, name))
        assert not bad
        assert cells == ({} if name == "b.gz" else {"a": ["1"], "b": ["2"]})
    two = gzip.compress(raw) + gzip.compress(b"3,4\n")
    assert read(wrote(tmp_path, two))[0] == {"a": ["1", "3"], "b": ["2", "4"]}


def test_bad_rows_are_numbered_as_they_lie(tmp_path: Path) -> None:
    cells, rows, bad = read(wrote(tmp_path, 'a,b\n1,2\n3\n"x\ny",5\n\n6,7,8\n9,10\n'))
    assert cells == {"a": ["1", "x\ny", "9"], "b": ["2", "5", "10"]}
    assert rows == [0, 2, 4]
    assert bad == [(row, "the row does not have the 2 cells of the header") for row in (1, 3)]


def test_a_file_of_bad_rows_alone_says_so(tmp_path: Path) -> None:
    _, rows, bad = read(wrote(tmp_path, "a,b\n1,2,\n3,4,\n"))
    assert not rows
    assert [row for row, _ in bad] == [0, 1]


def test_a_quote_that_is_not_closed_swallows_nothing_unseen(tmp_path: Path) -> None:
    cells, rows, bad = read(wrote(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n7,8\n'))
    assert cells == {"a": ["1"], "b": ["2"]}
    assert rows == [0]
    assert bad == [(1, "a quote is not closed: the row goes on to the end of the file")]
    inches = read(wrote(tmp_path, 'a,b\n5",6\n7,"8\n9"\n'))  # an odd quote elsewhere breaks only what it can
    assert inches[0]["a"][0] == '5"'


def test_missing_cells_are_null_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    cells = read(wrote(tmp_path, 'a,b\n?,NA\n"",007\n-9, x \n'), missing=("?", "", "NA", "-9"))[0]
    assert cells == {"a": [None, None, None], "b": [None, "007", " x "]}


def test_names_may_stand_in_the_study(tmp_path: Path) -> None:
    cells, rows, _ = read(wrote(tmp_path, "\ufeff1,2\n3,4\n", "a.data"), header=("a", "b"))
    assert cells == {"a": ["1", "3"], "b": ["2", "4"]}
    assert rows == [0, 1]


def test_a_header_may_run_over_lines_and_be_long(tmp_path: Path) -> None:
    cells, rows, bad = read(wrote(tmp_path, '"a\nx",b\n1,2\n3\n'))
    assert (cells, rows, [row for row, _ in bad]) == ({"a\nx": ["1"], "b": ["2"]}, [0], [1])
    names = [f"probe_{number:06d}" for number in range(20_000)]
    cells, _, _ = read(wrote(tmp_path, ",".join(names) + "\n" + ",".join("1" for _ in names) + "\n"))
    assert list(cells) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,a\n1,2\n", "two columns have the same name"),
        (" \n\n", "holds no rows"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, "not text, or of another encoding"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:-9], "not readable as delimited text"),
        ("a,b\n1," + "x" * (2 * CHUNK_BYTES) + "\n", "a row is longer than 8 MiB: is a quote not closed"),
    ],
)
def test_what_is_no_table_is_an_error_that_says_why(text: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=said) as caught:
        read(wrote(tmp_path, text))
    assert caught.value.__cause__ is None  # Arrow's own words quote the row


def test_rows_equal_those_of_pythons_csv_in_real_files(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "diabetes_130_hospitals/dataset_diabetes.zip") as archive:
        member = next(name for name in archive.namelist() if name.endswith("diabetic_data.csv"))
        diabetes = Path(archive.extract(member, tmp_path))
    for path in (
        shared_data / "ptbxl_500/ptbxl_database.csv",
        shared_data / "notes_mtsamples/mtsamples.csv.gz",
        diabetes,
    ):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            header, *expected = list(csv.reader(file))
        cells, rows, bad = read(path, missing=("",))
        assert not bad
        assert rows == list(range(len(expected)))
        for column, name in enumerate(header):
            assert cells[name] == [row[column] or None for row in expected]


def test_four_hospitals_without_a_header_are_read_whole(shared_data: Path) -> None:
    counts = {}
    for path in sorted((shared_data / "heart_disease_4_hospitals").glob("*.data")):
        cells, rows, bad = read(path, header=tuple("abcdefghijklmn"))
        assert not bad
        counts[path.name.split(".")[1]] = (len(rows), sum(cell is None for cell in cells["l"]))
    # SOURCE.md: Hungary lacks `ca` in 291 of 294 rows, Long Beach in 198 of 200
    assert {name: found[0] for name, found in counts.items()} == {
        **{"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    }
    assert (counts["hungarian"][1], counts["va"][1]) == (291, 198)


@pytest.mark.parametrize("what", ["broken", "left"])
def test_a_process_that_stops_reading_can_end(what: str, tmp_path: Path) -> None:
    """Arrow given a stream of Python's kept one in five processes from ending after an error."""
    raw = gzip.compress(b"a,b\n" + b"".join(b"%d,2\n" % row for row in range(200_000)))
    for number in range(3):
        broken = raw[: 300 + number] + b"zzzz" + raw[304 + number :] if what == "broken" else raw
        path = wrote(tmp_path, broken, f"{number}.csv.gz")
        code = "from pathlib import Path\nfrom medray.readers.csv import Csv\nfrom medray.errors import ReadError\n"
        code += f"try:\n next(Csv(path='*').read(Path({str(path)!r})))\nexcept ReadError:\n pass\n"
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
        assert time.monotonic() - start < 30
