"""Table: de-identified rows under a Delta log, in Parquet files and packs that are sealed each under a key of its own.

    <table>/_delta_log/          what is true: commits, one file each (`log.py`)
    <table>/part-<id>.parquet    rows of one source, one row group a bucket of subjects (`parts.py`)
    <table>/pack-<id>.mrb        arrays of one task (`packs.py`)
    <table>/description, key.json, head

Nothing here starts Ray: tasks write parts and packs, and whoever holds their names commits them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from medray.artifacts.durable import fsync_folder
from medray.artifacts.table.content import update as update_digest
from medray.artifacts.table.log import Log
from medray.artifacts.table.packs import PackReader, PackWriter
from medray.artifacts.table.parts import Description, Part, bucket_of, read_part, schema_of, write_part
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import Keyring
from medray.schema import FILE_ID, FILES, POSITION, QUARANTINE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Description", "PackWriter", "Part", "Table", "bucket_of"]

DESCRIPTION = "description"


class Table:
    """A study's table; picklable by reference.

    Attributes:
        folder: its name is the table's digest.
        pinned: the version that is read; None reads the newest.
    """

    def __init__(self, folder: Path, keyring: Keyring, pinned: int | None = None) -> None:
        self.folder = Path(folder)
        self.vault = Vault(self.folder, keyring)
        self.pinned = pinned
        self._files_of: dict[str, frozenset[str]] = {}

    def __reduce__(self) -> tuple[type[Table], tuple[Path, Keyring, int | None]]:
        return (Table, (self.folder, self.vault.keyring, self.pinned))

    @property
    def digest(self) -> str:
        """The table's name."""
        return self.folder.name

    @cached_property
    def _log(self) -> Log:
        return Log(self.folder, self.vault)

    @cached_property
    def _packs(self) -> PackReader:
        return PackReader(self.vault)

    # -- what is there

    @property
    def version(self) -> int:
        """The newest version, or the pinned one; -1 before the first commit."""
        return self._log.version() if self.pinned is None else self.pinned

    def at(self, version: int) -> Table:
        """The table as it was at a version."""
        return Table(self.folder, self.vault.keyring, version)

    def head(self) -> str:
        """A digest of the version that is read and of all before it: equal heads, equal history."""
        return self._log.chain(self.pinned)

    def describe(self) -> Description | None:
        """What was fixed at the first ingest; None before it.

        Raises:
            IntegrityError: it was changed.
        """
        if "_description" not in self.__dict__:
            if not (self.folder / DESCRIPTION).exists():
                if self._log.version() >= 0:
                    raise IntegrityError(f"{self.folder / DESCRIPTION}: missing. Restore it from a backup.")
                return None
            self.__dict__["_description"] = Description.model_validate_json(self.vault.read(DESCRIPTION))
        found: Description = self.__dict__["_description"]
        return found

    def create(self, description: Description) -> None:
        """Fix the table's columns; the same again changes nothing.

        Raises:
            ArtifactError: it was created otherwise before.
        """
        self._log.start()
        known = self.vault.write_once(DESCRIPTION, description.model_dump_json().encode())
        if Description.model_validate_json(known) != description:
            raise ArtifactError(f"{self.folder}: created before with other columns or buckets. Use another workspace.")

    def parts(self, source: str | None = None) -> list[Part]:
        """The parts of a source, or all, in the order in which they were committed.

        Raises:
            IntegrityError: the log was changed, cut or reordered.
        """
        return [part for part in self._log.parts(self.pinned).values() if source in (None, part.source)]

    # -- writing

    def write_part(self, source: str, rows: pa.Table) -> Part:
        """Seal rows of one source into a new file, durably; they are in the table once they are committed.

        Args:
            source: a source, or a partition that holds no records, as FILES and QUARANTINE.
            rows: the common columns and the source's own, `source.column`; missing ones become null.

        Raises:
            ArtifactError: a column that the description does not have.
        """
        return write_part(self.vault, source, rows, self._schema(source), self._described().num_buckets)

    def pack(self) -> PackWriter:
        """A new file for arrays; leave its context before the rows that name them are committed."""
        return PackWriter(self.vault)

    def commit(
        self, add: Sequence[Part], remove: Sequence[str] = (), *, app: str = "", app_version: int | None = None
    ) -> int:
        """Make parts visible and others invisible, all at once and durably.

        Args:
            add: parts that tasks wrote.
            remove: names of parts.
            app: who commits.
            app_version: a number that grows with each commit of `app`: the same again, or a lower one, changes
                nothing, so that a commit whose answer was lost can be repeated.

        Returns:
            The version that has them.

        Raises:
            ArtifactError: another commit removed the same parts meanwhile; read again, and repeat.
        """
        self._described()
        return self._log.commit(add, remove, app, app_version)

    def without_files(self, source: str, file_ids: set[str]) -> tuple[list[Part], list[str]]:
        """Take the rows of changed or vanished files out of a source.

        Returns:
            Rewritten parts to add, and names of parts to remove; nothing changes before both are committed.
        """
        added, removed = [], []
        values = pa.array(sorted(file_ids), pa.string())
        for part in self.parts(source):
            if part.name not in self._files_of:  # a part never changes, and a run asks for each of its groups
                column = read_part(self.vault, part, columns=[FILE_ID]).column(FILE_ID)
                self._files_of[part.name] = frozenset(pc.unique(column).to_pylist())
            if self._files_of[part.name].isdisjoint(file_ids):
                continue
            removed.append(part.name)
            rows = read_part(self.vault, part)
            kept = rows.filter(pc.invert(pc.is_in(rows.column(FILE_ID), value_set=values)))
            if kept.num_rows:
                added.append(self.write_part(source, kept))
        return added, removed

    def purge(self) -> int:
        """Delete the files that no version names: what crashed writers left. The caller keeps other writers away.

        Returns:
            How many were deleted.
        """
        if not self.folder.is_dir():
            return 0
        named = {name for part in self._log.every_part() for name in (part.name, *part.packs)}
        files = [path for path in self.folder.iterdir() if path.name.startswith(("part-", "pack-", "."))]
        orphans = [path for path in files if path.name not in named] + self._log.leftovers()
        for path in orphans:
            path.unlink()
        if orphans:
            fsync_folder(self.folder)
        return len(orphans)

    # -- reading

    def read(
        self, source: str, *, buckets: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of a source, ordered by position.

        Args:
            source: a source, or FILES or QUARANTINE.
            buckets: of subjects (`bucket_of`); all of them by default.
            columns: common columns and `source.column`; all of them by default.

        Raises:
            IntegrityError: a file was changed, cut or swapped.
        """
        schema = self._schema(source)
        wanted = None if columns is None else list(dict.fromkeys([*columns, POSITION]))
        there = [part for part in self.parts(source) if buckets is None or not set(buckets).isdisjoint(part.buckets)]
        found = [read_part(self.vault, part, buckets, wanted) for part in there]
        if schema is not None:
            fields = schema if wanted is None else pa.schema([schema.field(name) for name in wanted])
            found.append(fields.empty_table())
        rows = pa.concat_tables(found, promote_options="permissive") if found else pa.table({})
        if POSITION in rows.column_names:
            rows = rows.sort_by(POSITION)
        return rows if columns is None else rows.select([name for name in columns if name in rows.column_names])

    def files(self) -> pa.Table:
        """The index of the files that were ingested."""
        return self.read(FILES)

    def quarantine(self) -> pa.Table:
        """What could not be read or keyed, with its reason."""
        return self.read(QUARANTINE)

    def load_asset(self, asset: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """The array that a row's asset names.

        Raises:
            IntegrityError: the pack was changed, cut or swapped, or holds another array at this place.
        """
        return self._packs.load(asset)

    def rows_digest(self) -> str:
        """SHA-256 over all rows and the quarantine: equal content, equal digest, in whatever parts it lies.

        Each source is held in memory while it is digested; arrays count by their own digests and are not opened.
        """
        total = hashlib.sha256()
        sources = {part.source for part in self.parts()}
        for source in sorted(name for name in sources if name == QUARANTINE or not name.startswith("_")):
            update_digest(total, source, self.read(source))
        return total.hexdigest()

    def _described(self) -> Description:
        description = self.describe()
        if description is None:
            raise ArtifactError(f"{self.folder}: no table yet. Ingest first: `medray ingest STUDY`")
        return description

    def _schema(self, source: str) -> pa.Schema | None:
        # partitions that hold no records (their names start so) have the columns that they are written with
        return None if source.startswith("_") else schema_of(source, self._described())
