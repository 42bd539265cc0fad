"""Nothing of a table can be read without its key, and no change to what is stored gives a wrong row."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray.artifacts.table import Description, Table
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import Keyring

CANARIES = ("Ottilie Quarrington", "1931-12-24", "haemochromatosis")
COLUMNS = {"labs": {"serum_ferritin": "number", "diagnosis": "text"}}
SUBJECTS = ["0" * 32, "00000001" + "0" * 24, "00000002" + "0" * 24]


def rows(table: Table, number: int) -> pa.Table:
    with table.pack() as pack:
        assets = [pack.append(np.frombuffer(f"{name} {number}".encode() * 40, np.uint8)) for name in CANARIES]
    return pa.table(
        {
            "position": [3 * number, 3 * number + 1, 3 * number + 2],
            "subject_id": SUBJECTS,
            "labs.serum_ferritin": [1.5, 2.5, number],
            "labs.diagnosis": list(CANARIES),
            "asset": assets,
        }
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Five commits; the fourth replaces the rows of the second."""
    root = tmp_path_factory.mktemp("stored")
    table = Table(root / "tables" / "0123456789abcdef", Keyring(root / "keyring"))
    table.create(Description(num_buckets=2, columns=COLUMNS))
    for number in range(5):
        removed = [table.parts()[1].name] if number == 3 else []
        table.commit([table.write_part("labs", rows(table, number))], removed, app="w", app_version=number)
    return table


@pytest.fixture
def table(stored: Table, tmp_path: Path) -> Table:
    """A copy that may be changed."""
    folder = tmp_path / "tables" / stored.folder.name
    shutil.copytree(stored.folder, folder)
    return Table(folder, stored.vault.keyring)


def digest(table: Table) -> str:
    """Everything opened anew, arrays too."""
    opened = Table(table.folder, table.vault.keyring)
    opened.describe()
    for asset in opened.read("labs").column("asset").to_pylist():
        opened.load_asset(asset)
    return opened.rows_digest()


def files(table: Table, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(table.folder.glob(pattern))]


KINDS = ["part-*", "pack-*", "_delta_log/*.json", "head", "description", "key.json"]


def in_use(table: Table, path: Path) -> bool:
    """Whether the newest version reads this file: what an older one alone reads is not opened here."""
    named = {name for part in table.parts() for name in (part.name, *part.packs)}
    return not path.name.startswith("pa") or path.name in named


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_or_a_cut_file_is_named(table: Table, kind: str) -> None:
    whole_table = digest(table)
    draw = random.Random(kind)
    unseen, named = 0, set()
    for path in filter(lambda path: in_use(table, path), files(table, kind)):
        whole = path.read_bytes()
        for _ in range(12):
            index = draw.randrange(len(whole))
            flipped = whole[:index] + bytes([whole[index] ^ 1 << draw.randrange(8)]) + whole[index + 1 :]
            for changed in (flipped, whole[: draw.randrange(len(whole))]):
                path.write_bytes(changed)
                try:
                    # Parquet keeps seven bytes that say nothing: the magic at its start, and a default spelled out
                    assert digest(table) == whole_table
                    unseen += 1
                except IntegrityError as error:
                    named.add(table.folder.name in str(error))
        path.write_bytes(whole)
    assert unseen <= (2 if kind == "part-*" else 0)
    assert named == {True}
    assert digest(table) == whole_table


def swapped(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("kind", ["part-*", "pack-*", "_delta_log/*.json"])
def test_two_files_that_change_places_are_named(table: Table, kind: str) -> None:
    found = [path for path in files(table, kind) if in_use(table, path)]
    draw = random.Random(kind)
    for _ in range(6):
        one, other = draw.sample(found, 2)
        swapped(one, other)
        with pytest.raises(IntegrityError):
            digest(table)
        swapped(one, other)
    digest(table)


def test_an_array_at_another_place_does_not_open(table: Table) -> None:
    """The array of one row for that of another: as an asset, and as bytes in the pack."""
    assets = table.read("labs").column("asset").to_pylist()
    same_pack = [asset for asset in assets if asset["pack"] == assets[0]["pack"]]
    mixed = {**same_pack[0], "offset": same_pack[1]["offset"], "length": same_pack[1]["length"]}
    for wrong in (mixed, {**assets[0], "pack": assets[-1]["pack"]}, {**assets[0], "length": assets[0]["length"] - 1}):
        with pytest.raises(IntegrityError):
            table.load_asset(wrong)
    for shape, dtype in (([3], "|u1"), ([1 << 20], "|u1"), (assets[0]["shape"], "<f8")):
        with pytest.raises(IntegrityError, match="not the"):
            table.load_asset({**assets[0], "shape": shape, "dtype": dtype})
    first, second = same_pack[:2]
    path = table.folder / first["pack"]
    data = bytearray(path.read_bytes())
    ours = data[first["offset"] : first["offset"] + first["length"]]
    data[second["offset"] : second["offset"] + first["length"]] = ours
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"at byte {second['offset']}"):
        table.load_asset(second)


def test_an_array_cut_at_the_border_of_a_chunk_does_not_open(table: Table) -> None:
    with table.pack() as pack:
        asset = pack.append(np.random.default_rng(1).integers(0, 256, 3 << 20, np.uint8))
    for chunks in (1, 2, 3):
        with pytest.raises(IntegrityError):
            table.load_asset({**asset, "length": chunks * ((1 << 20) + 16)})


def log(table: Table, version: int) -> Path:
    return table.folder / "_delta_log" / f"{version:020d}.json"


def dropped_last(table: Table) -> None:
    log(table, 5).unlink()


def dropped_all(table: Table) -> None:
    shutil.rmtree(table.folder / "_delta_log")


def dropped_in_the_middle(table: Table) -> None:
    for version in (3, 4, 5):
        log(table, version - 1).write_bytes(log(table, version).read_bytes())
    log(table, 5).unlink()


def replayed_at_the_end(table: Table) -> None:
    log(table, 6).write_bytes(log(table, 2).read_bytes())  # would bring back the rows that the fourth replaced


def extra_action(table: Table) -> None:
    removal = {"remove": {"path": table.parts()[0].name, "dataChange": True, "partitionValues": {"source": "labs"}}}
    log(table, 5).write_bytes(log(table, 5).read_bytes() + b"\n" + json.dumps(removal).encode())


def extra_action_after_the_head(table: Table) -> None:
    """As if the writer had been killed before it moved the head, which then cannot tell."""
    before = (table.folder / "head").read_bytes()
    table.commit([table.write_part("labs", rows(table, 5))])
    (table.folder / "head").write_bytes(before)
    log(table, 6).write_bytes(log(table, 6).read_bytes() + b"\n" + log(table, 5).read_bytes().splitlines()[1])


def another_time(table: Table) -> None:
    said = log(table, 5).read_text()
    log(table, 5).write_text(said.replace('"timestamp":1', '"timestamp":2'))


def foreign_commit(table: Table) -> None:
    from deltalake import DeltaTable, PostCommitHookProperties
    from deltalake.transaction import AddAction

    delta = DeltaTable(table.folder)
    stranger = AddAction("part-x.parquet", 1, {"source": "labs"}, 0, True, '{"numRecords":1}')
    hooks = PostCommitHookProperties(create_checkpoint=False)
    delta.create_write_transaction([stranger], "append", delta.schema(), ["source"], post_commithook_properties=hooks)


def head_lost(table: Table) -> None:
    (table.folder / "head").unlink()


def key_lost(table: Table) -> None:
    (table.folder / "key.json").unlink()


def description_lost(table: Table) -> None:
    (table.folder / "description").unlink()


def part_lost(table: Table) -> None:
    (table.folder / table.parts()[0].name).unlink()


def pack_lost(table: Table) -> None:
    (table.folder / table.parts()[0].packs[0]).unlink()


def part_in_clear(table: Table) -> None:
    pq.write_table(table.read("labs"), table.folder / table.parts()[0].name)


@pytest.mark.parametrize(
    "change",
    [
        *(dropped_last, dropped_all, dropped_in_the_middle, replayed_at_the_end, foreign_commit),
        *(extra_action, extra_action_after_the_head, another_time),
        *(head_lost, key_lost, description_lost, part_lost, pack_lost, part_in_clear),
    ],
)
def test_what_was_dropped_replayed_or_forged_is_named(table: Table, change: Callable[[Table], None]) -> None:
    change(table)
    with pytest.raises(IntegrityError, match="Restore it from a backup"):
        digest(table)


def test_a_head_of_before_is_no_harm_and_is_moved_on(table: Table) -> None:
    """A writer that was killed between its commit and the head leaves this; the next commit mends it."""
    old = (table.folder / "head").read_bytes()
    before = digest(table)
    table.commit([table.write_part("labs", rows(table, 5))], app="w", app_version=5)
    (table.folder / "head").write_bytes(old)
    opened = Table(table.folder, table.vault.keyring)
    assert opened.version == 6
    assert opened.commit([], app="w", app_version=5) == 6
    assert (table.folder / "head").read_bytes() != old
    assert digest(table) != before


def test_a_checkpoint_in_pieces_does_not_keep_anyone_from_committing(table: Table) -> None:
    from deltalake import DeltaTable

    DeltaTable(table.folder).create_checkpoint()
    for path in files(table, "_delta_log/*.checkpoint.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    opened = Table(table.folder, table.vault.keyring)
    assert opened.commit([opened.write_part("labs", rows(opened, 5))]) == 6


def test_another_installation_cannot_open_a_table(table: Table, tmp_path: Path) -> None:
    stranger = Table(table.folder, Keyring(tmp_path / "another keyring"))
    for look in (lambda: stranger.version, stranger.describe, stranger.parts, lambda: stranger.read("labs")):
        with pytest.raises(IntegrityError, match=r"key\.json: .*another key"):
            look()


def test_a_part_copied_from_another_table_does_not_open(table: Table, tmp_path: Path) -> None:
    other = Table(tmp_path / "tables" / "fedcba9876543210", table.vault.keyring)
    other.create(Description(num_buckets=2, columns=COLUMNS))
    part = other.write_part("labs", rows(other, 0))
    path = table.folder / table.parts()[0].name
    path.write_bytes((other.folder / part.name).read_bytes())
    with pytest.raises(IntegrityError, match=path.name):
        digest(table)


def traces(folder: Path) -> set[str]:
    """Which canaries and names of columns stand in clear in any file."""
    words = (*CANARIES, "serum_ferritin", "diagnosis")
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {word for word in words if word.encode() in data}


def statistics_in(path: Path) -> set[str]:
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    return {name for action in actions if "add" in action for name in json.loads(action["add"]["stats"])}


def test_no_cell_and_no_column_stands_in_clear(table: Table, tmp_path: Path) -> None:
    assert traces(table.folder) == set()
    statistics = {name for path in files(table, "_delta_log/*.json") for name in statistics_in(path)}
    assert statistics == {"numRecords"}
    # the control: the same rows, not sealed, are found
    (tmp_path / "clear").mkdir()
    pq.write_table(table.read("labs"), tmp_path / "clear" / "rows.parquet", compression="none")
    assert traces(tmp_path / "clear") == {*CANARIES, "serum_ferritin", "diagnosis"}


def test_purge_stops_before_it_deletes_by_a_log_that_was_cut(table: Table) -> None:
    dropped_last(table)
    before = sorted(path.name for path in table.folder.iterdir())
    with pytest.raises(ArtifactError):
        Table(table.folder, table.vault.keyring).purge()
    assert sorted(path.name for path in table.folder.iterdir()) == before
