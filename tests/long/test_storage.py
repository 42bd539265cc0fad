"""No acknowledged row is lost and none comes in twice, whoever is killed when; and an acknowledged row is on the disk.

Goals S1 and S5. A tenth of the counts; all of them with MEDRAY_FULL=1.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medray.artifacts.table import Table
from medray.governance.crypto import Keyring

SCRIPT = Path(__file__).with_name("storage_chaos.py")
FULL = bool(os.environ.get("MEDRAY_FULL"))
SHARE = 1.0 if FULL else 0.1
BATCH = 20

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600 if FULL else 300)]


def run(*arguments: object, under: tuple[str, ...] = ()) -> str:
    command = [*under, sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def outcome(folder: Path) -> dict[str, int]:
    """What is in the table, held against what was acknowledged."""
    table = Table(folder / "tables" / "0123456789abcdef", Keyring(folder / "keyring"))
    noted = {int(path.name): len(path.read_text().splitlines()) for path in (folder / "ledgers").iterdir()}
    acknowledged = {
        writer << 40 | batch << 20 | row for writer in noted for batch in range(noted[writer]) for row in range(BATCH)
    }
    found = Counter(table.read("labs").column("position").to_pylist())
    return {
        "commits": sum(noted.values()),
        "versions": table.version,
        "rows": sum(found.values()),
        "lost": len(acknowledged - set(found)),
        "unknown": len(set(found) - acknowledged),
        "duplicated": sum(count > 1 for count in found.values()),
        "orphans": table.purge(),
        "orphans_after_purge": table.purge(),
    }


def test_no_row_is_lost_or_doubled_while_writers_are_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("MEDRAY_SEED") or random.SystemRandom().randrange(1 << 31))
    writers, commits, kills = 16, int(200 * SHARE), int(500 * SHARE)
    print(f"seed {seed}: {writers} writers x {commits} commits, {kills} kills")  # noqa: T201
    done = json.loads(run("kill", tmp_path, writers, commits, kills, seed, 1))
    seen = json.loads((tmp_path / "seen.json").read_text())
    found = outcome(tmp_path)
    print({**done, "opens": seen["opens"], "wrong": len(seen["wrong"]), **found})  # noqa: T201
    assert done["kills"] >= kills
    assert done["at_the_worst_moment"] >= writers
    assert found["commits"] >= writers * commits
    assert (found["lost"], found["unknown"], found["duplicated"]) == (0, 0, 0)
    assert found["rows"] == found["versions"] * BATCH == found["commits"] * BATCH
    assert found["orphans_after_purge"] == 0
    assert found["orphans"] >= done["at_the_worst_moment"]  # the parts that were committed again, for nothing
    assert seen["wrong"] == []
    assert seen["opens"] >= 500 * SHARE


def test_without_the_check_of_who_commits_rows_are_doubled(tmp_path: Path) -> None:
    """The control: the same harness finds duplicates where there is nothing to prevent them."""
    done = json.loads(run("kill", tmp_path, 4, 5, 2, 1, 0))
    found = outcome(tmp_path)
    assert done["at_the_worst_moment"] >= 4
    assert found["duplicated"] >= BATCH
    assert found["lost"] == 0


def traced(strace: str, folder: Path, commits: int, fsync: int) -> list[tuple[str, str]]:
    """(what, file) in order: fsyncs when they are done, links and acknowledgements when they begin."""
    log = folder / "trace"
    run(
        "commit",
        folder,
        commits,
        fsync,
        under=(strace, "-f", "-y", "-e", "trace=fsync,link,linkat,write", "-o", str(log)),
    )
    events, waiting = [], {}
    for line in log.read_text(errors="replace").splitlines():
        process, call = line.split(maxsplit=1)
        if match := re.match(r"fsync\(\d+<(.*?)>(\)| <unfinished)", call):
            if match[2] == ")":
                events.append(("fsync", match[1]))
            else:
                waiting[process] = match[1]
        elif call.startswith("<... fsync resumed>"):
            events.append(("fsync", waiting.pop(process)))
        elif match := re.match(r'link(?:at)?\(.*"([^"]+)"(?:, \d+)?(?:\)| <unfinished)', call):
            events.append(("link", match[1]))
        elif match := re.match(r'write\(1<.*?>, "(ack \d+)', call):
            events.append(("ack", match[1]))
    return events


def in_order(events: list[tuple[str, str]], table: Path) -> int:
    """How many commits went data, folder, link, log, log's folder, acknowledgement."""
    count, begin = 0, 0
    for end, (what, which) in enumerate(events):
        if what != "ack":
            continue
        log = f"{table}/_delta_log"
        name = f"{log}/{int(which.split()[1]):020d}.json"
        wanted = [
            lambda event: event[0] == "fsync" and "/part-" in event[1],
            lambda event: event == ("fsync", str(table)),
            lambda event, name=name: event == ("link", name),
            lambda event, name=name: event == ("fsync", name),
            lambda event, log=log: event == ("fsync", log),
        ]
        steps = iter(events[begin:end])
        count += all(any(step(event) for event in steps) for step in wanted)
        begin = end + 1
    return count


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path, needs_ptrace: str) -> None:
    commits = int(200 * SHARE)
    for fsync, expected in ((1, commits), (0, 0)):  # the second is the control
        folder = tmp_path / str(fsync)
        folder.mkdir()
        events = traced(needs_ptrace, folder, commits, fsync)
        assert sum(what == "ack" for what, _ in events) == commits
        assert in_order(events, folder / "tables" / "0123456789abcdef") == expected
