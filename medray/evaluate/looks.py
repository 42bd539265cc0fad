"""Looks: how often a held-out split was evaluated. Each look that led to a change flatters the next figure.

A look is a report: the same one made again, or finished after it was cut off, is no new look.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from medray.artifacts import Workspace
from medray.artifacts.durable import write_bytes
from medray.errors import IntegrityError


def earlier_looks(workspace: Workspace, table: str, split: str, report: str) -> int:
    """Note that a report looks at a split of a table, durably; gives how many others looked before it did first.

    Args:
        workspace: which keeps count.
        table: digest, the same for all versions of the table.
        split: that is looked at.
        report: digest.

    Raises:
        IntegrityError: the count was damaged.
    """
    path = workspace.root / "looks" / f"{table}-{split}.json"
    with workspace.lock(f"looks-{table}-{split}"):
        try:
            looks = json.loads(path.read_bytes()) if path.exists() else []
            known = [look["report"] for look in looks]
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(
                f"{path}: damaged. Restore it from a backup: it counts looks at held-out data."
            ) from error
        if report not in known:
            looks.append({"report": report, "time": datetime.now(UTC).isoformat(timespec="seconds")})
            write_bytes(path, json.dumps(looks, indent=1).encode())
            known.append(report)
        return known.index(report)
