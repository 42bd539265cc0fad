"""Rows come back as they were written, all at once or not at all, at any version, in whatever parts they lie."""

from __future__ import annotations

import datetime
import hashlib
import pickle
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medray.artifacts.table import Description, Table, bucket_of
from medray.errors import ArtifactError
from medray.governance.crypto import Keyring
from medray.schema import FILES, QUARANTINE

DESCRIPTION = Description(
    num_buckets=4,
    columns={"labs": {"age": "number", "sex": "text", "seen": "time"}, "films": {"view": "text"}},
    dropped={"labs": {"name": "names a person"}},
)
DAY = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def subject(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def labs(positions: range, file: str = "f0") -> pa.Table:
    return pa.table(
        {
            "position": list(positions),
            "subject_id": [subject(number // 2) for number in positions],
            "record_id": [subject(-number) for number in positions],
            "split": ["train" if number % 5 else "held_out" for number in positions],
            "time": [DAY + datetime.timedelta(days=number) for number in positions],
            "file_id": [file] * len(positions),
            "labs.age": [None if number % 7 == 0 else number / 3 for number in positions],
            "labs.sex": ["f" if number % 2 else "m" for number in positions],
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = Table(tmp_path / "tables" / "0123456789abcdef", Keyring(tmp_path / "keyring"))
    made.create(DESCRIPTION)
    return made


def fresh(table: Table) -> Table:
    return pickle.loads(pickle.dumps(table))  # noqa: S301


def test_a_table_that_was_never_made_is_empty(tmp_path: Path) -> None:
    table = Table(tmp_path / "tables" / "abc", Keyring(tmp_path / "keyring"))
    assert (table.version, table.describe(), table.parts(), table.purge()) == (-1, None, [], 0)
    assert not table.folder.exists()
    with pytest.raises(ArtifactError, match="medray ingest"):
        table.read("labs")


def test_rows_come_back_as_they_were_written_in_their_order(table: Table) -> None:
    assert table.version == -1
    parts = [table.write_part("labs", labs(range(start, start + 10))) for start in (20, 0, 10)]
    table.commit(parts)
    rows = fresh(table).read("labs")
    written = labs(range(30))
    for name in written.column_names:
        assert rows.column(name).to_pylist() == written.column(name).to_pylist(), name
    assert set(rows.column("source").to_pylist()) == {"labs"}
    assert rows.column("labs.seen").null_count == rows.column("asset").null_count == 30
    assert str(rows.schema.field("labs.seen").type) == str(rows.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert table.read("labs", columns=["labs.sex", "position"]).column_names == ["labs.sex", "position"]


def test_a_source_without_rows_has_its_columns(table: Table) -> None:
    rows = table.read("films")
    assert rows.num_rows == 0
    assert {"subject_id", "position", "films.view"} <= set(rows.column_names)
    assert table.files().num_rows == table.quarantine().num_rows == 0


def test_a_bucket_is_read_alone_and_buckets_add_up_to_the_whole(table: Table) -> None:
    table.commit([table.write_part("labs", labs(range(start, start + 40))) for start in (0, 40)])
    whole = table.read("labs").to_pylist()
    buckets = [table.read("labs", buckets=[bucket]).to_pylist() for bucket in range(4)]
    assert all(0 < len(rows) < 80 for rows in buckets)
    for bucket, rows in enumerate(buckets):
        assert rows == [row for row in whole if bucket_of(row["subject_id"], 4) == bucket]
    assert sum(len(rows) for rows in buckets) == 80
    two = table.read("labs", buckets=[1, 3], columns=["position"]).column("position").to_pylist()
    assert two == sorted(row["position"] for row in (*buckets[1], *buckets[3]))


def test_a_column_that_the_first_ingest_did_not_fix_is_refused(table: Table) -> None:
    rows = labs(range(3)).append_column("labs.extra", pa.array([1.0, 2.0, 3.0]))
    with pytest.raises(ArtifactError, match=r"labs\.extra"):
        table.write_part("labs", rows)


def test_a_cell_of_the_wrong_type_is_refused_without_showing_it(table: Table) -> None:
    rows = pa.table({"subject_id": [subject(0)], "position": [0], "labs.age": ["Ottilie"]})
    with pytest.raises(ArtifactError, match=r"labs\.age") as error:
        table.write_part("labs", rows)
    shown = "".join(traceback.format_exception(error.value))
    assert "no double" in shown
    assert "Ottilie" not in shown


def test_a_table_is_made_once(table: Table) -> None:
    table.create(DESCRIPTION)
    with pytest.raises(ArtifactError, match="other columns"):
        fresh(table).create(DESCRIPTION.model_copy(update={"num_buckets": 5}))
    assert fresh(table).describe() == DESCRIPTION


def test_nothing_is_seen_before_it_is_committed(table: Table) -> None:
    part = table.write_part("labs", labs(range(5)))
    with table.pack() as pack:
        pack.append(np.zeros(3))
    assert fresh(table).read("labs").num_rows == 0
    assert table.commit([part]) == 1
    assert fresh(table).read("labs").num_rows == 5
    assert fresh(table).version == 1


def test_a_commit_that_is_repeated_changes_nothing(table: Table) -> None:
    for number in range(3):
        table.commit([table.write_part("labs", labs(range(5 * number, 5 * number + 5)))], app="w", app_version=number)
    for writer in (table, fresh(table)):
        again = writer.write_part("labs", labs(range(10, 15)))
        assert writer.commit([again], app="w", app_version=2) == 3
        assert writer.commit([again], app="w", app_version=0) == 3
    assert fresh(table).read("labs").column("position").to_pylist() == list(range(15))
    assert table.commit([table.write_part("labs", labs(range(15, 20)))], app="other", app_version=0) == 4


def test_the_same_rows_do_not_come_in_twice(table: Table) -> None:
    part = table.write_part("labs", labs(range(5)))
    table.commit([part])
    with pytest.raises(ArtifactError, match="committed before"):
        table.commit([part])


def test_of_two_that_replace_the_same_rows_one_is_refused(table: Table) -> None:
    table.commit([table.write_part("labs", labs(range(5)))])
    first, second = fresh(table), fresh(table)
    one, other = (writer.without_files("labs", {"f0"}) for writer in (first, second))
    first.commit([first.write_part("labs", labs(range(5, 10), "f1"))], one[1])
    with pytest.raises(ArtifactError, match="removed by another commit"):
        second.commit([second.write_part("labs", labs(range(10, 15), "f1"))], other[1])
    assert fresh(table).read("labs").column("position").to_pylist() == list(range(5, 10))


def test_of_two_that_replace_the_same_rows_at_the_same_moment_one_is_refused(table: Table) -> None:
    table.commit([table.write_part("labs", labs(range(1)))])

    def replace(writer: Table) -> bool:
        added, removed = [writer.write_part("labs", labs(range(1), "f1"))], [part.name for part in writer.parts()]
        together.wait()
        try:
            writer.commit(added, removed)
        except ArtifactError as error:
            return "removed by another commit" not in str(error)
        return True

    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            assert sorted(pool.map(replace, (fresh(table), fresh(table)))) == [False, True]
    assert fresh(table).read("labs").num_rows == 1
    assert fresh(table).version == 21


def test_rows_of_changed_files_are_replaced_and_other_files_stay(table: Table) -> None:
    rows = pa.concat_tables([labs(range(6), "a"), labs(range(6, 12), "b")])
    table.commit([table.write_part("labs", rows), table.write_part("labs", labs(range(12, 15), "a"))])
    added, removed = table.without_files("labs", {"a"})
    assert fresh(table).read("labs").num_rows == 15
    assert (len(added), len(removed)) == (1, 2)
    table.commit([*added, table.write_part("labs", labs(range(3), "a"))], removed)
    assert fresh(table).read("labs").column("position").to_pylist() == [0, 1, 2, *range(6, 12)]
    assert table.without_files("labs", {"no such file"}) == ([], [])


def test_writers_that_race_to_begin_a_table_all_get_in(table: Table) -> None:
    code = (
        "import pathlib, sys, time\nimport deltalake, pyarrow\nfrom medray.artifacts.table import Table\n"
        "from medray.governance.crypto import Keyring\nfolder, keyring, number = sys.argv[1:]\n"
        "table = Table(pathlib.Path(folder), Keyring(pathlib.Path(keyring)))\n"
        "rows = pyarrow.table({'position': [int(number)], 'subject_id': ['0' * 32]})\n"
        "part = table.write_part('labs', rows)\nprint('ready', flush=True)\nsys.stdin.read(1)\ntable.commit([part])\n"
    )
    places = [str(table.folder), str(table.vault.keyring.folder)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *places, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert fresh(table).version == 4
    assert fresh(table).read("labs").column("position").to_pylist() == [0, 1, 2, 3]


def test_an_older_version_is_read_as_it_was(table: Table) -> None:
    heads = []
    for number in range(3):
        removed = [part.name for part in table.parts()]
        table.commit([table.write_part("labs", labs(range(number, number + 4)))], removed)
        heads.append(table.head())
    assert len(set(heads)) == 3
    for number in range(3):
        old = fresh(table).at(number + 1)
        assert (old.version, old.head()) == (number + 1, heads[number])
        assert fresh(old).read("labs").column("position").to_pylist() == list(range(number, number + 4))
    assert table.at(-1).parts() == []
    with pytest.raises(ArtifactError, match="no version 9"):
        table.at(9).read("labs")


def test_purge_deletes_what_no_version_names_and_nothing_else(table: Table) -> None:
    def films() -> pa.Table:
        with table.pack() as pack:
            asset = pack.append(np.ones(4))
        return pa.table({"position": [0], "subject_id": [subject(0)], "asset": [asset], "file_id": ["a"]})

    table.commit([table.write_part("films", films())])
    table.commit([table.write_part("films", films())], [part.name for part in table.parts()])
    committed = {path.name for path in table.folder.rglob("*")}
    table.write_part("films", films())  # a part and a pack that were never committed
    for left in (".head.1f", "_delta_log/00000000000000000007.json#1"):  # of writers that were killed
        (table.folder / left).touch()
    assert len({path.name for path in table.folder.rglob("*")} - committed) == 4
    assert fresh(table).purge() == 4
    assert {path.name for path in table.folder.rglob("*")} == committed
    for version in (1, 2):
        old = table.at(version)
        assert old.load_asset(old.read("films").column("asset")[0].as_py()).tolist() == [1, 1, 1, 1]
    assert table.purge() == 0


def content(table: Table, splits: list[range], films_first: bool) -> str:
    """The digest of a table with the same content, written in other parts, packs and order."""
    parts = []
    for positions in splits:
        with table.pack() as pack:
            if films_first:
                pack.append(np.zeros(100))
            assets = [pack.append(np.full((2, 3), number, np.float32)) for number in positions]
        rows = pa.table({"position": list(positions), "subject_id": list(map(subject, positions)), "asset": assets})
        parts.append(table.write_part("films", rows))
        parts.append(table.write_part("labs", labs(positions)))
        bad = pa.table({"path": [f"bad{number}" for number in positions], "reason": ["cut"] * len(positions)})
        parts.append(table.write_part(QUARANTINE, bad))
        parts.append(table.write_part(FILES, pa.table({"path": ["x"], "read": [len(parts)]})))
    for part in reversed(parts) if films_first else parts:
        table.commit([part])
    return fresh(table).rows_digest()


def test_equal_content_has_an_equal_digest_in_whatever_parts_it_lies(tmp_path: Path) -> None:
    def made(name: str, buckets: int) -> Table:
        table = Table(tmp_path / "tables" / name, Keyring(tmp_path / "keyring"))
        table.create(DESCRIPTION.model_copy(update={"num_buckets": buckets}))
        return table

    one = content(made("a", 1), [range(12)], False)
    assert content(made("b", 4), [range(5, 12), range(5)], True) == one
    assert content(made("c", 4), [range(11)], False) != one


@pytest.mark.parametrize(
    ("column", "value"),
    [("labs.age", 9.5), ("labs.age", None), ("labs.sex", ""), ("labs.sex", None), ("time", DAY), ("split", "tuning")],
)
def test_one_other_cell_gives_another_digest(tmp_path: Path, column: str, value: Any) -> None:
    digests = []
    for changed in (False, True):
        table = Table(tmp_path / "tables" / str(changed), Keyring(tmp_path / "keyring"))
        table.create(DESCRIPTION)
        rows = labs(range(1, 7))
        cells = rows.column(column).to_pylist()
        if changed:
            cells[3] = value
            index = rows.column_names.index(column)
            rows = rows.set_column(index, column, pa.array(cells, rows.schema.field(column).type))
        table.commit([table.write_part("labs", rows)])
        digests.append(table.rows_digest())
    assert digests[0] != digests[1]


ARRAYS = {
    "image": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "volume of several chunks": np.random.default_rng(1).integers(0, 1 << 15, (9, 256, 512), np.int16),
    "exactly one chunk": np.random.default_rng(2).integers(0, 256, 1 << 20, np.uint8),
    "signal": np.linspace(-1, 1, 24).reshape(2, 12).astype(np.float32).T,
    "half": np.array([np.inf, -0.0, 1e-7], np.float16),
    "mask": np.array([[True, False]]),
    "other byte order": np.arange(5, dtype=">u2"),
    "empty": np.zeros((0, 3), np.int32),
    "scalar": np.array(7, np.int64),
}


def test_arrays_come_back_as_they_were_packed(table: Table) -> None:
    with table.pack() as pack:
        assets = {name: pack.append(array) for name, array in ARRAYS.items()}
    rows = pa.table(
        {"position": range(len(assets)), "subject_id": [subject(0)] * len(assets), "asset": list(assets.values())}
    )
    part = table.write_part("films", rows)
    assert part.packs == (pack.name,)
    table.commit([part])
    opened = fresh(table)
    for (name, array), asset in zip(ARRAYS.items(), opened.read("films").column("asset").to_pylist(), strict=True):
        found = opened.load_asset(asset)
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert found.tobytes() == array.tobytes(), name
        assert opened.load_asset(asset).tobytes() == array.tobytes(), name


def test_equal_arrays_have_equal_digests(table: Table) -> None:
    with table.pack() as pack:
        first, again, other = (pack.append(array) for array in (np.arange(6), np.arange(6), np.arange(6).reshape(2, 3)))
    assert first["digest"] == again["digest"] != other["digest"]
    assert first["offset"] != again["offset"]


def test_a_task_without_arrays_leaves_no_pack(table: Table) -> None:
    with table.pack():
        pass
    assert not list(table.folder.glob("pack-*"))


def test_many_packs_are_read_without_running_out_of_open_files(table: Table) -> None:
    assets = []
    for number in range(40):
        with table.pack() as pack:
            assets.append(pack.append(np.array([number])))
    opened = fresh(table)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        assert [opened.load_asset(asset)[0] for asset in assets] == list(range(40))
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_files + 33


def test_delta_sees_the_same_files(table: Table) -> None:
    from deltalake import DeltaTable

    for number in range(60):  # beyond a checkpoint
        removed = [part.name for part in table.parts()][:1] if number % 3 == 2 else []
        table.commit([table.write_part("labs", labs(range(number, number + 1)))], removed)
    delta = DeltaTable(table.folder)
    assert delta.version() == table.version == 60
    assert {Path(uri).name for uri in delta.file_uris()} == {part.name for part in table.parts()}
    statistics = pa.table(delta.get_add_actions(flatten=True))
    assert sum(statistics.column("num_records").to_pylist()) == table.read("labs").num_rows == 40
    assert list(table.folder.glob("_delta_log/*.checkpoint.parquet"))
