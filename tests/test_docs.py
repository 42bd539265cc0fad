"""What the README and the pages say is so: links, commands, targets, studies."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medray.study import Study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
BIN = Path(sys.executable).parent


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The command lines of the bash blocks, without comments."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_every_command_of_the_readme_is_one() -> None:
    helps = subprocess.run([BIN / "medray", "--help"], capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = commands(README)
    assert len(found) > 8
    for words in found:
        if words[0] == "medray":
            assert re.search(rf"^\W*{words[1]}\s", helps, re.MULTILINE), words
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        else:
            assert words[0] in {"export", "ray"}, words
        for word in words:
            if word.startswith(("examples/", "jobs/")) and ".medray" not in word:
                assert (ROOT / word).is_file(), word


def test_the_study_of_the_readme_loads(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    study = Study.load(tmp_path / "study.yaml")
    assert study.model.kind == "fusion"
    assert list(study.modalities) == ["films", "ecg", "labs"]


def test_every_verb_has_a_page_in_the_reference() -> None:
    helps = subprocess.run([BIN / "medray", "--help"], capture_output=True, text=True, check=True).stdout
    verbs = set(re.findall(r"^\W*([a-z]+)\s{2,}\w", helps, re.MULTILINE))
    pages = {path.stem for path in (ROOT / "docs" / "reference" / "verbs").glob("*.md")}
    assert verbs <= pages, verbs - pages


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    """`make` runs these tests, and `ray job submit` stands in test_submit.py; the others are run here as written."""
    shutil.copytree(ROOT / "examples" / "breast-cancer", tmp_path / "examples" / "breast-cancer")
    (tmp_path / "FOLDER").mkdir()
    shutil.copy(ROOT / "examples" / "breast-cancer" / "wdbc.csv", tmp_path / "FOLDER")
    with (ROOT / "examples" / "breast-cancer" / "wdbc.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    row = next(csv.DictReader(lines))
    values = {name: float(cell) for name, cell in row.items() if re.fullmatch(r"[\d.]+", cell)}
    (tmp_path / "lump.json").write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "MEDRAY_URL": f"http://127.0.0.1:{port}"}
    ran, service = [], None
    try:
        for words in commands(README):
            if words[0] != "medray" or words[1] in {"demo", "submit"}:
                continue
            ran.append(words[1])
            if words[-1] == "&":
                service = subprocess.Popen(
                    [*words[:-1], "--set", f"serve.port={port}"], cwd=tmp_path, env=environment, text=True
                )
                deadline = time.monotonic() + 120
                while time.monotonic() < deadline and service.poll() is None:
                    with socket.socket() as tried:
                        if tried.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.5)
                continue
            for _ in range(20 if words[1] == "query" else 1):
                done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                time.sleep(2)  # the port answers a little before the model does
            assert done.returncode == 0, (words, done.stderr[-2000:])
    finally:
        if service is not None and service.poll() is None:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
    assert ran == ["init", "check", "run", "models", "serve", "query"]
    assert "malignant" in done.stdout
