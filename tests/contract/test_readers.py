"""What every file of `medray/readers/` must show: it reads what it writes and what others wrote, and breaks by name."""

from __future__ import annotations

import gzip
import itertools
import pickle
import random
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray import plugins
from medray.errors import MissingExtraError, ReadError
from medray.readers import Reader, Records
from medray.synthetic import Persona, personas
from tests.mutations import mutated

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = {name: plugins.find("readers", name) for name in sorted(plugins.names("readers"))}
MUTATIONS = 300


@dataclass(frozen=True)
class Case:
    """What a kind is tested on.

    Attributes:
        written: glob of the records that `synthesize` writes.
        payload: suffix of the file that holds a record's values, where that is another one.
        real: globs under the shared data, each with how many rows its first file has and the options it takes.
    """

    written: str
    real: tuple[tuple[str, int, dict[str, Any]], ...]
    payload: str = ""


HEART = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num".split()  # noqa: SIM905
# A new kind brings its case.
CASES = {
    "csv": Case(
        "*.csv",
        (
            ("heart_disease_4_hospitals/processed.cleveland.data", 303, {"header": HEART}),
            ("ptbxl_500/ptbxl_database.csv", 500, {}),
            ("ptbxl_500/scp_statements.csv", 71, {}),
            ("ehr_mimic_iv_demo/**/admissions.csv.gz", 275, {}),
        ),
    ),
    "dicom": Case(
        "*.dcm",
        (("ct_contrast_dicom/dicom_dir/*.dcm", 1, {}), ("dicom_variety/**/emri_small_jpeg_2k_lossless.dcm", 10, {})),
    ),
    "image": Case("*/*.*", (("cxr_pneumonia/test/*/*.jpeg", 1, {}), ("nuclei_dsb2018/**/images/*.png", 1, {}))),
    "wfdb": Case(
        "*.hea",
        (("ptbxl_500/records100/**/*.hea", 1, {}), ("mitbih_arrhythmia/*.hea", 1, {})),
        payload=".dat",
    ),
}
REAL = [(name, *real) for name, case in CASES.items() for real in case.real]


def made(name: str, **options: Any) -> Reader:
    reader: Reader = plugins.resolve("readers", {"kind": name, "path": "*", **options})
    return reader


def read(reader: Reader, path: Path, *, assets: bool = True) -> list[Records]:
    return list(reader.read(path, assets=assets))


@pytest.fixture(scope="module")
def people() -> Sequence[Persona]:
    return personas(6, seed=11, missing=0)


@pytest.fixture(scope="module", params=list(KINDS))
def hospital(
    request: pytest.FixtureRequest, people: Sequence[Persona], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A kind, and a folder in which it has written down six personas."""
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param].synthesize(folder, people, 5)  # type: ignore[attr-defined]
    return request.param, folder


def written(hospital: tuple[str, Path]) -> list[Path]:
    name, folder = hospital
    paths = sorted(folder.glob(CASES[name].written))
    assert paths
    return paths


def payload(name: str, path: Path) -> Path:
    return path.with_suffix(CASES[name].payload) if CASES[name].payload else path


def test_every_kind_has_its_case() -> None:
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_it_names_a_modality_and_an_extra_that_are_there(name: str) -> None:
    kind: Any = KINDS[name]
    assert kind.modality in plugins.names("modalities")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert not kind.extra or kind.extra in extras
    assert bool(kind.library) or not kind.extra


def test_it_reads_what_it_writes(hospital: tuple[str, Path], people: Sequence[Persona]) -> None:
    chunks = [chunk for path in written(hospital) for chunk in read(made(hospital[0]), path)]
    assert sum(len(chunk.rows) for chunk in chunks) == len(people)
    assert not [bad for chunk in chunks for bad in chunk.bad]
    for chunk in chunks:
        assert chunk.columns.num_rows == len(chunk.rows)
        assert chunk.assets is None or len(chunk.assets) == len(chunk.rows)
        for asset in chunk.assets or []:
            assert asset.dtype.isnative
            assert asset.size
            assert np.isfinite(asset).all()


def test_a_survey_without_assets_sees_the_same_rows_and_columns(hospital: tuple[str, Path]) -> None:
    for path in written(hospital):
        whole, survey = (read(made(hospital[0]), path, assets=assets) for assets in (True, False))
        assert [row for chunk in whole for row in chunk.rows] == [row for chunk in survey for row in chunk.rows]
        cells = [[row for chunk in chunks for row in chunk.columns.to_pylist()] for chunks in (whole, survey)]
        assert cells[0] == cells[1]
        assert all(chunk.assets is None for chunk in survey)


def test_what_it_writes_identifies_people_as_real_files_do(
    hospital: tuple[str, Path], people: Sequence[Persona]
) -> None:
    raw = b"".join(path.read_bytes() for path in sorted(hospital[1].rglob("*")) if path.is_file())
    for persona in people:
        assert any(name.encode() in raw for name in (persona.name, persona.name.replace("^", ", ")))


def test_the_same_seed_writes_the_same_bytes(
    hospital: tuple[str, Path], people: Sequence[Persona], tmp_path: Path
) -> None:
    name, folder = hospital
    for seed, place in ((5, "same"), (6, "other")):
        KINDS[name].synthesize(tmp_path / place, people, seed)  # type: ignore[attr-defined]

    def content(place: Path) -> dict[str, bytes]:
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    assert content(tmp_path / "same") == content(folder)
    assert content(tmp_path / "other") != content(folder)


@pytest.mark.parametrize(("name", "pattern", "rows", "options"), REAL, ids=[f"{case[0]}-{case[1]}" for case in REAL])
def test_it_reads_files_that_others_wrote(
    name: str, pattern: str, rows: int, options: dict[str, Any], shared_data: Path
) -> None:
    paths = sorted(shared_data.glob(pattern))
    assert paths
    for path in paths[:3]:
        chunks = read(made(name, **options), path)
        assert sum(len(chunk.rows) for chunk in chunks) == rows
        assert not [bad for chunk in chunks for bad in chunk.bad]
        for asset in [asset for chunk in chunks for asset in chunk.assets or []]:
            assert np.isfinite(asset).any()
            assert asset.min() < asset.max()


def test_a_cut_file_is_one_named_error(hospital: tuple[str, Path], people: Sequence[Persona], tmp_path: Path) -> None:
    name, _ = hospital
    for path in written(hospital)[:3]:
        raw = payload(name, path).read_bytes()
        # half a text of rows is a text of rows; only compressed can it be seen to be cut
        raw = gzip.compress(raw) if name == "csv" else raw
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        for share in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99):
            payload(name, copy).write_bytes(raw[: int(share * len(raw))])
            for assets in (True, False):
                # an image's size stands in its head; who wants no pixels does not look further
                if not assets and name == "image" and share > 0:
                    continue
                with pytest.raises(ReadError) as caught:
                    read(made(name), copy, assets=assets)
                assert caught.value.path == str(copy)
                assert not any(word in caught.value.reason for one in people for word in (one.mrn, one.name))


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 4096, b"\xff" * 4096, bytes(range(256)) * 64], ids=["empty", "0", "ff", "all"]
)
@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_something_else_is_one_named_error(name: str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x{Path(CASES[name].written).suffix}"
    path.write_bytes(raw)
    with pytest.raises(ReadError) as caught:
        read(made(name), path)
    assert caught.value.path == str(path)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason  # noqa: S301 - our own
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(ReadError):
            read(made(name), missing)


def damaged(name: str, paths: Sequence[Path], folder: Path, seed: int) -> Iterator[Path]:
    """Copies of records with seeded damage to one of their files."""
    draw = random.Random(f"{name} {seed}")
    for path, _ in zip(itertools.cycle(paths), range(MUTATIONS), strict=False):
        copy = folder / path.name
        for file in {path, payload(name, path)}:
            hit = file == path or draw.random() < 0.5
            raw = file.read_bytes()
            (folder / file.name).write_bytes(mutated(raw, draw) if hit else raw)
        yield copy


def test_a_damaged_file_is_read_or_is_one_named_error(hospital: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = hospital
    reader, refused = made(name), []
    for path in damaged(name, written(hospital), tmp_path, seed=1):
        try:
            for chunk in reader.read(path):
                assert chunk.columns.num_rows == len(chunk.rows)
        except ReadError as error:
            refused.append((error.path, str(path)))
        assert all(part.parent == tmp_path for part in reader.companions(path))
    assert all(said == path for said, path in refused)
    assert len(refused) > (0 if name == "csv" else MUTATIONS // 10)  # of a text most damage is a value


def test_it_is_imported_without_its_library() -> None:
    heavy = {"gdcm", "numpy", "pandas", "PIL", "pyarrow", "pydicom", "ray", "torch", "wfdb"}
    code = f"import sys, importlib\nfor n in {list(KINDS)}: importlib.import_module('medray.readers.' + n)\n"
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.extra])  # type: ignore[attr-defined]
def test_a_missing_library_is_named_with_the_extra_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = KINDS[name]
    monkeypatch.setitem(sys.modules, kind.library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'medray\[{kind.extra}\]'"):
        kind.imported()
