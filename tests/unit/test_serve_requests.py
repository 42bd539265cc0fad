"""Requests: what is taken, what is refused and how, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import Running, begun, table_service

PREDICT = "/v1/models/labs/predict"
GOOD = {"labs": {"sex": "F", "sodium": 141, "crp": 41.5}}
ROLES = ("viewer", "clinician", "engineer")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with table_service(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def client(opened: Running) -> httpx.Client:
    return opened.client


# ---- what is refused


def multipart(*parts: tuple[str, bytes], boundary: str = "b") -> dict[str, Any]:
    lines = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return {"content": lines + b"--b--\r\n", "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


JSON = {"content-type": "application/json"}
CSV = b"sex,crp\nF,71\n"
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no body": ({}, 415, ""),
    "no type": ({"content": b"{}"}, 415, ""),
    "xml": ({"content": b"<labs/>", "headers": {"content-type": "text/xml"}}, 415, ""),
    "empty": ({"content": b"", "headers": JSON}, 400, ""),
    "cut": ({"content": b'{"labs": {"crp": 1', "headers": JSON}, 400, ""),
    "not UTF-8": ({"content": b'{"labs": {"sex": "\xff"}}', "headers": JSON}, 400, ""),
    "half a surrogate": ({"content": b'{"labs": {"sex": "\\ud800"}}', "headers": JSON}, 400, ""),
    "deep": ({"content": b"[" * 100_000, "headers": JSON}, 400, ""),
    "long number": ({"content": b'{"labs": {"crp": ' + b"1" * 10_000 + b"}}", "headers": JSON}, 400, ""),
    "NaN": ({"content": b'{"labs": {"crp": NaN}}', "headers": JSON}, 400, ""),
    "infinite": ({"content": b'{"labs": {"crp": 1e999}}', "headers": JSON}, 422, "labs.crp"),
    "huge": ({"json": {"labs": {"crp": 10**400}}}, 422, "labs.crp"),
    "twice": ({"content": b'{"labs": {"crp": 1, "crp": 2}}', "headers": JSON}, 400, ""),
    "a list": ({"json": [GOOD]}, 422, ""),
    "null": ({"content": b"null", "headers": JSON}, 422, ""),
    "nothing": ({"json": {}}, 422, ""),
    "a modality that is not there": ({"json": {"films": {}}}, 422, "films"),
    "a modality that is a number": ({"json": {"labs": 1}}, 422, "labs"),
    "a column that is not there": ({"json": {"labs": {"crq": 1}}}, 422, "labs.crq"),
    "the target": ({"json": {"labs": {"died": 1}}}, 422, "labs.died"),
    "a text for a number": ({"json": {"labs": {"crp": "high"}}}, 422, "labs.crp"),
    "a list for a number": ({"json": {"labs": {"crp": [1]}}}, 422, "labs.crp"),
    "no boundary": ({**multipart(('name="labs"', b"{}")), "headers": {"content-type": "multipart/form-data"}}, 400, ""),
    "another boundary": (multipart(('name="labs"', b"{}"), boundary="c"), 400, ""),
    "cut form": (
        {
            **multipart(('name="labs"', b"{}")),
            "content": b'--b\r\nContent-Disposition: form-data; name="labs"\r\n\r\n{',
        },
        400,
        "",
    ),
    "no name": (multipart(("", b"{}")), 422, ""),
    "another field": (multipart(('name="films"', b"{}")), 422, "films"),
    "values twice": (multipart(('name="labs"', b"{}"), ('name="labs"', b"{}")), 422, "labs"),
    "file and values": (multipart(('name="labs"; filename="a.csv"', CSV), ('name="labs"', b"{}")), 422, "labs"),
    "two files": (
        multipart(('name="labs"; filename="a.csv"', CSV), ('name="labs"; filename="b.csv"', CSV)),
        422,
        "labs",
    ),
    "one file twice": (
        multipart(('name="labs"; filename="a.csv"', CSV), ('name="labs"; filename="a.csv"', CSV)),
        422,
        "labs",
    ),
    "two rows": (multipart(('name="labs"; filename="a.csv"', CSV + b"M,70\n")), 422, "labs"),
    "no row": (multipart(('name="labs"; filename="a.csv"', b"sex,crp\n")), 422, "labs"),
    "an empty file": (multipart(('name="labs"; filename="a.csv"', b"")), 422, "labs"),
    "a binary file": (multipart(('name="labs"; filename="a.csv"', bytes(range(256)))), 422, "labs"),
    "a text in a file": (multipart(('name="labs"; filename="a.csv"', b"sex,crp\nF,high\n")), 422, "labs.crp"),
    "values that are no JSON": (multipart(('name="labs"', b"F,71")), 400, "labs"),
    "many parts": (multipart(*[(f'name="labs"; filename="{n}"', b"x") for n in range(100)]), 413, ""),
    "long values": ({"json": {"labs": {"sex": "x" * (1 << 20)}}}, 413, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_4xx_that_names_the_field(client: httpx.Client, name: str) -> None:
    request, status, field = BAD[name]
    answer = client.post(PREDICT, **request)
    assert answer.status_code == status
    said = answer.json()
    assert set(said) <= {"detail", "field", "request"}
    assert said.get("field", "") == field
    assert said["detail"]
    assert "/" not in said["detail"].replace("application/json", "").replace("multipart/form-data", "")  # no path


def test_an_unknown_way_to_explain_is_refused(client: httpx.Client) -> None:
    answer = client.post(f"{PREDICT}?explain=all", json=GOOD)
    assert (answer.status_code, answer.json()["field"]) == (422, "explain")


def test_a_body_that_announces_too_much_is_refused_unread(client: httpx.Client) -> None:
    with contextlib.closing(begun(client, PREDICT, **JSON, **{"content-length": str(1 << 40)})) as connection:
        assert connection.getresponse().status == 413


def test_a_body_that_never_ends_is_refused_while_it_comes(client: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b", "transfer-encoding": "chunked"}
    with contextlib.closing(begun(client, PREDICT, **headers)) as connection:
        head = b'--b\r\nContent-Disposition: form-data; name="labs"; filename="a.csv"\r\n\r\nsex,crp\n'
        for chunk in (head, *[b"F,71\n" * 100_000] * 3):  # 1.5 of the 1 MB that are allowed
            connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        assert connection.getresponse().status == 413  # and no end was sent


def test_of_eight_at_once_only_the_bad_one_fails(client: httpx.Client) -> None:
    bodies: list[Any] = [{"labs": {"crp": 10 + number}} for number in range(8)]
    bodies[3] = {"labs": {"crp": "high"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post(PREDICT, json=body), bodies))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200, 200, 200, 200]
    alone = [client.post(PREDICT, json=body).json() for body in bodies if body is not bodies[3]]
    together = [answer.json() for answer in answers if answer.status_code == 200]
    assert [one["probability"] for one in together] == [one["probability"] for one in alone]


def mutated(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(changed) or 1)
        change = draw.choice(["flip", "drop", "insert", "cut", "repeat"])
        if change == "flip" and changed:
            changed[place] ^= 1 << draw.randrange(8)
        elif change == "drop":
            del changed[place : place + draw.randint(1, 8)]
        elif change == "insert":
            changed[place:place] = draw.choice(
                [b'"', b"{", b"\r\n--b", b"\x00", b"1e309", b"\\u0000", bytes([draw.randrange(256)])]
            )
        elif change == "cut":
            del changed[place:]
        else:
            changed[place:place] = changed[place : place + 20]
    return bytes(changed)


def test_of_600_mutated_bodies_none_is_an_error_of_the_service(client: httpx.Client) -> None:
    draw = random.Random(11)
    form = multipart(('name="labs"; filename="a.csv"', CSV), ('name="labs"', b'{"crp": 3}'))
    kinds = [
        (json.dumps(GOOD).encode(), JSON),
        (form["content"], form["headers"]),
        (multipart(('name="labs"; filename="a.csv"', CSV))["content"], form["headers"]),
    ]
    seen = set()
    for number in range(600):
        body, headers = kinds[number % 3]
        answer = client.post(PREDICT, content=mutated(body, draw), headers=headers)
        assert answer.status_code in {200, 400, 413, 422}, answer.text
        seen.add(answer.status_code)
    assert seen >= {200, 400, 422}


def test_uploads_are_gone_when_they_were_read(client: httpx.Client) -> None:
    base = Path(tempfile.gettempdir())
    (uploads,) = base.iterdir()
    assert uploads.stat().st_mode & 0o777 == 0o700
    seen: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in uploads.glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    seen.add(path.stat().st_mode & 0o777)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for name in ("two rows", "a text in a file"):
            client.post(PREDICT, **BAD[name][0])
        for _ in range(20):
            answer = client.post(PREDICT, **multipart(('name="labs"; filename="../../Smith John.csv"', CSV)))
            assert answer.status_code == 200
            assert "Smith" not in answer.text
    finally:
        stop.set()
        watcher.join()
    assert list(base.rglob("*")) == [uploads]
    assert seen <= {0o700}


def test_what_a_killed_process_left_of_uploads_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medray.serve.bodies import Uploads

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Uploads().folder() as mine:
        left = mine.parent / "4194999-left"  # beyond the largest process number
        left.mkdir()
        (left / "file").write_text("content")
        Uploads()
        assert mine.exists()
        assert not left.exists()
