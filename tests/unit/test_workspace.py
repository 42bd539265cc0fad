"""Artifacts lie where the study says, for their owner only, and are complete or not there."""

from __future__ import annotations

import datetime
import os
import pickle
import random
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medray.artifacts.durable import make_folder, sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, read_manifest, verify_files, write_manifest
from medray.artifacts.vault import Vault
from medray.artifacts.workspace import Workspace, digest_of, table_digest
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import Keyring
from medray.study import Study

WRITTEN = {
    "name": "small",
    "sources": {"labs": {"kind": "csv", "path": "labs.csv", "subject": "patient"}},
    "cohort": {"target": {"column": "labs.died", "positive": "1"}},
}
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.parse(WRITTEN, tmp_path)


def test_the_workspace_is_named_by_hand_else_by_the_environment_else_beside_the_study(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Workspace.of(study).root == tmp_path / ".medray"
    monkeypatch.setenv("MEDRAY_WORKSPACE", str(tmp_path / "env"))
    assert Workspace.of(study).root == tmp_path / "env"
    assert Workspace.of(study, tmp_path / "hand").root == tmp_path / "hand"


def test_folders_and_files_are_for_their_owner_only(study: Study) -> None:
    before = os.umask(0)
    try:
        workspace = Workspace.of(study)
        Vault(workspace.folder("shards", "abc"), workspace.keyring).write("train", b"x")
        write_manifest(workspace.folder("reports", "abc"), Manifest(sort="reports", digest="abc", created=NOW))
        with workspace.lock("models"):
            pass
    finally:
        os.umask(before)
    paths = [workspace.root, *workspace.root.rglob("*")]
    assert len(paths) > 8
    assert {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths} == {(True, 0o700), (False, 0o600)}


def test_a_table_is_named_by_what_decides_its_rows(study: Study) -> None:
    name = table_digest(study)
    same = {"train.epochs": 3, "seed": 5, "governance.max_quarantined": 0.5, "governance.key": "env:X"}
    same |= {"cohort.target.positive": "2", "cohort.target.column": "labs.other"}
    for path, value in same.items():
        assert table_digest(study.override({path: value})) == name, path
    other = {"sources.labs.path": "more/*.csv", "cohort.split.seed": 1, "governance.shift_dates": False}
    other |= {"governance.keep_columns": ["labs.zip"], "sources.labs.subject": "person"}
    names = {table_digest(study.override({path: value})) for path, value in other.items()}
    assert len(names | {name}) == len(other) + 1


def test_a_split_by_path_is_that_of_the_units_files(study: Study) -> None:
    wards = {"kind": "csv", "path": "wards.csv", "subject": "patient"}
    several = study.override({"sources.wards": wards, "cohort.split.by": {"path": "/(a|b)/"}})
    assert table_digest(several) != table_digest(several.override({"cohort.unit": "wards"}))
    alone = study.override({"cohort.split.by": {"path": "/(a|b)/"}})
    assert table_digest(alone) == table_digest(alone.override({"cohort.unit": "labs"}))


def test_an_artifact_is_named_by_its_sections_and_its_parents(study: Study) -> None:
    name = digest_of(study, ["model", "train"], {"shards": "abc"})
    assert name == digest_of(study.override({"serve.port": 1}), ["model", "train"], {"shards": "abc"})
    assert name != digest_of(study.override({"train.epochs": 3}), ["model", "train"], {"shards": "abc"})
    assert name != digest_of(study, ["model", "train"], {"shards": "abd"})
    assert len(name) == 16


def test_a_workspace_is_pickled_by_reference(study: Study) -> None:
    workspace = Workspace.of(study)
    workspace.keyring.derive("x")
    pickled = pickle.dumps(workspace)
    secret = (workspace.root / "keyring" / "secret").read_bytes()
    assert secret not in pickled
    again = pickle.loads(pickled)  # noqa: S301
    assert again.root == workspace.root
    assert again.keyring.derive("x") == workspace.keyring.derive("x")


def test_two_processes_do_not_do_the_same_work_at_once(study: Study) -> None:
    workspace = Workspace.of(study)
    path = workspace.root / "locks" / "table.lock"
    make_folder(path.parent)
    code = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]):\n"
    code += "    print('held', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout
    with holder.stdout:
        holder.stdout.readline()
        with pytest.raises(ArtifactError, match=r"'table' for 0\.1 s"), workspace.lock("table", timeout_s=0.1):
            pass
        with workspace.lock("another", timeout_s=0.1):
            pass
        holder.kill()
        holder.wait()
        with workspace.lock("table", timeout_s=5):  # a killed holder holds nothing
            pass


def test_an_artifact_is_complete_if_its_manifest_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "abc"
    assert read_manifest(folder) is None
    write_bytes(folder / "report.json", b"{}")
    assert read_manifest(folder) is None
    made = Manifest(
        sort="reports", digest="abc", parents={"scores": "def"}, facts={"n": 3, "share": 0.1 + 0.2}, seconds=1.5,
        files={"report.json": sha256_of(folder / "report.json")}, created=NOW, versions={"torch": "2.13.0"},
    )  # fmt: skip
    write_manifest(folder, made)
    assert read_manifest(folder) == made
    verify_files(folder, made)


def test_a_changed_manifest_or_file_is_named(tmp_path: Path) -> None:
    tmp_path = tmp_path / "abc"
    write_bytes(tmp_path / "report.json", b'{"auroc": 0.71}')
    files = {"report.json": sha256_of(tmp_path / "report.json")}
    made = Manifest(sort="reports", digest="abc", facts={"n": 3}, files=files, created=NOW)
    write_manifest(tmp_path, made)
    whole = (tmp_path / "manifest.json").read_bytes()
    draw = random.Random(2)
    for index in range(len(whole)):
        flipped = whole[:index] + bytes([whole[index] ^ 1 << draw.randrange(8)]) + whole[index + 1 :]
        for changed in (flipped, whole[:index]):
            (tmp_path / "manifest.json").write_bytes(changed)
            with pytest.raises(IntegrityError, match=r"manifest\.json"):
                read_manifest(tmp_path)
    (tmp_path / "report.json").write_bytes(b'{"auroc": 0.91}')
    with pytest.raises(IntegrityError, match=r"report\.json: changed"):
        verify_files(tmp_path, made)
    (tmp_path / "report.json").unlink()
    with pytest.raises(IntegrityError, match=r"report\.json: missing"):
        verify_files(tmp_path, made)


def test_the_manifest_of_another_artifact_is_named(tmp_path: Path) -> None:
    for digest in ("abc", "abd"):
        write_manifest(tmp_path / digest, Manifest(sort="reports", digest=digest, created=NOW))
    (tmp_path / "abc" / "manifest.json").write_bytes((tmp_path / "abd" / "manifest.json").read_bytes())
    with pytest.raises(IntegrityError, match=r"abc/manifest\.json"):
        read_manifest(tmp_path / "abc")


def test_a_disk_that_is_full_is_named_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same error, from the same call."""
    code = (
        "import pathlib, resource, sys\nimport numpy, pyarrow\nfrom medray.artifacts.durable import write_bytes\n"
        "from medray.artifacts.table import Description, Table\nfrom medray.errors import ArtifactError\n"
        "from medray.governance.crypto import Keyring\nfolder = pathlib.Path(sys.argv[1])\n"
        "table = Table(folder / 'tables' / 'abc', Keyring(folder / 'keyring'))\n"
        "table.create(Description(num_buckets=1, columns={}))\nwrite_bytes(folder / 'file', b'old')\n"
        "rows = pyarrow.table({'record_id': [str(n) * 9 for n in range(9999)], 'subject_id': ['0' * 32] * 9999})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "def pack():\n    with table.pack() as pack:\n"
        "        pack.append(numpy.random.default_rng(1).integers(0, 256, 99999, numpy.uint8))\n"
        "full = lambda: write_bytes(folder / 'file', bytes(99999))\n"
        "for work in (pack, lambda: table.write_part('labs', rows), full):\n"
        "    try:\n        work()\n    except ArtifactError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 3
    for line, name in zip(said, ("pack-", "part-", "file"), strict=True):
        assert re.search(rf"/\.?{name}.*: cannot be written \(.*too large.*\)\. Make room", line)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not list((tmp_path / "tables" / "abc").glob("part-*"))


def test_a_file_that_is_rewritten_is_never_seen_half_written(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom medray.artifacts.durable import write_bytes\nnumber = 0\n"
        "while True:\n    number += 1\n    write_bytes(pathlib.Path(sys.argv[1]), b'%08d' % number * 20000)\n"
        "    print(number, flush=True)\n"
    )
    draw = random.Random(4)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.2 * draw.random())
        process.send_signal(signal.SIGKILL)
        acknowledged = process.communicate(timeout=60)[0].split()
        data = (tmp_path / "file").read_bytes()
        assert data == data[:8] * 20000
        assert int(data[:8]) >= int(acknowledged[-1] if acknowledged else 1)


def test_a_sealed_file_opens_under_its_own_name_in_its_own_folder_only(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    vault, other = Vault(tmp_path / "scores" / "abc", keyring), Vault(tmp_path / "scores" / "abd", keyring)
    vault.write("scores", b"0.9")
    other.write("scores", b"0.1")
    assert len({vault.key_for("scores"), vault.key_for("labels"), other.key_for("scores")}) == 3
    assert pickle.loads(pickle.dumps(vault)).read("scores") == b"0.9"  # noqa: S301
    sealed = (vault.folder / "scores").read_bytes()
    (vault.folder / "labels").write_bytes(sealed)
    (other.folder / "scores").write_bytes(sealed)
    for wrong, name in ((vault, "labels"), (other, "scores")):
        with pytest.raises(IntegrityError, match=name):
            wrong.read(name)
    (other.folder / "key.json").write_bytes((vault.folder / "key.json").read_bytes())
    with pytest.raises(IntegrityError):
        Vault(other.folder, keyring).read("scores")


def test_a_lost_key_is_named_and_not_made_anew(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    vault = Vault(tmp_path / "scores" / "abc", keyring)
    vault.write("scores", b"0.9")
    (vault.folder / "key.json").unlink()
    with pytest.raises(IntegrityError, match=r"key\.json: missing"):
        Vault(vault.folder, keyring).read("scores")
    assert not (vault.folder / "key.json").exists()
    with pytest.raises(ArtifactError, match="nothing: missing"):
        vault.read("nothing")


def test_what_is_made_once_stays(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "abc", Keyring(tmp_path / "keyring"))
    assert vault.write_once("description", b"first") == b"first"
    assert vault.write_once("description", b"second") == b"first"
