"""Audit: who asked for what and what came of it, in a chain of lines that cannot be changed unseen.

One JSON line an event, never its content: no input, no score, no file name. Each line ends in an HMAC over the line and
the HMAC before it, so that a changed, dropped, moved or inserted line breaks the chain. A cut end shows against
`head.json`, and against `head()` as noted elsewhere: whoever can write here can put back an older log with its head.

Order of an append: line, fsync, head. A kill in between leaves a head that is one event behind, which is no fault; an
event that was acknowledged is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medray.errors import IntegrityError, ServiceError

LOG, HEAD = "audit.jsonl", "head.json"
MAX_LINE = 16 << 10  # bytes; an event has a few hundred
START = b"medray audit 1"
MAC = b',"mac":"'

Outcome = Literal["allowed", "denied", "failed"]


@dataclass(frozen=True)
class Event:
    """One request.

    Attributes:
        principal: its name, or "unknown".
        action: the route, as the service names it.
        outcome: answered, not permitted, or not answered.
        reason: why, in the service's own words.
        resource: what was asked, such as a model version.
        request: the id that the answer carries.
        inputs: the modalities that were sent.
    """

    principal: str
    action: str
    outcome: Outcome
    reason: str
    resource: str = ""
    request: str = ""
    inputs: tuple[str, ...] = ()


class Audit:
    """The log of one workspace; several processes may write to it, also over NFS 4, which passes flock on.

    Args:
        folder: made 0700.
        key: 32 bytes, for nothing else.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder, self._key = folder, key
        self._threads = threading.Lock()  # flock excludes processes, not the threads that share its descriptor

    def record(self, event: Event) -> None:
        """Append one event; it is on disk when this returns.

        Raises:
            ServiceError: it cannot be written. Whoever gets this must not do, or answer, what was asked.
            IntegrityError: the log's end was cut or changed.
        """
        with self._locked() as (log, head):
            self._append(log, head, event)

    def check(self) -> None:
        """Whether an event could be written now.

        Raises:
            ServiceError, IntegrityError: as `record`.
        """
        with self._locked() as (log, head):
            self._tail(log, head)
            room = os.fstatvfs(log)
        if room.f_bavail * room.f_frsize < MAX_LINE:
            raise ServiceError(f"{self.folder}: no space is left for the audit log")

    def events(self) -> Iterator[dict[str, Any]]:
        """All events as written, in order, not verified."""
        if (self.folder / LOG).exists():
            with (self.folder / LOG).open("rb") as log:
                yield from (json.loads(line) for line in log if line.endswith(b"\n"))

    def head(self) -> str:
        """`<number>:<mac>` of the last event. Kept elsewhere, it shows later whether the log was cut or put back."""
        with self._locked() as (log, head):
            number, mac = self._tail(log, head)
        return f"{number}:{mac.hex()}"

    def verify(self, head: str = "") -> int:
        """The number of events, every one of them as it was written.

        Args:
            head: what `head()` gave at some time, as kept elsewhere.

        Raises:
            IntegrityError: names the first event that is not as it was written, or says that the end is missing.
        """
        due = dict([_parsed(head)]) if head else {}  # number -> MAC
        with self._locked() as (log_file, head_file):
            at, mac_at = self._head(head_file)
            found: dict[int, bytes] = {0: self._mac(b"", START)}
            number, mac = 0, found[0]
            with os.fdopen(os.dup(log_file), "rb") as log:
                log.seek(0)
                for line in log:
                    if not line.endswith(b"\n"):  # what a kill left, never acknowledged
                        break
                    number += 1
                    body, _, rest = line.rpartition(MAC)
                    mac = self._mac(mac, body)
                    if rest != f'{mac.hex()}"}}\n'.encode():
                        raise IntegrityError(f"{self.folder / LOG}: event {number} is not as it was written")
                    if number == at or number in due:
                        found[number] = mac
        for wanted, expected in [(at, mac_at), *due.items()]:
            if found.get(wanted) != expected or (at == 0 and number > 1):
                raise IntegrityError(
                    f"{self.folder / LOG}: {number} events, but event {wanted} of the head is missing or another one: "
                    "the log was cut or put back"
                )
        return number

    def _append(self, log: int, head: int, event: Event) -> None:
        number, mac = self._tail(log, head)
        written = {"n": number + 1, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(event)}
        body = json.dumps(written, separators=(",", ":")).encode()[:-1]
        mac = self._mac(mac, body)
        line = body + MAC + mac.hex().encode() + b'"}\n'
        if len(line) > MAX_LINE:
            raise ServiceError(f"an audit event of {len(line):,} bytes is over {MAX_LINE:,}")
        size = os.lseek(log, 0, os.SEEK_END)
        try:
            if os.write(log, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(log)
        except OSError:
            os.ftruncate(log, size)
            raise
        # in place, of one length, within one sector: never torn, never empty; without fsync it can only be older, which
        # is still a bound
        os.pwrite(head, json.dumps({"head": f"{number + 1}:{mac.hex()}"}).ljust(127).encode() + b"\n", 0)
        if number == 0:
            os.fsync(head)

    def _tail(self, log: int, head: int) -> tuple[int, bytes]:
        """Number and MAC of the last event, after what a kill left of a line was cut off; it was never acknowledged."""
        size = os.lseek(log, 0, os.SEEK_END)
        end = os.pread(log, 2 * MAX_LINE, max(0, size - 2 * MAX_LINE))
        whole, _, torn = end.rpartition(b"\n")
        if torn:
            os.ftruncate(log, size - len(torn))
        at, mac_at = self._head(head)
        last = whole.rpartition(b"\n")[2]
        number, mac = 0, self._mac(b"", START)
        if last:
            try:
                event = json.loads(last)
                number, mac = int(event["n"]), bytes.fromhex(event["mac"])
            except (ValueError, KeyError, TypeError) as error:
                raise IntegrityError(f"{self.folder / LOG}: the last event is not as it was written") from error
        # the first event is on disk a moment before its head
        if number < at or (number == at and not hmac.compare_digest(mac, mac_at)) or (at == 0 and number > 1):
            raise IntegrityError(
                f"{self.folder / LOG}: ends at event {number}, its head says {at}: the log was cut or changed. "
                "Keep the folder as evidence: move it away, and a new log is begun."
            )
        return number, mac

    def _head(self, head: int) -> tuple[int, bytes]:
        text = os.pread(head, 512, 0).decode(errors="replace").strip()
        if not text:
            return 0, self._mac(b"", START)
        try:
            return _parsed(json.loads(text)["head"])
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{self.folder / HEAD}: not as it was written") from error

    def _mac(self, before: bytes, body: bytes) -> bytes:
        return hmac.digest(self._key, before + body, hashlib.sha256)

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """Descriptors of log and head, for one at a time."""
        with self._threads, ExitStack() as opened:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                fresh = not (self.folder / LOG).exists()
                log = os.open(self.folder / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, log)
                fcntl.flock(log, fcntl.LOCK_EX)  # let go by the close
                head = os.open(self.folder / HEAD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, head)
                if fresh:
                    folder = os.open(self.folder, os.O_RDONLY)
                    opened.callback(os.close, folder)
                    os.fsync(folder)
                yield log, head
            except OSError as error:
                raise ServiceError(f"{self.folder}: the audit log cannot be written ({error.strerror})") from error


def _parsed(head: str) -> tuple[int, bytes]:
    number, _, mac = head.partition(":")
    return int(number), bytes.fromhex(mac)
