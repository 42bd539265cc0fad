"""Log: what is in a table, as a Delta Lake log whose commits are sealed and chained.

Delta arbitrates between writers: each version is one file, made by a link that only one of them gets. deltalake writes
it, but fsyncs nothing and authenticates nothing, so each commit here
 - is made durable before it is acknowledged: fsync(data), fsync(folder), link, fsync(log file), fsync(log folder);
 - carries a record of what it adds and removes, and of the log that it was made on, under an HMAC of the table's key:
   a commit that was changed, inserted, left out, repeated or moved does not verify;
 - moves the sealed head, so that a log that was cut at its end does not verify either. (An older copy of the whole
   table does: hold `Table.head()` against a copy kept elsewhere.)
Statistics are the number of rows and nothing else: Delta's own would hold first and last values in clear.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock
from pydantic import ValidationError

from medray.artifacts.durable import fsync_file, fsync_folder, make_folder
from medray.artifacts.table.parts import COMMON, Part
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import made_once
from medray.schema import SOURCE

if TYPE_CHECKING:
    from deltalake import DeltaTable

FOLDER = "_delta_log"
HEAD = "head"
RECORD = "medray"  # the field of a commit's metadata that holds our record
ROOT = "0" * 64  # the chain before the first version
TRIES = 100  # of one commit against those that others make at the same time
CHECKPOINT_VERSIONS = 50  # without one, deltalake reads the whole log twice a commit
CONFIGURATION = {
    "delta.dataSkippingNumIndexedCols": "0",
    "delta.enableExpiredLogCleanup": "false",  # the chain starts at version 0
}


class Commit(NamedTuple):
    """One version: what it added and removed, who made it, and the digest of the log up to it."""

    added: tuple[Part, ...]
    removed: tuple[str, ...]
    app: str
    app_version: int | None
    nonce: str
    chain: str


class Log:
    """A table's log, verified as it is read; what was verified once is kept in memory."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self.folder = folder / FOLDER
        self._table = folder
        self._vault = vault
        self._commits: list[Commit] = []
        self._numbers: dict[str, int] = {}  # version of each nonce
        self._delta: DeltaTable | None = None
        self._opened_at = 0  # number of commits; deltalake reads again all that came after, until it is opened anew

    # -- reading

    def version(self) -> int:
        """The newest version; -1 where there is none."""
        self._refresh()
        return len(self._commits) - 1

    def chain(self, version: int | None = None) -> str:
        """The digest of all commits up to a version."""
        commits = self._up_to(version)
        return commits[-1].chain if commits else ROOT

    def parts(self, version: int | None = None) -> dict[str, Part]:
        """The parts that a version has, by name, in the order in which they were committed."""
        there: dict[str, Part] = {}
        for commit in self._up_to(version):
            for name in commit.removed:
                del there[name]
            there.update((part.name, part) for part in commit.added)
        return there

    def every_part(self) -> Iterator[Part]:
        """The parts that any version has."""
        for commit in self._up_to(None):
            yield from commit.added

    def leftovers(self) -> list[Path]:
        """What crashed writers left in the log's folder."""
        kept = (".json", ".checkpoint.parquet", "_last_checkpoint")
        return [path for path in self.folder.glob("*") if not path.name.endswith(kept)]

    def _up_to(self, version: int | None) -> list[Commit]:
        if version is None or version >= len(self._commits):
            self._refresh()
        if version is None:
            return self._commits
        if version >= len(self._commits):
            raise ArtifactError(f"{self._table}: has no version {version}; the newest is {len(self._commits) - 1}")
        return self._commits[: version + 1]

    def _refresh(self) -> None:
        """Read and verify the commits that were made since the last look."""
        head, chain = self._head()  # first: the log only grows, and never falls behind it
        while True:
            path = self.folder / f"{len(self._commits):020d}.json"
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                break
            commit = self._verified(path, data)
            self._numbers[commit.nonce] = len(self._commits)
            self._commits.append(commit)
        if head >= len(self._commits):
            raise IntegrityError(
                f"{self.folder}: ends at version {len(self._commits) - 1} of {head}. Restore it from a backup."
            )
        if head >= 0 and self._commits[head].chain != chain:
            raise IntegrityError(f"{self.folder}: changed at or before version {head}. Restore it from a backup.")

    def _head(self) -> tuple[int, str]:
        """Version and chain that were acknowledged last."""
        if not self._table.joinpath(HEAD).exists() and not self.folder.exists():
            return -1, ROOT
        try:
            version, chain = json.loads(self._vault.read(HEAD))
        except IntegrityError:
            raise
        except ArtifactError as error:
            raise IntegrityError(f"{self._table / HEAD}: missing. Restore it from a backup.") from error
        return version, chain

    def _verified(self, path: Path, data: bytes) -> Commit:
        """One commit, held against its seal and against those before it."""
        try:
            actions = [json.loads(line) for line in data.splitlines()]
            record = next(action["commitInfo"][RECORD] for action in actions if "commitInfo" in action)
            seal = record.pop("seal")
            if not hmac.compare_digest(seal, self._seal(record)):
                raise IntegrityError(f"{path}: changed, or sealed under another key. Restore it from a backup.")
            added = tuple(Part.model_validate(part) for part in record["add"])
            agrees = _agrees(actions, record, first=not self._commits)
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as error:
            raise IntegrityError(f"{path}: damaged, or no commit of medray. Restore it from a backup.") from error
        if not agrees:
            raise IntegrityError(f"{path}: does not do what was sealed. Restore it from a backup.")
        after = record["after"]
        known = ROOT if after < 0 else self._commits[after].chain if after < len(self._commits) else None
        if record["nonce"] in self._numbers or record["chain"] != known or (after < 0) != (not self._commits):
            raise IntegrityError(f"{path}: repeated, or not where it was made. Restore it from a backup.")
        before = self._commits[-1].chain if self._commits else ROOT
        chain = hashlib.sha256(before.encode() + hashlib.sha256(data).digest()).hexdigest()
        return Commit(added, tuple(record["remove"]), record["app"], record["app_version"], record["nonce"], chain)

    # -- writing

    def start(self) -> None:
        """Write the first head, if there is none: from then on a missing one is a loss."""
        self._vault.write_once(HEAD, json.dumps([-1, ROOT]).encode())
        make_folder(self.folder)  # before deltalake does, which would let others read it

    def commit(self, add: Sequence[Part], remove: Sequence[str], app: str, app_version: int | None) -> int:
        """One transaction; see `Table.commit`."""
        from deltalake.exceptions import DeltaError

        try:
            fsync_folder(self._table)  # the names of parts and packs; their bytes are durable already
            return self._commit(add, remove, app, app_version)
        except (DeltaError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise ArtifactError(f"{self.folder}: cannot be written ({reason}). Make room, and repeat.") from error

    def _commit(self, add: Sequence[Part], remove: Sequence[str], app: str, app_version: int | None) -> int:
        from deltalake import CommitProperties, PostCommitHookProperties
        from deltalake.exceptions import CommitFailedError
        from deltalake.transaction import Transaction

        nonce = secrets.token_hex(8)
        transactions = [Transaction(app, app_version)] if app and app_version is not None else None
        for _ in range(TRIES):
            self._refresh()  # a log that was changed is to be named before deltalake stumbles over it
            delta = self._open()
            self._refresh()
            if transactions and self._seen(app) >= (app_version or 0):
                self._acknowledge(delta)  # whoever made it may have been cut off before it was durable
                return len(self._commits) - 1
            record = self._record(add, remove, app, app_version, nonce)
            try:
                delta.create_write_transaction(
                    self._actions(add, remove),
                    "append",
                    delta.schema(),
                    partition_by=[SOURCE],
                    commit_properties=CommitProperties({RECORD: record}, TRIES, transactions),
                    post_commithook_properties=PostCommitHookProperties(False, False),
                )
            except CommitFailedError:
                continue  # another writer was faster: see whether this commit still makes sense
            self._refresh()
            self._acknowledge(delta)
            return self._numbers[nonce]
        raise ArtifactError(f"{self.folder}: other writers were faster {TRIES} times. Let one process commit for all.")

    def _seen(self, app: str) -> int:
        """The newest commit of an application, by its own count; -1 where there is none."""
        return max((commit.app_version or 0 for commit in self._commits if commit.app == app), default=-1)

    def _record(
        self, add: Sequence[Part], remove: Sequence[str], app: str, app_version: int | None, nonce: str
    ) -> dict[str, Any]:
        record = {
            "add": [part.model_dump(mode="json") for part in add],
            "remove": list(remove),
            "app": app,
            "app_version": app_version,
            "nonce": nonce,
            "after": len(self._commits) - 1,
            "chain": self._commits[-1].chain if self._commits else ROOT,
        }
        return {**record, "seal": self._seal(record)}

    def _seal(self, record: dict[str, Any]) -> str:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return hmac.new(self._vault.key_for(FOLDER, make=False), text.encode(), hashlib.sha256).hexdigest()

    def _actions(self, add: Sequence[Part], remove: Sequence[str]) -> list[Any]:
        """Delta's actions for parts that come and go."""
        from deltalake.transaction import AddAction, RemoveAction

        there = self.parts() if add or remove else {}
        for name in remove:
            if name not in there:
                raise ArtifactError(f"{self._table / name}: removed by another commit. Read again, and repeat.")
        for part in add:
            if part.name in there:
                raise ArtifactError(f"{self._table / part.name}: committed before; rows may not come in twice.")
        now = int(time.time() * 1000)
        actions: list[Any] = [
            AddAction(part.name, part.size, {SOURCE: part.source}, now, True, json.dumps({"numRecords": part.rows}))
            for part in add
        ]
        for name in remove:
            actions.append(RemoveAction(name, True, now, there[name].size, {SOURCE: there[name].source}))
        return actions

    def _open(self) -> DeltaTable:
        """The log as deltalake sees it, at its newest version."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if self._delta is not None and len(self._commits) < self._opened_at + CHECKPOINT_VERSIONS:
            with contextlib.suppress(DeltaError, OSError):  # of a checkpoint that another process replaced
                self._delta.update_incremental()
                return self._delta
        if not self._commits:
            self._create()
        try:
            self._delta = DeltaTable(self._table)
        except (DeltaError, OSError):
            for path in self._checkpoints():  # nothing but a copy of the log, which a power cut may leave in pieces
                path.unlink(missing_ok=True)
            self._delta = DeltaTable(self._table)
        self._opened_at = len(self._commits)
        return self._delta

    def _create(self) -> None:
        """Version 0, made elsewhere and linked in: of two that create a table in place, deltalake lets both."""
        from deltalake import CommitProperties, DeltaTable, Schema

        with tempfile.TemporaryDirectory() as elsewhere:
            DeltaTable.create(
                elsewhere,
                Schema.from_arrow(COMMON),
                partition_by=[SOURCE],
                configuration=CONFIGURATION,
                commit_properties=CommitProperties({RECORD: self._record((), (), "", None, "")}),
            )
            name = f"{0:020d}.json"
            made_once(self.folder / name, Path(elsewhere, FOLDER, name).read_bytes())

    def _acknowledge(self, delta: DeltaTable) -> None:
        """Fsync all commits since the head, also those of others that this one builds on; move the head."""
        newest = len(self._commits) - 1
        with FileLock(self._table / "head.lock", mode=0o600):
            head, _ = self._head()
            if head >= newest:
                return
            for version in range(head + 1, newest + 1):
                fsync_file(self.folder / f"{version:020d}.json")
            fsync_folder(self.folder)
            self._vault.write(HEAD, json.dumps([newest, self._commits[newest].chain]).encode())
            if (newest + 1) // CHECKPOINT_VERSIONS > (head + 1) // CHECKPOINT_VERSIONS:
                self._checkpoint(delta)

    def _checkpoint(self, delta: DeltaTable) -> None:
        """Let deltalake start from here; a copy of the log, so that failing to write it loses nothing."""
        from deltalake.exceptions import DeltaError

        with contextlib.suppress(DeltaError, OSError):
            delta.update_incremental()
            delta.create_checkpoint()
            *old, newest, pointer = self._checkpoints()
            fsync_file(newest)
            fsync_file(pointer)
            for path in old[:-1]:  # another process may be reading the one before
                path.unlink()

    def _checkpoints(self) -> list[Path]:
        """Delta's checkpoints, oldest first, then the file that points to the newest."""
        return [*sorted(self.folder.glob("*.checkpoint.parquet")), self.folder / "_last_checkpoint"]


def _agrees(actions: list[dict[str, Any]], record: dict[str, Any], *, first: bool) -> bool:
    """Whether the actions that Delta sees are those of the sealed record."""
    seen: dict[str, list[Any]] = {}
    for action in actions:
        for kind, body in action.items():
            seen.setdefault(kind, []).append(body)
    adds = [[body["path"], body["size"], body["partitionValues"][SOURCE]] for body in seen.pop("add", [])]
    removes = [body["path"] for body in seen.pop("remove", [])]
    transactions = [[body["appId"], body["version"]] for body in seen.pop("txn", [])]
    app = [[record["app"], record["app_version"]]] if record["app"] and record["app_version"] is not None else []
    return (
        sorted(adds) == sorted([part["name"], part["size"], part["source"]] for part in record["add"])
        and sorted(removes) == sorted(record["remove"])
        and transactions == app
        and set(seen) == ({"commitInfo", "protocol", "metaData"} if first else {"commitInfo"})
    )
