"""A kind is a file of a room, or an entry point of another package; nothing is imported until a study names it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medray import plugins
from medray.errors import MissingExtraError, StudyError
from medray.models.tabular import Tabular
from medray.study import Study
from tests.studies import SMALL, refused, study_of


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`installed("models", tree="package.module:Class", source=...)` is a package with entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(room: str, source: str = "", package: str = "outside", **kinds: str) -> None:
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        lines = "\n".join(f"{name} = {place}" for name, place in kinds.items())
        (info / "entry_points.txt").write_text(f"[medray.{room}]\n{lines}\n", encoding="utf-8")
        importlib.invalidate_caches()
        plugins.find.cache_clear()
        plugins._names.cache_clear()

    yield install
    monkeypatch.undo()
    sys.modules.pop("outside", None)
    importlib.invalidate_caches()
    plugins.find.cache_clear()
    plugins._names.cache_clear()


STUMP = """
    from typing import ClassVar

    from medray.models.tabular import Tabular

    class Stump(Tabular):
        axes: ClassVar[tuple[str, ...]] = ("columns",)
        hidden: tuple[int, ...] = (2,)
        leaves: int = 4
"""


def test_the_files_of_a_room_are_its_kinds() -> None:
    assert {"cnn", "fusion", "lstm", "tabular"} <= set(plugins.names("models"))
    assert not [name for room in plugins.ROOMS for name in plugins.names(room) if name.startswith("_")]
    assert plugins.find("models", "tabular") is Tabular
    assert Tabular().kind == "tabular"


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(StudyError, match=r"unknown kind 'tabluar'\. Did you mean 'tabular'\? Known: cnn, fusion"):
        plugins.find("models", "tabluar")
    with pytest.raises(StudyError, match=r"unknown kind 'zzz'\. Known: "):
        plugins.find("models", "zzz")


def test_a_kind_of_another_package_comes_through_the_same_door(installed: Callable[..., None]) -> None:
    installed("models", STUMP, stump="outside:Stump")
    study = study_of(SMALL, "model={kind: stump, leaves: 8}")
    assert study.model_dump()["model"] == {"kind": "stump", "hidden": (2,), "dropout": 0.1, "leaves": 8}
    assert study.digest("model") != study_of(SMALL, "model=stump").digest("model")
    assert refused(SMALL, "model={kind: stump, leafs: 8}") == [
        "model.leafs: unknown key. Did you mean 'leaves'? Known: hidden, dropout, leaves."
    ]


def test_two_claimants_of_a_name_are_both_named(installed: Callable[..., None]) -> None:
    installed("models", STUMP, tabular="outside:Stump")
    with pytest.raises(
        StudyError, match=r"'tabular' of models is claimed twice: medray\.models\.tabular and outside:St"
    ):
        plugins.names("models")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_library", "cannot be imported from outside: No module named 'no_such_library'"),
        ("Stump = 3", "outside:Stump is no kind"),
        ("", "outside:Stump is no kind"),
    ],
)
def test_a_broken_kind_breaks_no_study_that_does_not_name_it(
    installed: Callable[..., None], source: str, said: str
) -> None:
    installed("models", source, stump="outside:Stump")
    assert study_of(SMALL).model.kind == "tabular"
    (mistake,) = refused(SMALL, "model=stump")
    assert mistake.startswith("model: kind 'stump' of models")
    assert said in mistake
    assert "stump" not in str(Study.json_schema())


def test_a_file_holds_one_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "twins.py").write_text(textwrap.dedent(STUMP) + "\nclass Twin(Stump):\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(plugins, "_names", lambda room: {"twins": "twins"})
    plugins.find.cache_clear()
    with pytest.raises(StudyError, match="twins must hold exactly one public kind, found 2"):
        plugins.find("models", "twins")
    plugins.find.cache_clear()


def test_a_missing_library_is_answered_with_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'medray\[imaging\]'"):
        plugins.require("no_such_library.dicom", "imaging")
    assert plugins.require("json", "none").dumps({}) == "{}"


def test_a_library_that_is_there_but_broken_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_a_library.py").write_text("import its_own_missing_part\n", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_part"):
        plugins.require("half_a_library", "imaging")


def test_no_kind_is_imported_before_a_study_names_it() -> None:
    code = "import sys, medray.study, medray.plugins as p; p.names('models'); print('medray.models.cnn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_docstring_describes_fields_of_all_bases() -> None:
    class Base(plugins.Config):
        """Something.

        Attributes:
            one, other: two at once,
                on two lines.

        Further words: not a field.
        """

        one: int = 1
        other: int = 2

    class Derived(Base):
        """More.

        Attributes:
            other: another: one.
        """

    assert plugins.described(Derived) == {"one": "two at once, on two lines.", "other": "another: one."}
    assert plugins.described(plugins.Config) == {}
