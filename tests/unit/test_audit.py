"""The audit log: one event each, no content, no change unseen, nothing acknowledged is lost."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medray.errors import IntegrityError, ServiceError
from medray.governance.audit import HEAD, LOG, MAX_LINE, Audit, Event

KEY = bytes(range(32))


def event(number: int = 0, **changes: str) -> Event:
    given = {"principal": "owner", "action": "POST /v1/models/{name}/predict", "outcome": "allowed", "reason": "ok"}
    return Event(**(given | {"request": f"{number:032x}"} | changes))  # type: ignore[arg-type]


def audit_of(folder: Path, events: int = 0) -> Audit:
    audit = Audit(folder / "audit", KEY)
    for number in range(events):
        audit.record(event(number))
    return audit


def test_events_are_kept_in_order_and_verify(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 5)
    assert [(e["n"], e["request"]) for e in audit.events()] == [(n + 1, f"{n:032x}") for n in range(5)]
    assert audit.verify() == 5
    assert Audit(audit.folder, KEY).verify(audit.head()) == 5


def test_only_the_owner_can_read_the_log(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 1)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (audit.folder, *audit.folder.iterdir())}
    assert modes == {"audit": 0o700, LOG: 0o600, HEAD: 0o600}


def changed(lines: list[bytes], at: int, draw: random.Random) -> list[bytes]:
    line = bytearray(lines[at])
    line[draw.randrange(len(line) - 1)] ^= 1 << draw.randrange(7)
    return [*lines[:at], bytes(line), *lines[at + 1 :]]


TAMPERS: dict[str, Callable[[list[bytes], int, random.Random], list[bytes]]] = {
    "change": changed,
    "drop": lambda lines, at, _: lines[:at] + lines[at + 1 :],
    "insert": lambda lines, at, draw: [*lines[:at], draw.choice(lines), *lines[at:]],
    "swap": lambda lines, at, _: [*lines[:at], lines[(at + 1) % len(lines)], lines[at], *lines[at + 2 :]],
    "cut the end": lambda lines, at, _: lines[:at],
    "cut a line": lambda lines, at, draw: [*lines[:at], lines[at][: draw.randrange(1, len(lines[at]) - 1)]],
}


@pytest.mark.parametrize("kind", TAMPERS)
def test_every_change_is_found(tmp_path: Path, kind: str) -> None:
    audit, draw = audit_of(tmp_path, 12), random.Random(7)
    log = audit.folder / LOG
    whole = log.read_bytes()
    for _ in range(30):
        lines = TAMPERS[kind](whole.splitlines(keepends=True), draw.randrange(12), draw)
        log.write_bytes(b"".join(lines))
        with pytest.raises(IntegrityError):
            audit.verify()
    log.write_bytes(whole)
    assert audit.verify() == 12


def test_a_log_made_with_another_key_is_refused(tmp_path: Path) -> None:
    audit_of(tmp_path, 3)
    with pytest.raises(IntegrityError, match="event 1 is not as it was written"):
        Audit(tmp_path / "audit", bytes(32)).verify()


def test_an_older_log_with_its_older_head_shows_against_a_head_kept_elsewhere(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 4)
    older = {path.name: path.read_bytes() for path in audit.folder.iterdir()}
    audit.record(event(4))
    noted = audit.head()
    for name, content in older.items():
        (audit.folder / name).write_bytes(content)
    assert audit.verify() == 4  # by itself it cannot know
    with pytest.raises(IntegrityError, match="cut or put back"):
        audit.verify(noted)


@pytest.mark.parametrize("lost", ["last event", "whole log", "head"])
def test_nothing_is_appended_to_a_log_that_was_cut(tmp_path: Path, lost: str) -> None:
    audit = audit_of(tmp_path, 3)
    log = audit.folder / LOG
    if lost == "last event":
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    else:
        (log if lost == "whole log" else audit.folder / HEAD).unlink()
    for refused in (audit.verify, audit.check, lambda: audit.record(event())):
        with pytest.raises(IntegrityError, match="cut"):
            refused()


def test_what_a_kill_left_of_a_line_is_no_event_and_no_fault(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 2)
    with (audit.folder / LOG).open("ab") as log:
        log.write(b'{"n":3,"time":"20')
    assert audit.verify() == 2
    audit.record(event(2))
    assert audit.verify() == 3


def test_threads_share_one_log(tmp_path: Path) -> None:
    audit = audit_of(tmp_path)
    threads = [threading.Thread(target=lambda: [audit.record(event()) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify() == 80


WRITER = """
import sys
from pathlib import Path
from medray.governance.audit import Audit, Event
audit = Audit(Path(sys.argv[1]), bytes(range(32)))
for number in range(10**9):
    audit.record(Event("owner", "predict", "allowed", "ok", request=f"{sys.argv[2]}-{number}"))
    print(f"{sys.argv[2]}-{number}", flush=True)
"""


def test_killed_writers_lose_no_event_that_they_acknowledged(tmp_path: Path) -> None:
    folder, acknowledged, draw = tmp_path / "audit", set(), random.Random(3)
    for round_number in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(folder), f"{round_number}-{n}"], stdout=subprocess.PIPE)
            for n in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().decode().strip())  # it has begun
        time.sleep(draw.uniform(0.05, 0.3))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            out, _ = writer.communicate(timeout=30)
            acknowledged |= set(out.decode().split("\n")[:-1]) - {""}
    audit = Audit(folder, KEY)
    assert audit.verify() >= len(acknowledged) > 20
    kept = [e["request"] for e in audit.events()]
    assert len(kept) == len(set(kept))
    assert acknowledged <= set(kept)


def test_a_full_disk_is_one_clear_error_and_no_half_event(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 1)
    size = (audit.folder / LOG).stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
        with pytest.raises(ServiceError, match="audit log cannot be written"):
            audit.record(event(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (audit.folder / LOG).stat().st_size == size
    audit.record(event(1))
    assert audit.verify() == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no program: /dev/full is not there")
def test_a_log_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / LOG).symlink_to("/dev/full")
    with pytest.raises(ServiceError, match="audit log cannot be written"):
        Audit(tmp_path / "audit", KEY).record(event())
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="audit log cannot be written"):
        Audit(tmp_path / "file", KEY).check()


def test_an_event_is_small_and_has_a_fixed_set_of_fields(tmp_path: Path) -> None:
    audit = audit_of(tmp_path, 1)
    (line,) = (audit.folder / LOG).read_text().splitlines()
    names = {"n", "time", "principal", "action", "outcome", "reason", "resource", "request", "inputs", "mac"}
    assert set(json.loads(line)) == names
    with pytest.raises(ServiceError, match="over"):
        audit.record(event(1, reason="x" * MAX_LINE))
    assert audit.verify() == 1
    assert {path.name for path in audit.folder.iterdir()} == {LOG, HEAD}
