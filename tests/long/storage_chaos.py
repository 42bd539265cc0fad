"""Writers that commit to one table while they are killed, and a reader that looks on: run by test_storage.py.

    storage_chaos.py kill FOLDER WRITERS COMMITS KILLS SEED CHECKED     prints one JSON object
    storage_chaos.py commit FOLDER COMMITS FSYNC                        prints "ack N" after each commit

A writer notes each acknowledged batch in a ledger of its own, durably, and goes on from there when it is started again.
The batch that it was killed at is the hard one: it may be committed and not noted, and is then committed again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from medray.artifacts.table import Description, Table
from medray.governance.crypto import Keyring

BATCH = 20  # rows
KILL_EVERY_S = 1.0


def table_in(folder: Path) -> Table:
    return Table(folder / "tables" / "0123456789abcdef", Keyring(folder / "keyring"))


def rows_of(writer: int, batch: int) -> pa.Table:
    positions = [writer << 40 | batch << 20 | row for row in range(BATCH)]
    return pa.table({"position": positions, "subject_id": [f"{position:032x}" for position in positions]})


def write(folder: Path, writer: int, commits: int, checked: bool, seed: int) -> None:
    """Commit batches until there are `commits`, and for as long as more kills are to come."""
    table, ledger = table_in(folder), folder / "ledgers" / str(writer)
    # besides those at any moment, some kills hit the moment that matters most: committed, and not yet noted
    fatal = set(random.Random(f"{seed} {writer}").sample(range(commits), max(1, commits // 10)))
    with ledger.open("a") as noted:
        batch = len(ledger.read_text().splitlines())
        while True:  # a batch that was cut off is tried again even if there are enough
            part = table.write_part("labs", rows_of(writer, batch))
            if checked:
                table.commit([part], app=f"writer-{writer}", app_version=batch)
            else:
                table.commit([part])
            died = folder / "died" / f"{writer}-{batch}"
            if batch in fatal and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            noted.write(f"{batch}\n")
            noted.flush()
            os.fsync(noted.fileno())
            batch += 1
            if batch >= commits and (folder / "enough").exists():
                return


def look(folder: Path) -> None:
    """Open the table again and again, as medray and as any Delta reader; note what is wrong."""
    seen = {"opens": 0, "wrong": [], "version": -1}
    while not (folder / "over").exists():
        try:
            table = table_in(folder)
            version = table.version
            rows = sum(part.rows for part in table.at(version).parts())
            if seen["opens"] % 5 == 0 and version >= 0 and DeltaTable(table.folder).version() < version:
                seen["wrong"].append(f"deltalake is behind version {version}")
        except Exception as error:  # noqa: BLE001  # whatever it is, the table could not be opened
            seen["wrong"].append(f"{type(error).__name__}: {error}")
            continue
        if rows != max(version, 0) * BATCH or version < seen["version"]:
            seen["wrong"].append(f"version {version} after {seen['version']} has {rows} rows")
        seen["version"], seen["opens"] = version, seen["opens"] + 1
    (folder / "seen.json").write_text(json.dumps(seen))


def kill(folder: Path, writers: int, commits: int, kills: int, seed: int, checked: bool) -> None:
    for name in ("ledgers", "died"):
        (folder / name).mkdir()
    table_in(folder).create(Description(num_buckets=1, columns={}))
    fork = multiprocessing.get_context("fork")  # the imports above, once: a killed writer is back in milliseconds
    draw, killed, started = random.Random(seed), 0, time.monotonic()

    def start(work: Callable[..., None], *arguments: object) -> BaseProcess:
        process = fork.Process(target=work, args=(folder, *arguments))
        process.start()
        return process

    running = {writer: start(write, writer, commits, checked, seed) for writer in range(writers)}
    reader = start(look)
    due = started + KILL_EVERY_S
    try:
        while running:
            for writer, process in list(running.items()):
                process.join(0)
                if process.exitcode == -signal.SIGKILL:
                    running[writer] = start(write, writer, commits, checked, seed)
                elif process.exitcode is not None:
                    assert process.exitcode == 0, f"writer {writer} ended with {process.exitcode}"
                    del running[writer]
            if killed >= kills:
                (folder / "enough").touch()
            if running and time.monotonic() > due:
                due += KILL_EVERY_S
                victim = running[draw.choice(sorted(running))]
                killed += victim.is_alive()
                victim.kill()
            time.sleep(0.01)
    finally:
        for process in running.values():
            process.kill()
        (folder / "over").touch()
        reader.join()
    died, seconds = len(list((folder / "died").iterdir())), round(time.monotonic() - started, 1)
    said = {"kills": killed, "at_the_worst_moment": died, "seconds": seconds}
    os.write(1, json.dumps(said).encode())


def commit(folder: Path, commits: int, fsync: bool) -> None:
    if not fsync:
        os.fsync = lambda _: None  # the control: all else as ever
    table = table_in(folder)
    table.create(Description(num_buckets=1, columns={}))
    for batch in range(commits):
        version = table.commit([table.write_part("labs", rows_of(0, batch))], app="writer", app_version=batch)
        os.write(1, f"ack {version}\n".encode())


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    if what == "kill":
        *counts, is_checked = map(int, numbers)
        kill(Path(where), *counts, checked=bool(is_checked))
    else:
        commit(Path(where), int(numbers[0]), bool(int(numbers[1])))
