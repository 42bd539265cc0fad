"""Write `requirements.lock` from `pyproject.toml`: every distribution of `.[all,dev]`, pinned exactly.

Plain pip resolves; the pins of the lock at hand are kept where they still fit. Delete the lock first to take the newest
of everything. The digest in the lock's header is of the dependencies as normalized here; a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = """\
# Every distribution of medray[all,dev], made by `make lock` from pyproject.toml. Do not edit.
# sha256 of the dependencies in pyproject.toml: {digest}
"""


def dependencies(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, list[str]]:
    """The requirements of the package (under the empty name) and of its extras, each in one spelling, sorted."""
    project: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: sorted(_normal(item) for item in items) for name, items in sorted(groups.items())}


def _normal(text: str) -> str:
    item = Requirement(text)
    extras = f"[{','.join(sorted(item.extras))}]" if item.extras else ""
    marker = f"; {item.marker}" if item.marker else ""
    return f"{canonicalize_name(item.name)}{extras}{item.specifier}{marker}"


def digest(groups: dict[str, list[str]]) -> str:
    """The sha256 of the dependencies."""
    return hashlib.sha256(json.dumps(groups, sort_keys=True).encode()).hexdigest()


def pins(lock: Path = LOCK) -> dict[str, Version]:
    """The lock's versions by normalized name."""
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {str(canonicalize_name(name)): Version(version) for name, version in (line.split("==") for line in lines)}


def resolve() -> dict[str, str]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report)]
        if LOCK.is_file():
            command += ["--constraint", str(LOCK)]
        wanted = {item for items in dependencies().values() for item in items}
        command += sorted(item for item in wanted if not item.startswith("medray["))
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    # "2.13.0+cpu" is where this machine found its build; elsewhere it is another
    return {str(canonicalize_name(i["metadata"]["name"])): Version(i["metadata"]["version"]).public for i in found}


if __name__ == "__main__":
    chosen = resolve()
    body = "".join(f"{name}=={version}\n" for name, version in sorted(chosen.items()))
    LOCK.write_text(HEADER.format(digest=digest(dependencies())) + body, encoding="utf-8")
    print(f"{LOCK.name}: {len(chosen)} distributions")
