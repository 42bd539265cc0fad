"""The gate: who may ask, and that every request is written down, without content, or not answered."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from medray.governance.audit import HEAD, LOG, Audit
from medray.serve.gate import OPEN_PATHS, ROUTES
from tests.served import TOKEN, Running, begun, table_service

PREDICT = "/v1/models/labs/predict"
GOOD = {"labs": {"sex": "F", "sodium": 141, "crp": 41.5}}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with table_service(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def client(opened: Running) -> httpx.Client:
    return opened.client


@pytest.fixture
def audit(opened: Running) -> Audit:
    return opened.audit


# ---- who may ask


def test_health_is_open_and_says_nothing_else(client: httpx.Client) -> None:
    for path, status in (("/healthz/live", "live"), ("/healthz/ready", "ready")):
        answer = client.get(path, headers={"authorization": ""})
        assert (answer.status_code, answer.json()) == (200, {"status": status})


@pytest.mark.parametrize("authorization", ["", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[1:]}"])
def test_every_other_route_asks_for_the_token(client: httpx.Client, authorization: str) -> None:
    for method, path in ROUTES:
        if path not in OPEN_PATHS:
            answer = client.request(method, path, headers={"authorization": authorization})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.get("/elsewhere", headers={"authorization": authorization}).status_code == 401


def test_two_tokens_are_none(client: httpx.Client) -> None:
    headers = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")]
    assert httpx.get(f"{client.base_url}/v1/models", headers=headers, trust_env=False).status_code == 401


def test_each_role_reaches_its_own_routes(client: httpx.Client) -> None:
    allowed = {
        "viewer": {"/v1/models", "/v1/models/labs", "/openapi.json"},
        "clinician": {"/v1/models", "/v1/models/labs", "/openapi.json", PREDICT},
        "engineer": {"/v1/models", "/v1/models/labs", "/openapi.json", "/metrics"},
    }
    for role, paths in allowed.items():
        for method, template in ROUTES:
            path = template.format(name="labs")
            body = {"json": GOOD} if method == "POST" else {}
            answer = client.request(method, path, headers={"authorization": f"Bearer {role}"}, **body)
            assert answer.status_code == (200 if path in paths or path in OPEN_PATHS else 403)
            if answer.status_code == 403:
                assert f"role {role} may not" in answer.json()["detail"]


def test_the_app_has_no_route_that_the_gate_does_not_know(opened: Running) -> None:
    app = opened.service.asgi()._app  # type: ignore[attr-defined]
    paths = {(method, route.path) for route in app.routes for method in route.methods}
    assert paths == set(ROUTES)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models//predict", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/models/other/predict", 404),
        ("POST", "/v1/models/labs:2/predict", 404),
        ("GET", PREDICT, 405),
        ("DELETE", "/v1/models/labs", 405),
        ("HEAD", "/healthz/live", 405),
    ],
)
def test_what_is_not_there_is_said_plainly(client: httpx.Client, method: str, path: str, status: int) -> None:
    assert client.request(method, path).status_code == status


# ---- what is written down


def test_each_request_is_one_event_without_content(client: httpx.Client, audit: Audit) -> None:
    before = audit.verify()
    requests: list[tuple[Callable[[], httpx.Response], str, str]] = [
        (lambda: client.post(PREDICT, json={"labs": {"crp": 987.125, "sex": "canary"}}), "allowed", "answered"),
        (lambda: client.post(PREDICT, json={"canary": {"crp": 987.125}}), "failed", "not valid"),
        (lambda: client.get("/canary/987.125"), "failed", "not found"),
        (lambda: client.get("/v1/models/canary"), "failed", "not found"),
        (lambda: client.get("/v1/models", headers={"authorization": "Bearer canary"}), "denied", "not a valid token"),
        (
            lambda: client.get("/metrics", headers={"authorization": "Bearer viewer"}),
            "denied",
            "role viewer may not read metrics",
        ),
    ]
    answers = [request() for request, _, _ in requests]
    client.get("/healthz/ready")
    assert audit.verify() == before + len(requests)
    events = list(audit.events())[before:]
    assert [(e["outcome"], e["reason"]) for e in events] == [(outcome, reason) for _, outcome, reason in requests]
    assert [e["request"] for e in events] == [answer.headers["medray-request"] for answer in answers]
    assert events[0]["inputs"] == ["labs"]
    assert events[0]["resource"] == "labs:3"
    assert "canary" not in json.dumps(events)
    assert "987" not in json.dumps([{**event, "mac": "", "request": ""} for event in events])


def test_nothing_is_answered_that_cannot_be_written_down(client: httpx.Client, audit: Audit) -> None:
    log = audit.folder / LOG
    kept = log.read_bytes()
    log.write_bytes(b"".join(kept.splitlines(keepends=True)[:-1]))  # somebody has cut it
    try:
        for answer in (client.post(PREDICT, json=GOOD), client.get("/v1/models"), client.get("/healthz/ready")):
            assert answer.status_code == 503
            assert answer.json()["detail"] == "the audit log cannot be written"
        assert client.get("/healthz/live").status_code == 200
    finally:
        log.write_bytes(kept)
    assert client.post(PREDICT, json=GOOD).status_code == 200
    assert (audit.folder / HEAD).exists()


def test_a_client_that_leaves_is_written_down_too(client: httpx.Client, audit: Audit) -> None:
    before = audit.verify()
    with contextlib.closing(
        begun(client, PREDICT, **{"content-type": "application/json", "content-length": "9"})
    ) as connection:
        connection.send(b'{"labs"')
    until = time.monotonic() + 20
    while audit.verify() == before and time.monotonic() < until:
        time.sleep(0.05)
    (event,) = list(audit.events())[before:]
    assert event["outcome"] == "failed"


def test_an_error_of_the_service_tells_its_log_where_and_nobody_what(
    opened: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, client, audit = opened.service, opened.client, opened.audit

    def broken(*_: Any) -> None:
        raise RuntimeError("canary 987.125")

    monkeypatch.setattr(one.predictor, "encode", broken)
    with caplog.at_level(logging.ERROR):
        answer = client.post(PREDICT, json=GOOD)
    assert answer.status_code == 500
    assert "canary" not in answer.text + caplog.text
    assert answer.json()["request"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert list(audit.events())[-1]["reason"] == "an error of the service"


def test_metrics_count_requests_and_batches_and_no_content(client: httpx.Client) -> None:
    client.post(PREDICT, json=GOOD)
    text = client.get("/metrics").text
    route = 'route="POST /v1/models/{name}/predict"'
    (line,) = [
        one for one in text.splitlines() if one.startswith("medray_requests_total") and route in one and '"200"' in one
    ]
    assert float(line.split()[-1]) >= 1
    assert 'modality="labs",' in text
    assert "medray_batch_size_bucket" in text
    assert "canary" not in text
