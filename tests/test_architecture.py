"""The house of medray, held by tests: what import-linter cannot say. The layers themselves are in `pyproject.toml`."""

from __future__ import annotations

import ast
import functools
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medray"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# Each Ray library has its owners; a verb may be a file or a folder of its name.
OWNERS = {
    "ray.train": {"train"},
    "ray.tune": {"tune"},
    "ray.serve": {"serve"},
    "ray.data": {"ingest", "batches", "predict"},
}
RAY_ITSELF = {"runtime", "submit"}.union(*OWNERS.values())

# Imported inside the functions that need them: a kind is unpickled in every worker process, and `import medray.study`
# reaches every kind that a study names.
HEAVY = {"captum", "deltalake", "gdcm", "matplotlib", "optuna", "pydicom", "ray", "scipy", "sklearn", "torch", "wfdb"}
LIGHT = (
    *("readers/", "modalities/", "transforms/", "models/", "explainers/", "governance/"),
    *("schema.py", "errors.py", "limits.py", "plugins.py", "study.py", "study/", "cli.py", "cli/", "__init__.py"),
)

# The identified person has a name here only.
IDENTIFIED = ("readers/", "ingest.py", "ingest/", "governance/deidentify.py")

VERBS = {"ingest", "train", "tune", "predict", "evaluate", "serve", "federate", "plan"}
VERBS |= {"check", "init", "doctor", "submit", "query", "demo", "pipeline"}
COMMANDS = {"pipeline": "run"}  # the one verb whose file is not called as its command

# Formats that run code when they are opened.
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """Dotted names that one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those in functions, nor under `if TYPE_CHECKING`."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from at_import(node.orelse)
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def identifiers(module: ast.Module) -> Iterator[str]:
    """Names in code; not strings, comments or docstrings."""
    for node in ast.walk(module):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def at(name: str, node: ast.AST) -> str:
    return f"{name}:{getattr(node, 'lineno', 0)}"


def verb_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def test_each_ray_library_has_its_owners() -> None:
    wrong = []
    for name in SOURCES:
        for node in ast.walk(tree(name)):
            reached = [ast.unparse(node)] if isinstance(node, ast.Attribute) else imported(node)
            for dotted in reached:
                library = ".".join(dotted.split(".")[:2])
                owners = OWNERS.get(library, RAY_ITSELF)
                if dotted.split(".")[0] == "ray" and verb_of(name) not in owners:
                    wrong.append(f"{at(name, node)} reaches {dotted}; that is for {', '.join(sorted(owners))}")
    assert not wrong


def test_no_file_is_over_400_lines() -> None:
    folders = [PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "docs", "jobs", ".ci"))]
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for folder in folders for p in folder.rglob("*.py")}
    assert len(lengths) > len(SOURCES)
    assert not [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > 400]


def test_kinds_import_nothing_heavy_until_they_are_used() -> None:
    wrong = []
    for name in SOURCES:
        if not name.startswith(LIGHT) or re.search(r"/_[a-z]", name):  # a network's own file is imported by its kind
            continue
        for node in at_import(tree(name).body):
            heavy = {dotted.split(".")[0] for dotted in imported(node)} & HEAVY
            if heavy:
                wrong.append(f"{at(name, node)} imports {', '.join(heavy)}")
    assert not wrong


def test_only_imports_within_functions_count_as_late() -> None:
    module = ast.parse(
        "if TYPE_CHECKING:\n import a\nelse:\n import b\ntry:\n import c\nexcept E:\n import d\n"
        "class K:\n import e\n def f(self):\n  import g\n"
    )
    assert [dotted for node in at_import(module.body) for dotted in imported(node)] == ["b", "c", "d", "e"]


def test_only_readers_ingest_and_deidentify_speak_of_patients() -> None:
    wrong = {
        f"{name}: {word}"
        for name in SOURCES
        if not name.startswith(IDENTIFIED)
        for word in identifiers(tree(name))
        if re.search(r"patient(?!ly)", word, re.IGNORECASE)
    }
    assert not wrong


def test_a_patient_is_known_when_seen() -> None:
    module = ast.parse("def f(patient_id):\n 'patient'\n x = f'{row.PatientID}'\n return patience")
    assert [word for word in identifiers(module) if "patient" in word.lower()] == ["patient_id", "PatientID"]


def test_a_helper_lives_in_the_noun_it_is_about() -> None:
    stems = {part.removesuffix(".py").strip("_") for name in SOURCES for part in name.split("/")}
    assert not stems & {"utils", "util", "core", "common", "helpers", "helper", "base", "misc", "tools"}


def test_nothing_is_opened_that_can_run_code() -> None:
    wrong = []
    for name in SOURCES:
        for node in ast.walk(tree(name)):
            if {dotted.split(".")[0] for dotted in imported(node)} & RUNS_CODE:
                wrong.append(f"{at(name, node)} imports {', '.join(imported(node))}")
            if isinstance(node, ast.keyword) and ast.unparse(node) in {"weights_only=False", "allow_pickle=True"}:
                wrong.append(f"{at(name, node)} {ast.unparse(node)}")
    assert not wrong


def verbs_here() -> list[str]:
    return sorted({verb_of(name) for name in SOURCES} & VERBS)


def python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def medray_help() -> tuple[str, float]:
    """What `medray --help` prints, and its CPU seconds: wall time would measure who else is on the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = python("-m", "medray", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return shown, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def commands() -> set[str]:
    return set(re.findall(r"^\W*([a-z]+)\s{2,}\w", medray_help()[0], re.MULTILINE))


@pytest.mark.parametrize("verb", verbs_here())
def test_a_verb_has_a_command_a_page_and_a_test(verb: str, commands: set[str]) -> None:
    command = COMMANDS.get(verb, verb)
    assert command in commands
    assert list((ROOT / "docs").rglob(f"{command}.md")), f"docs/ has no page {command}.md"
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert tests & {f"test_{verb}", f"test_{command}"}, f"tests/ has no test_{command}.py"


def test_help_is_there_in_under_0_7_seconds() -> None:
    assert min(medray_help()[1] for _ in range(3)) < 0.7


def test_a_study_is_read_without_ray_or_torch() -> None:
    loaded = set(python("-c", "import sys, medray.study; print(*{name.split('.')[0] for name in sys.modules})").split())
    assert "pydantic" in loaded
    assert not loaded & HEAVY
