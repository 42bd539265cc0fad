"""Query: a person's files go to the right inputs, and the answer comes back with its pictures, or one clear error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from medray import plugins, query
from medray.artifacts import Workspace
from medray.errors import AccessError, DataError, ServiceError
from medray.governance.crypto import Keyring
from medray.query import Client
from medray.synthetic import personas
from tests.served import TOKEN, running, service

MODEL = "films-ecg-labs"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(service(tmp_path_factory.mktemp("served"), "films", "ecg", "labs")) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("Smith John")
    person = [next(one for one in personas(20, 0) if one.has_film and one.has_signal)]
    for reader in ("dicom", "wfdb"):
        plugins.find("readers", reader).synthesize(folder, person, 0)  # type: ignore[attr-defined]
    (folder / "labs.json").write_text('{"crp": 41.5, "sex": "F"}')
    (folder / "labs.csv").write_text("crp,sex\n41.5,F\n")
    return {path.name.split(".")[-1]: path for path in folder.iterdir()}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "keyring").mkdir(mode=0o700)
    (tmp_path / "keyring" / "token").write_text(TOKEN)
    (tmp_path / "keyring" / "token").chmod(0o600)
    return Workspace(tmp_path, Keyring(tmp_path / "keyring"))


def test_files_are_sent_as_what_they_are_and_the_overlay_is_written(
    url: str, files: dict[str, Path], workspace: Workspace, tmp_path: Path
) -> None:
    steps: list[int] = []
    answered = query.query(
        workspace,
        MODEL,
        [files["dcm"], files["hea"], str(files["json"])],
        url=url,
        out=tmp_path / "new" / "folder",
        progress=lambda _, done, __: steps.append(done),
    )
    assert answered.answer["missing"] == []
    assert steps == [0, 1, 2]
    (path,) = answered.overlays.values()
    assert answered.answer["attributions"]["films"]["overlay"] == str(path)
    assert path.parent == tmp_path / "new" / "folder"
    assert path.name.startswith("films-ecg-labs-films-")
    with Pillow.open(path) as overlay:
        assert overlay.format == "PNG"
    lines = "\n".join(answered.lines())
    assert "films-ecg-labs:3  " in lines
    assert f"films: grad_cam, see {path}" in lines
    assert "crp 41.5" in lines
    assert "ecg: input_x_gradient" in lines


def test_a_modality_can_be_named(url: str, files: dict[str, Path], workspace: Workspace) -> None:
    by_name = query.query(workspace, MODEL, [f"labs={files['csv']}"], url=url, explain="full")
    assert by_name.answer["missing"] == ["films", "ecg"]
    assert "not sent: films, ecg" in by_name.lines()
    by_suffix = query.query(workspace, MODEL, [files["csv"]], url=url, explain="none")
    assert by_suffix.answer["probability"] == by_name.answer["probability"]
    assert len(by_suffix.lines()) == 2


def test_a_signal_file_goes_with_its_header(url: str, files: dict[str, Path], workspace: Workspace) -> None:
    alone = query.query(workspace, MODEL, [files["hea"]], url=url)
    both = query.query(workspace, MODEL, [files["dat"], files["hea"]], url=url)
    assert both.answer["probability"] == alone.answer["probability"]


SIGNATURE: dict[str, Any] = {
    "inputs": {
        "films": {"format": "dicom", "suffix": ".dcm"},
        "labs": {"format": "csv", "suffix": ".csv", "columns": {}},
        "person": {"format": "csv", "suffix": ".csv", "columns": {}},
    }
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.dcm", "nowhere.dcm: not a file"),
        ("films=nowhere.dcm", "nowhere.dcm: not a file"),
        ("one.txt", "one.txt: fits no input. Write modality=path; the model takes films"),
        ("one.csv", "one.csv: fits labs and person. Write modality=path"),
        ("one.json", "one.json: fits labs and person"),
        ("labs=one.json", "one.json: not JSON"),
        ("labs=list.json", "list.json: expected an object"),
    ],
)
def test_a_file_that_fits_no_input_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "one.csv", "one.json"):
        (tmp_path / name).write_text("")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=message):
        query.matched(SIGNATURE, [given])


def test_a_program_sends_values_or_files(url: str, files: dict[str, Path]) -> None:
    client = Client(url, TOKEN)
    assert [model["name"] for model in client.models()] == [MODEL]
    values = client.predict(MODEL, {"labs": {"crp": 41.5, "sex": "F"}})
    mixed = client.predict(
        MODEL, {"labs": {"crp": 41.5, "sex": "F"}, "films": files["dcm"], "ecg": [files["hea"], files["dat"]]}
    )
    assert values["missing"] == ["films", "ecg"]
    assert mixed["missing"] == []
    assert client.predict(MODEL, {"labs": files["csv"]})["probability"] == values["probability"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (MODEL, {"labs": {"crq": 1}}, r"labs\.crq: unknown field"),
        (MODEL, {"labs": {"crp": "high"}}, r"labs\.crp: "),
        (MODEL, {"lab": {"crp": 1}}, r"lab: no such modality. Did you mean 'labs'"),
        (MODEL, {}, "nothing to predict from"),
        ("other", {"labs": {}}, f"no such model is served here; {MODEL}:3 is"),
        ("a/../b", {"labs": {}}, "no such path"),
    ],
)
def test_a_wrong_input_is_an_error_that_names_the_field(url: str, model: str, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Client(url, TOKEN).predict(model, inputs)


def test_a_body_that_is_too_large_is_said_to_be_so(url: str, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(bytes(30 << 20))
    with pytest.raises(DataError, match="the body is over 1 MB"):
        Client(url, TOKEN).predict(MODEL, {"films": large})


def test_a_file_that_cannot_be_read_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"films: .*gone.dcm cannot be read \(No such file"):
        Client(url, TOKEN).predict(MODEL, {"films": tmp_path / "gone.dcm"})


def test_another_token_is_refused_with_what_to_do(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Workspace
) -> None:
    with pytest.raises(AccessError, match=r"not a valid token\. Name the service's workspace, or set MEDRAY_TOKEN"):
        Client(url, "x" * 43).models()
    for token in ("a b", "a\nb", "é"):
        with pytest.raises(AccessError, match="what no token holds"):
            Client(url, token)
    nowhere = Workspace(tmp_path / "none", Keyring(tmp_path / "none" / "keyring"))
    for place in (None, nowhere):
        with pytest.raises(AccessError, match="name the workspace of the service, or set MEDRAY_TOKEN"):
            query.query(place, MODEL, [], url=url)
    assert not (tmp_path / "none").exists()  # to ask makes no key
    monkeypatch.setenv("MEDRAY_TOKEN", "x" * 43)
    with pytest.raises(AccessError, match="not a valid token"):
        query.query(workspace, MODEL, [], url=url)


def test_no_service_is_one_clear_line(unused_port: int) -> None:
    with pytest.raises(ServiceError, match=f"127.0.0.1:{unused_port}: no service answers .* medray serve"):
        Client(f"http://127.0.0.1:{unused_port}", TOKEN).models()
    for address in ("127.0.0.1:8000", "ftp://x", "http://", ""):
        with pytest.raises(ServiceError, match="is no address"):
            Client(address, TOKEN)


@pytest.fixture
def unused_port() -> int:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return int(server.server_address[1])


class Replies(BaseHTTPRequestHandler):
    """A server that gives its replies one after the other."""

    replies: list[tuple[int, bytes]] = []  # noqa: RUF012 - set by each test

    def do_GET(self) -> None:
        status, body = self.replies.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def replying(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(query, "TRIES_S", (0.0, 0.01, 0.01))
    server = HTTPServer(("127.0.0.1", 0), Replies)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_replica_that_was_killed_is_asked_again(replying: str) -> None:
    Replies.replies = [(500, b"Internal Server Error"), (503, b"busy"), (200, b'{"models": []}')]
    assert Client(replying, TOKEN).models() == []


def test_what_the_service_itself_says_is_final(replying: str) -> None:
    Replies.replies = [(503, json.dumps({"detail": "the audit log cannot be written", "request": "abc"}).encode())]
    with pytest.raises(ServiceError, match=r"the audit log cannot be written \(request abc\)"):
        Client(replying, TOKEN).models()


def test_another_server_is_told_from_the_service(replying: str) -> None:
    Replies.replies = [(200, b"<html>router</html>")]
    with pytest.raises(ServiceError, match="Is this the service's address"):
        Client(replying, TOKEN).models()
    Replies.replies = [(403, json.dumps({"detail": "role viewer may not predict"}).encode())]
    with pytest.raises(AccessError, match="role viewer may not predict"):
        Client(replying, TOKEN).models()


def test_the_top_level_has_the_client() -> None:
    import medray

    assert medray.Client is Client
