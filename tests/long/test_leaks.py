"""Goal E1: no identifier of a synthetic hospital is in any byte that a run, a service or Ray leaves behind.

Every subject carries canaries through every reader. The same scan finds all of them in the hospital's own files, and
finds those that a study keeps once the rows are written without a seal.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread

from medray.artifacts import Workspace
from medray.cli import main
from medray.demo import FORMATS, STUDY
from medray.errors import DataError
from medray.ingest import ingest
from medray.plugins import find
from medray.query import Client, query
from medray.runtime import cluster
from medray.schema import FILES, QUARANTINE
from medray.serve import serve
from medray.study import Study
from medray.synthetic import Persona, personas

FULL = bool(os.environ.get("MEDRAY_FULL"))
SUBJECTS, SEED = (1000, 5) if FULL else (200, 5)
CLASSES = ("name", "mrn", "birth date", "address", "phone", "free text", "private tag", "path")
NAME = "demo-mortality"
WIDTH = 8  # bytes that are compared at once; no canary is shorter
WORDS = "amber birch cedar delta ember frost grove heron inlet jetty".split()  # noqa: SIM905

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800 if FULL else 400)]


class Canaries:
    """Texts that must not be found, by class, and what finds them in bytes: as UTF-8 and as UTF-16."""

    def __init__(self) -> None:
        self.classes: dict[str, set[str]] = defaultdict(set)
        self._starts: dict[int, list[tuple[bytes, str, str]]] | None = None

    def add(self, kind: str, text: str) -> str:
        assert text.isascii()
        assert len(text) >= WIDTH, text
        self.classes[kind].add(text)
        return text

    def within(self, content: bytes) -> Iterator[tuple[str, str]]:
        """Class and text of each that is there, at every offset; one may come several times."""
        starts = self._by_start()
        wanted = np.array(sorted(starts), "<u8")
        for shift in range(min(WIDTH, max(0, len(content) - WIDTH + 1))):
            windows = np.frombuffer(content, "<u8", (len(content) - shift) // WIDTH, shift)
            plain = np.flatnonzero((windows & 0x8080808080808080) == 0)  # sealed bytes are seldom ASCII
            for place in plain[np.isin(windows[plain], wanted)].tolist():
                first = shift + place * WIDTH
                for encoded, kind, text in starts[int(windows[place])]:
                    if content.startswith(encoded, first) and (
                        kind != "birth date" or "-" in text or not _in_a_number(content, first)
                    ):
                        yield kind, text

    def _by_start(self) -> dict[int, list[tuple[bytes, str, str]]]:
        if self._starts is None:
            self._starts = defaultdict(list)
            for kind, texts in self.classes.items():
                for text in texts:
                    for encoded in (text.encode(), text.encode("utf-16-le")):
                        self._starts[int.from_bytes(encoded[:WIDTH], "little")].append((encoded, kind, text))
        return self._starts


class Scan:
    """What was found where, and how much was searched."""

    def __init__(self, canaries: Canaries) -> None:
        self.canaries = canaries
        self.found: dict[str, set[str]] = defaultdict(set)
        self.places: dict[str, Counter[str]] = defaultdict(Counter)
        self.files = self.bytes = 0

    def search(self, content: bytes, place: str) -> None:
        self.bytes += len(content)
        for kind, text in self.canaries.within(content):
            self.found[kind].add(text)
            self.places[kind][place] += 1

    def folder(self, folder: Path) -> Scan:
        """Every file's bytes and its path; what an unsealed Parquet file holds is searched unpacked too."""
        for path in sorted(folder.rglob("*")):
            inner = str(path.relative_to(folder))
            self.search(f"/{inner}".encode(), f"path of {inner}")
            if path.is_file():
                content = path.read_bytes()
                self.files += 1
                self.search(content, inner)
                if content.startswith(b"PAR1"):
                    self.search(repr(pq.read_table(path).to_pylist()).encode(), f"{inner}, unpacked")
        return self

    def counts(self) -> dict[str, int]:
        return {kind: len(self.found[kind]) for kind in CLASSES}


def _in_a_number(content: bytes, first: int) -> bool:
    """Whether eight digits are part of a longer number or digest, in which any eight may stand by chance."""
    around = content[max(0, first - 1) : first] + content[first + WIDTH : first + WIDTH + 1]
    return any(byte in b"0123456789abcdef." for byte in around)


@dataclasses.dataclass(frozen=True)
class Hospital:
    folder: Path
    people: list[Persona]
    canaries: Canaries

    def files_of(self, number: int) -> list[Path]:
        """The film and the ECG of a subject."""
        return [*self.folder.glob(f"films/*_{number:04d}.dcm"), *self.folder.glob(f"ecg/*_{number:04d}.hea")]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """The demo's hospital, in which nobody shares a name, and whose files and their names tell more of everybody."""
    folder, canaries = tmp_path_factory.mktemp("hospital"), Canaries()
    people = [
        dataclasses.replace(persona, name=_name(number, persona))
        for number, persona in enumerate(personas(SUBJECTS, SEED))
    ]
    for place, kind in FORMATS.items():
        find("readers", kind).synthesize(folder / place, people, SEED)  # type: ignore[attr-defined]
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    told: dict[str, tuple[str, str, str]] = {}
    for number, persona in enumerate(people):
        canaries.add("name", persona.name.split("^")[0])
        canaries.add("mrn", persona.mrn)
        canaries.add("birth date", persona.birth_date)
        first, second, third = (WORDS[number // 10**place % 10] for place in range(3))
        told[persona.mrn] = (
            canaries.add("phone", f"+44 7911 {number:03d}{number * 7 % 1000:03d}"),
            canaries.add("address", f"{number + 1} {first.title()}{second} Lane, {third.title()}ford"),
            canaries.add("free text", f"Fell near the {first} {second} {third} bridge and asks for visitor {number}"),
        )
        _tell_more(folder, number, persona, told[persona.mrn], canaries)
    with (folder / "labs.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with (folder / "labs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [[*header, "phone", "address", "remark"], *([*row, *told[row[0]]] for row in rows)],
        )
    return Hospital(folder, people, canaries)


def _name(number: int, persona: Persona) -> str:
    family, given = persona.name.split("^")
    return f"{family}{''.join('abcdefghij'[int(digit)] for digit in f'{number:03d}')}son^{given}"


def _tell_more(folder: Path, number: int, persona: Persona, told: tuple[str, str, str], canaries: Canaries) -> None:
    """Write canaries into a subject's film and ECG, and the name of the subject into the names of the files."""
    phone, address, remark = told
    name = f"{persona.name.split('^')[0].lower()}_{number:04d}"
    if persona.has_film or persona.has_signal:
        canaries.add("path", name)
    film = folder / "films" / f"film_{number:04d}.dcm"
    if persona.has_film:
        if number % 200 != 199:  # those are cut
            data = dcmread(film)
            canaries.add("birth date", data.PatientBirthDate)
            data.PatientTelephoneNumbers, data.PatientAddress, data.PatientComments = phone, address, remark
            private = data.private_block(0x0019, "INVENTED IMAGING 1.0")
            private.add_new(0x20, "LO", canaries.add("private tag", f"bed of {WORDS[number % 10]} no. {number * 37}"))
            data.save_as(film)
        film.rename(film.with_name(f"{name}.dcm"))
    header = folder / "ecg" / f"ecg_{number:04d}.hea"
    if persona.has_signal:
        text = header.read_text(encoding="utf-8").replace(header.stem, name)
        text += f"# phone: {phone}\n# home: {address}\n# remark: {remark}\n"
        header.with_suffix(".dat").rename(header.with_name(f"{name}.dat"))
        header.with_name(f"{name}.hea").write_text(text, encoding="utf-8")
        header.unlink()


def test_the_scan_finds_every_canary_in_the_hospitals_own_files(hospital: Hospital) -> None:
    assert sum(map(len, hospital.canaries.classes.values())) >= 1000
    scan = Scan(hospital.canaries).folder(hospital.folder)
    for kind in CLASSES:
        assert len(hospital.canaries.classes[kind]) >= 150, kind
        assert scan.found[kind] == hospital.canaries.classes[kind]


def test_no_canary_is_in_any_byte_that_a_run_a_service_or_ray_leaves(
    hospital: Hospital,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    study = Study.load(hospital.folder / "study.yaml")
    workspace = Workspace.of(study, tmp_path / "workspace")
    scan = Scan(hospital.canaries)
    options = ["--workspace", str(workspace.root)]
    with cluster(study.compute, num_cpus=2):
        rays = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
        assert _status("run", str(hospital.folder / "study.yaml"), "--set", "train.epochs=2", *options) == 0
        assert _status("models", "approve", f"{NAME}:1", *options) == 0
        with serve(study, f"{NAME}:1", workspace, block=False) as service:
            said, metrics = _asked(hospital, workspace, service.url, tmp_path)
            scan.search(said, "answers")
            scan.search(metrics, "/metrics")
            assert b"medray_requests_total" in metrics
            scan.folder(rays)
        scan.folder(rays)
        logs = [path for path in rays.rglob("*") if path.is_file() and "logs" in path.parts]
    scan.folder(workspace.root).folder(tmp_path / "answers").folder(temporary).folder(Path(os.environ["HOME"]))
    shown = capfd.readouterr()
    scan.search((shown.out + shown.err).encode(), "what was shown")
    assert "AUROC" in shown.out

    stored = {path.relative_to(workspace.root).parts[0] for path in workspace.root.rglob("*") if path.is_file()}
    assert stored >= {"tables", "shards", "checkpoints", "scores", "reports", "models", "keyring", "locks", "audit"}
    assert len(logs) >= 10
    assert scan.files >= 100
    sought = {kind: len(hospital.canaries.classes[kind]) for kind in CLASSES}
    sys.stderr.write(f"sought {sought}, found {scan.counts()}: {scan.files} files, {scan.bytes:,} bytes, ")
    sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")
    assert scan.counts() == dict.fromkeys(CLASSES, 0), {kind: dict(places) for kind, places in scan.places.items()}
    # it was all there to be lost: the rows of every subject were read, and the broken files are known
    table = workspace.table(study)
    assert len(set(table.read("labs", columns=["subject_id"]).column(0).to_pylist())) >= 0.99 * SUBJECTS
    assert table.read(FILES).num_rows >= 1.8 * SUBJECTS
    assert table.read(QUARANTINE).num_rows >= 1


def _status(*arguments: str) -> int:
    """Of a command, as it is typed, in this process and its cluster."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def _asked(hospital: Hospital, workspace: Workspace, url: str, folder: Path) -> tuple[bytes, bytes]:
    """What the service says to the files of a subject, as a clinician has them, to broken ones and to a stranger's."""
    number = next(n for n, persona in enumerate(hospital.people) if persona.has_film and persona.has_signal)
    with (hospital.folder / "labs.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    labs = folder / "labs.csv"
    with labs.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, next(row for row in rows if row[0] == hospital.people[number].mrn)])
    film, ecg = hospital.files_of(number)
    answered = query(workspace, NAME, [film, ecg, labs], url=url, explain="full", out=folder / "answers")
    assert set(answered.answer["attributions"]) == {"films", "ecg", "labs"}
    said = [json.dumps(answered.answer), *answered.lines()]

    client = Client(url, workspace.keyring.token())
    cut = folder / film.name
    cut.write_bytes(film.read_bytes()[:3000])
    for given in (
        {"films": cut},
        {"ecg": ecg},  # without the file that its header names
        {"labs": {"crp": hospital.people[number].name}},
    ):
        with pytest.raises(DataError) as refused:
            client.predict(NAME, given)
        said.append(str(refused.value))
    # a field's own name is told to whoever wrote it, so that it can be found, and to nobody else
    with pytest.raises(DataError):
        client.predict(NAME, {hospital.people[number].mrn: {"crp": 1.0}})
    metrics = client._answer("GET", "/metrics", b"", "")[1]
    return "\n".join(said).encode(), metrics.encode()


def test_what_a_study_keeps_is_protected_by_the_seal_and_by_nothing_else(hospital: Hospital, tmp_path: Path) -> None:
    columns = ("name", "phone", "address")
    study = Study.parse(
        {
            "name": "kept",
            "sources": {"labs": {"kind": "csv", "path": "labs.csv", "subject": "patient", "time": "drawn_at"}},
            "cohort": {"target": {"column": "labs.died", "positive": "1"}},
            "governance": {"free_text": "keep", "keep_columns": [f"labs.{name}" for name in columns]},
        },
        hospital.folder,
    )
    workspace = Workspace.of(study, tmp_path / "workspace")
    table = ingest(study, workspace).table
    rows = table.read("labs")
    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(rows, plain / "labs.parquet", compression="none")

    kept = {"name", "phone", "address", "free text"}
    unsealed = Scan(hospital.canaries).folder(plain).found
    assert {kind for kind, texts in unsealed.items() if texts} == kept
    for kind in kept:
        assert len(unsealed[kind]) >= rows.num_rows, kind
    sealed = Scan(hospital.canaries).folder(workspace.root)
    assert sealed.counts() == dict.fromkeys(CLASSES, 0), sealed.places
    assert sealed.files >= 5
