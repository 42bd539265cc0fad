"""Log: what is in a table, as a Delta Lake log whose commits are sealed and chained.

Delta arbitrates between writers: each version is one file, made by a link that only one of them gets. deltalake writes
it, but fsyncs nothing and authenticates nothing, so each commit here
 - is made durable before it is acknowledged: fsync(data), fsync(folder), link, fsync(log file), fsync(log folder);
 - carries a record of what it adds and removes, and of the log up to the version it was made on, under an HMAC of the
   table's key: a commit that was changed, added, dropped, repeated or moved does not verify;
 - moves the sealed head, so that a log that was cut at its end does not verify either.
Statistics are the number of rows and nothing else: Delta's own would hold the first and last value in clear.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import ValidationError

from medray.artifacts.durable import fsync_file, fsync_folder
from medray.artifacts.table.parts import COMMON, Part
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.schema import SOURCE

if TYPE_CHECKING:
    from deltalake import DeltaTable

FOLDER = "_delta_log"
HEAD = "head"
RECORD = "medray"  # the field of a commit's metadata that holds our record
ROOT = "0" * 64  # the chain before the first version
RETRIES = 100  # of one commit against others that are made at the same time; Delta's default is 15


@dataclass(frozen=True)
class Commit:
    """One version: what it added and removed, and the digest of the log up to it."""

    added: tuple[Part, ...]
    removed: tuple[str, ...]
    nonce: str
    chain: str


class Log:
    """A table's log, verified as it is read; what was verified once is kept in memory."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self.folder = folder / FOLDER
        self._table = folder
        self._vault = vault
        self._commits: list[Commit] = []
        self._delta: DeltaTable | None = None

    def version(self) -> int:
        """The newest version; -1 where there is none."""
        self._refresh()
        return len(self._commits) - 1

    def chain(self, version: int | None = None) -> str:
        """The digest of all commits up to a version."""
        commits = self._up_to(version)
        return commits[-1].chain if commits else ROOT

    def parts(self, version: int | None = None) -> list[Part]:
        """The parts that a version has, in the order in which they were committed."""
        there: dict[str, Part] = {}
        for commit in self._up_to(version):
            for name in commit.removed:
                there.pop(name)
            there.update((part.name, part) for part in commit.added)
        return list(there.values())

    def every_part(self) -> Iterator[Part]:
        """The parts that any version has."""
        for commit in self._up_to(None):
            yield from commit.added

    def leftovers(self) -> list[Path]:
        """What crashed writers left in the log's folder."""
        return [path for path in self.folder.glob("*") if not path.name.endswith(".json")] if self._commits else []

    def commit(self, add: Sequence[Part], remove: Sequence[str], app: str, app_version: int | None) -> int:
        """One transaction; see `Table.commit`."""
        from deltalake import CommitProperties, PostCommitHookProperties, Transaction
        from deltalake.exceptions import CommitFailedError, DeltaError
        from deltalake.transaction import AddAction, RemoveAction

        now = int(time.time() * 1000)
        fsync_folder(self._table)  # the names of the data files
        nonce = secrets.token_hex(8)
        while True:
            delta = self._open()
            self._refresh()
            seen = delta.transaction_version(app) if app and app_version is not None else None
            if seen is not None and app_version is not None and seen >= app_version:
                self._make_durable()  # the first try may have been cut off before its own fsync
                return len(self._commits) - 1
            there = {part.name: part for part in self.parts()}
            missing = [name for name in remove if name not in there]
            if missing:
                raise ArtifactError(f"{self._table}: another commit removed {missing[0]}. Read again, and repeat.")
            record = self._sealed(
                {
                    "add": [part.model_dump(mode="json") for part in add],
                    "remove": list(remove),
                    "app": app,
                    "app_version": app_version,
                    "nonce": nonce,
                    "after": len(self._commits) - 1,
                    "chain": self.chain(),
                }
            )
            actions: list[Any] = [
                AddAction(part.name, part.size, {SOURCE: part.source}, now, True, json.dumps({"numRecords": part.rows}))
                for part in add
            ]
            actions += [
                RemoveAction(name, True, now, there[name].size, {SOURCE: there[name].source}) for name in remove
            ]
            transactions = [Transaction(app, app_version)] if app and app_version is not None else None
            try:
                delta.create_write_transaction(
                    actions,
                    "append",
                    delta.schema(),
                    partition_by=[SOURCE],
                    commit_properties=CommitProperties({RECORD: record}, RETRIES, transactions),
                    post_commithook_properties=PostCommitHookProperties(False, False),
                )
            except CommitFailedError:
                continue  # another writer was faster: look again whether this commit still makes sense
            except DeltaError as error:
                raise ArtifactError(f"{self._table}: the commit failed ({type(error).__name__})") from error
            self._refresh()
            self._make_durable()
            return next(version for version, commit in enumerate(self._commits) if commit.nonce == nonce)

    # -- making

    def _open(self) -> DeltaTable:
        """The log as deltalake sees it, at its newest version."""
        from deltalake import CommitProperties, DeltaTable, Schema
        from deltalake.exceptions import DeltaError

        if self._delta is None:
            if not (self.folder / f"{0:020d}.json").exists():
                record = self._sealed({"add": [], "remove": [], "app": "", "app_version": None, "nonce": "",
                                       "after": -1, "chain": ROOT})  # fmt: skip
                with contextlib.suppress(DeltaError):  # another writer created it
                    DeltaTable.create(
                        self._table,
                        Schema.from_arrow(COMMON),
                        "error",
                        [SOURCE],
                        configuration={
                            "delta.dataSkippingNumIndexedCols": "0",
                            "delta.enableExpiredLogCleanup": "false",
                        },
                        commit_properties=CommitProperties({RECORD: record}),
                    )
            self._delta = DeltaTable(self._table)
        else:
            self._delta.update_incremental()
        return self._delta

    def _make_durable(self) -> None:
        """Fsync all commits since the head, also those of other writers that this one builds on; move the head."""
        newest = len(self._commits) - 1
        with FileLock(self._table / ".head.lock", mode=0o600):
            head = self._head()
            if head is not None and head[0] >= newest:
                return
            for version in range(0 if head is None else head[0] + 1, newest + 1):
                fsync_file(self.folder / f"{version:020d}.json")
            fsync_folder(self.folder)
            if head is None:
                fsync_folder(self._table)
            self._vault.write(HEAD, json.dumps([newest, self.chain()]).encode())

    def _sealed(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "seal": self._seal(record)}

    def _seal(self, record: dict[str, Any]) -> str:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return hmac.new(self._vault.key_for(FOLDER), text.encode(), hashlib.sha256).hexdigest()

    # -- reading

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
        head = self._head()
        while True:
            path = self.folder / f"{len(self._commits):020d}.json"
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                break
            self._commits.append(self._verified(path, data))
        if head is not None and (
            head[0] >= len(self._commits) or (head[0] >= 0 and self._commits[head[0]].chain != head[1])
        ):
            raise IntegrityError(f"{self.folder}: commits are missing at its end. Restore it from a backup.")

    def _head(self) -> tuple[int, str] | None:
        if not (self._table / HEAD).exists():
            return None
        version, chain = json.loads(self._vault.read(HEAD))
        return version, chain

    def _verified(self, path: Path, data: bytes) -> Commit:
        """One commit, held against its seal and against those before it."""
        before = self._commits[-1].chain if self._commits else ROOT
        try:
            actions = [json.loads(line) for line in data.splitlines()]
            record = next(action["commitInfo"][RECORD] for action in actions if "commitInfo" in action)
            seal = record.pop("seal")
            added = tuple(Part.model_validate(part) for part in record["add"])
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as error:
            raise IntegrityError(f"{path}: damaged, or no commit of medray. Restore it from a backup.") from error
        if not hmac.compare_digest(seal, self._seal(record)):
            raise IntegrityError(f"{path}: changed, or sealed under another key. Restore it from a backup.")
        after = record["after"]
        known = ROOT if after < 0 else self._commits[after].chain if after < len(self._commits) else None
        if known != record["chain"] or any(commit.nonce == record["nonce"] for commit in self._commits):
            raise IntegrityError(f"{path}: repeated, or not where it was made. Restore it from a backup.")
        if not _says(actions, record, first=not self._commits):
            raise IntegrityError(f"{path}: does not do what was sealed. Restore it from a backup.")
        chain = hashlib.sha256(f"{before}{hashlib.sha256(data).hexdigest()}".encode()).hexdigest()
        return Commit(added, tuple(record["remove"]), record["nonce"], chain)


def _says(actions: list[dict[str, Any]], record: dict[str, Any], *, first: bool) -> bool:
    """Whether the actions that Delta sees are those of the sealed record."""
    seen: dict[str, list[Any]] = {}
    for action in actions:
        for kind, body in action.items():
            seen.setdefault(kind, []).append(body)
    if set(seen) - {"commitInfo", "add", "remove", "txn"} - ({"protocol", "metaData"} if first else set()):
        return False
    adds = [[body["path"], body["size"], body["partitionValues"].get(SOURCE)] for body in seen.get("add", [])]
    transactions = [[body["appId"], body["version"]] for body in seen.get("txn", [])]
    app = [[record["app"], record["app_version"]]] if record["app"] and record["app_version"] is not None else []
    return (
        sorted(adds) == sorted([part["name"], part["size"], part["source"]] for part in record["add"])
        and sorted(body["path"] for body in seen.get("remove", [])) == sorted(record["remove"])
        and transactions == app
    )
