"""Gate: what every request passes: who asks and whether they may, one audit event, one metric, no stack trace.

The event is on disk before the first byte of the answer leaves; where it cannot be written, nothing is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from medray import plugins
from medray.errors import MedrayError
from medray.governance.access import LIST_MODELS, PREDICT, READ_METRICS, Principal, Principals, decide
from medray.governance.audit import Audit, Event, Outcome

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

# What each route asks of a principal's role; None: open, and not written down. There are no other routes.
ROUTES: Mapping[tuple[str, str], str | None] = {
    ("GET", "/healthz/live"): None,
    ("GET", "/healthz/ready"): None,
    ("GET", "/v1/models"): LIST_MODELS,
    ("GET", "/v1/models/{name}"): LIST_MODELS,
    ("POST", "/v1/models/{name}/predict"): PREDICT,
    ("GET", "/openapi.json"): LIST_MODELS,
    ("GET", "/metrics"): READ_METRICS,
}
OPEN_PATHS = frozenset(path for (_, path), needed in ROUTES.items() if needed is None)
NO_ROUTE = "no route"  # a path as it was sent may hold anything, so it is not written down
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
OUTCOMES: Mapping[int, Outcome] = {200: "allowed", 401: "denied", 403: "denied"}
REQUEST_HEADER = "medray-request"  # x-request-id is set by the proxy of Serve, to what a client may have sent
UNWRITTEN = "the audit log cannot be written"
BROKEN = "an error of the service; its log says where, under this request's id"
REASONS = {
    200: "answered",
    400: "not well-formed",
    404: "not found",
    405: "no such method",
    413: "too large",
    415: "of another type",
    422: "not valid",
    500: "an error of the service",
}


@dataclass
class Ask:
    """One request, as it is written down; routes add what they find out. No content.

    Attributes:
        request: its id, which the answer carries.
        route: method and path as the service names them.
        principal: who asks; None without a valid token.
        reason: of a denial.
        resource: the model version that was asked.
        inputs: the modalities that were sent.
    """

    request: str
    route: str
    principal: Principal | None
    reason: str = ""
    resource: str = ""
    inputs: tuple[str, ...] = ()
    started: float = field(default_factory=time.perf_counter)
    written: bool = False
    logged: bool = False


def problem(status: int, detail: str, name: str = "", request: str = "", allow: str = "") -> Response:
    """An answer that says what is wrong, and with which field."""
    content = {"detail": detail, "field": name, "request": request}
    headers = {"www-authenticate": 'Bearer realm="medray"'} if status == 401 else {"allow": allow} if allow else None
    return JSONResponse({key: value for key, value in content.items() if value}, status, headers)


class Counts:
    """Prometheus metrics of one replica; each carries its name, so that their sums are right."""

    def __init__(self, replica: str) -> None:
        client = plugins.require("prometheus_client", "serve")
        self._client, self.registry = client, client.CollectorRegistry()

        def made(kind: Any, name: str, what: str, labels: tuple[str, ...] = (), **given: Any) -> Any:
            metric = kind(f"medray_{name}", what, ("replica", *labels), registry=self.registry, **given)
            return metric if labels else metric.labels(replica)

        self._replica = replica
        self._requests = made(client.Counter, "requests", "Requests, by route and status.", ("route", "status"))
        self._seconds = made(client.Histogram, "request_seconds", "Seconds to the answer.", ("route",))
        self._inputs = made(client.Counter, "inputs", "Modalities of answered requests.", ("modality", "sent"))
        self.batch = made(
            client.Histogram, "batch_size", "Requests in one forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64)
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(self._replica, route, status).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def inputs(self, sent: Mapping[str, bool]) -> None:
        """Count what an answer was made from."""
        for modality, there in sent.items():
            self._inputs.labels(self._replica, modality, str(there).lower()).inc()

    def response(self) -> Response:
        """All of them, in Prometheus' text format."""
        return Response(self._client.generate_latest(self.registry), media_type=self._client.CONTENT_TYPE_LATEST)


class Gate:
    """ASGI middleware round the whole app.

    Args:
        app: what answers.
        principals: who may come in.
        audit: where it is written down.
        counts: where it is counted.
    """

    def __init__(self, app: ASGIApp, principals: Principals, audit: Audit, counts: Counts) -> None:
        self._app, self._principals, self._audit, self._counts = app, principals, audit, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; the start and end of the server are passed on, a web socket is not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN_PATHS and scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        tokens = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        principal = self._principals.authenticate(tokens[0]) if len(tokens) == 1 else None
        methods = {method: path for (method, path) in ROUTES if _fits(path, scope["path"])}
        route = f"{scope['method']} {methods[scope['method']]}" if scope["method"] in methods else NO_ROUTE
        ask = Ask(uuid.uuid4().hex, route, principal)
        scope.setdefault("state", {})["ask"] = ask
        await self._asked(ask, methods, bool(tokens), scope, receive, send)

    async def _asked(
        self, ask: Ask, methods: Mapping[str, str], has_token: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = replaced = False

        async def checked(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                if not await self._write(ask, message["status"]):
                    replaced = True
                    await problem(503, UNWRITTEN, request=ask.request)(scope, receive, send)
                    return
                own = {**HEADERS, REQUEST_HEADER: ask.request}
                headers = [(name.encode(), value.encode()) for name, value in own.items()]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            if not replaced:
                await send(message)

        app = self._refusal(ask, methods, scope["method"], has_token) or self._app
        try:
            await app(scope, receive, checked)
        except asyncio.CancelledError:
            if not ask.written:  # the client has left; a thread would be cancelled too
                self._record(ask, "failed", "the client left")
            raise
        except Exception as error:  # noqa: BLE001 - a server that logs it would log what the message quotes
            answered = broken(ask, error)
            if not started:
                await answered(scope, receive, checked)

    def _refusal(self, ask: Ask, methods: Mapping[str, str], method: str, has_token: bool) -> Response | None:
        """Default deny, before anything of the body is read."""
        if ask.principal is None:
            ask.reason = "not a valid token" if has_token else "no token"
            return problem(401, f"{ask.reason}: send 'Authorization: Bearer TOKEN'", request=ask.request)
        if not methods:
            return problem(404, "no such path", request=ask.request)
        if method not in methods:
            return problem(405, "no such method", request=ask.request, allow=", ".join(sorted(methods)))
        decision = decide(ask.principal, ROUTES[method, methods[method]])
        if decision.allowed:
            return None
        ask.reason = decision.reason
        return problem(403, decision.reason, request=ask.request)

    async def _write(self, ask: Ask, status: int) -> bool:
        """Write the request down; False if it cannot be."""
        reason = ask.reason or REASONS.get(status, f"status {status}")
        self._counts.request(ask.route, status, time.perf_counter() - ask.started)
        try:
            await run_in_threadpool(self._record, ask, OUTCOMES.get(status, "failed"), reason)
        except MedrayError as error:
            log.error("%s", error)
            return False
        return True

    def _record(self, ask: Ask, outcome: Outcome, reason: str) -> None:
        ask.written = True
        self._audit.record(
            Event(
                principal=ask.principal.name if ask.principal else "unknown",
                action=ask.route,
                outcome=outcome,
                reason=reason,
                resource=ask.resource,
                request=ask.request,
                inputs=ask.inputs,
            )
        )


def _fits(template: str, path: str) -> bool:
    """Whether a path is of a route: a `{name}` stands for one part, which is not empty."""
    parts, given = template.split("/"), path.split("/")
    return len(parts) == len(given) and all(
        bool(have) if want.startswith("{") else want == have for want, have in zip(parts, given, strict=True)
    )


def broken(ask: Ask, error: BaseException) -> Response:
    """The answer to a request that met an error of the service, whose type and place go to the log.

    Its message does not: it may quote content.
    """
    if not ask.logged:
        ask.logged = True
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
        log.error("request %s: %s at %s", ask.request, type(error).__name__, " > ".join(frames))
    return problem(500, BROKEN, request=ask.request)
