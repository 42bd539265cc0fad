"""The service of one model version as an ASGI app: authorize -> validate and encode -> predict and explain -> audit.

It needs no Ray: a request is validated and encoded by itself, in a thread; `infer` then takes many samples, which are
tensors only, so that a bad request among eight cannot fail the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medray import inputs
from medray.errors import DataError, MedrayError, ReadError
from medray.governance.access import Principals
from medray.governance.audit import Audit
from medray.serve import contract
from medray.serve.answers import Answer, Scored, answer
from medray.serve.bodies import Body, RequestError, Uploads, read
from medray.serve.gate import OPEN_PATHS, UNWRITTEN, Ask, Counts, Gate, broken, problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from medray.modalities import Rows
    from medray.predictor import Predictor

    Array = np.ndarray[Any, Any]

Explain = Literal["fast", "full", "none"]


@dataclass(frozen=True)
class Sample:
    """One request as the network takes it: stored arrays (1, *shape), presence (1,), how it is to be explained."""

    arrays: Mapping[str, Array]
    present: Mapping[str, Array]
    explain: Explain


class Service:
    """One model version, and who may ask it.

    Args:
        predictor: of its checkpoint.
        name: of the model.
        version: of the model.
        principals: who may come in.
        audit: where it is written down.
        max_body_bytes: larger bodies are refused.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        version: int,
        principals: Principals,
        audit: Audit,
        max_body_bytes: int = 64 << 20,
    ) -> None:
        self.predictor, self.name, self.version = predictor, name, version
        self._principals, self._audit, self._max_body_bytes = principals, audit, max_body_bytes
        self._uploads = Uploads()
        self._decoders = asyncio.Semaphore(max(2, os.cpu_count() or 1))  # each may hold a decoded image
        self.counts = Counts(f"{socket.gethostname()}-{os.getpid()}")
        self.infer_one: Callable[[Sample], Awaitable[Scored]] = self._alone
        self._warm_up()

    def asgi(self) -> ASGIApp:
        """The app, with the gate round it."""
        app = FastAPI(
            title=f"medray: {self.name}",
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        app.add_api_route("/healthz/live", self.live)
        app.add_api_route("/healthz/ready", self.ready)
        app.add_api_route("/v1/models", self.models)
        app.add_api_route("/v1/models/{name}", self.model)
        app.add_api_route(
            "/v1/models/{name}/predict",
            self.predict,
            methods=["POST"],
            responses={200: {"model": Answer}, **contract.PROBLEMS},
            openapi_extra={"requestBody": contract.request_body(self.predictor)},
        )
        app.add_api_route("/metrics", self.metrics, response_class=Response)

        async def openapi() -> dict[str, Any]:
            """This document."""
            return contract.openapi(app, str(self.version), OPEN_PATHS)

        app.add_api_route("/openapi.json", openapi)
        app.add_exception_handler(RequestError, _refused)
        app.add_exception_handler(HTTPException, _http)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(Exception, _broken)
        return Gate(app, self._principals, self._audit, self.counts)

    # ---- routes

    async def live(self) -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    async def ready(self) -> Response:
        """Whether a prediction would be answered: the model is loaded, and the audit log can be written."""
        try:
            await run_in_threadpool(self._audit.check)
        except MedrayError:
            return problem(503, UNWRITTEN)
        return JSONResponse({"status": "ready"})

    async def models(self) -> dict[str, Any]:
        """The models that are served here."""
        return {"models": [self._signature()]}

    async def model(self, request: Request, name: str) -> dict[str, Any]:
        """What a model takes and gives."""
        self._asked(request, name)
        return self._signature()

    async def predict(self, request: Request, name: str, explain: Explain = "fast") -> Response:
        """Predict from any of the model's modalities, and say what the answer rests on.

        One field a modality: in `application/json` the values of one record of a table; in `multipart/form-data` a file
        in its own format (a WFDB record: header and signal file under the same name), or JSON. `explain=full` takes
        integrated gradients, and adds the answer without each modality; `none` is the prediction alone.
        """
        ask = self._asked(request, name)
        with self._uploads.folder() as folder:
            body = await read(request, folder, self.predictor.modalities, self._max_body_bytes)
            ask.inputs = tuple(modality for modality in self.predictor.modalities if modality in body.modalities)
            async with self._decoders:
                rows, sample = await run_in_threadpool(self._encoded, body, explain)
        scored = await self.infer_one(sample)
        self.counts.inputs({modality: modality in rows for modality in self.predictor.modalities})
        written = await run_in_threadpool(self._written, ask.request, rows, sample, scored)
        return Response(written, media_type="application/json")

    async def metrics(self) -> Response:
        """Prometheus metrics of this replica."""
        return self.counts.response()

    # ---- steps

    def infer(self, samples: Sequence[Sample]) -> list[Scored]:
        """Scores and attributions, in the samples' order; those explained alike share a forward pass."""
        self.counts.batch.observe(len(samples))
        found: dict[int, Scored] = {}
        for explain in {sample.explain for sample in samples}:
            places = [place for place, sample in enumerate(samples) if sample.explain == explain]
            found |= zip(places, self._inferred([samples[place] for place in places], explain), strict=True)
        return [found[place] for place in range(len(samples))]

    def _inferred(self, samples: Sequence[Sample], explain: Explain) -> list[Scored]:
        names = list(self.predictor.modalities)
        arrays = {name: np.concatenate([sample.arrays[name] for sample in samples]) for name in names}
        present = {name: np.concatenate([sample.present[name] for sample in samples]) for name in names}
        if explain == "none":
            return [Scored(scores) for scores in self.predictor.predict(arrays, present)]
        full = explain == "full"
        explained = self.predictor.explain(arrays, present, full=full)
        without = self.predictor.without(arrays, present) if full and len(names) > 1 else {}
        return [
            Scored(
                scores=explained.scores[row],
                output=int(explained.outputs[row]),
                attributions={name: values[row] for name, values in explained.attributions.items()},
                explainers=explained.explainers,
                without={name: scores[row] for name, scores in without.items()},
            )
            for row in range(len(samples))
        ]

    async def _alone(self, sample: Sample) -> Scored:
        return (await run_in_threadpool(self.infer, [sample]))[0]

    def _encoded(self, body: Body, explain: Explain) -> tuple[dict[str, Rows], Sample]:
        """One request's rows, and the tensors of its sample.

        Raises:
            RequestError: 422, with the field that is wrong.
        """
        rows: dict[str, Rows] = {}
        arrays: dict[str, Array] = {}
        present: dict[str, Array] = {}
        for modality in body.modalities:
            with _naming(modality):
                if modality in body.values:
                    rows[modality] = self.predictor.rows_from_values(modality, body.values[modality])
                else:
                    rows[modality] = self.predictor.rows_from_file(modality, self._main(modality, body.files[modality]))
                own, there = self.predictor.encode(
                    {modality: rows[modality]}
                )  # by itself: then it is known which is bad
            arrays = {**own, **arrays, modality: own[modality]}
            present = {**there, **present, modality: there[modality]}
        return rows, Sample(arrays, present, explain)

    def _main(self, modality: str, paths: list[Path]) -> Path:
        """Of a record's several files the one that names the others, such as a WFDB header."""
        if len(paths) == 1:
            return paths[0]
        reader = self.predictor.study.sources[self.predictor.study.source_of(modality)]
        for path in paths:
            try:
                companions = {companion.name for companion in reader.companions(path)}
            except ReadError:
                continue
            if companions >= {other.name for other in paths} - {path.name}:
                return path
        raise RequestError(422, f"{len(paths)} files that are not one record; one prediction takes one", modality)

    def _written(self, request: str, rows: Mapping[str, Rows], sample: Sample, scored: Scored) -> str:
        given = answer(self.predictor, self.name, self.version, request, rows, sample.arrays, scored)
        return given.model_dump_json(exclude_none=True)

    def _asked(self, request: Request, name: str) -> Ask:
        ask: Ask = request.state.ask
        served = f"{self.name}:{self.version}"
        if name not in {self.name, served}:
            raise RequestError(404, f"no such model is served here; {served} is")
        ask.resource = served
        return ask

    def _signature(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, **contract.signature(self.predictor)}

    def _warm_up(self) -> None:
        """One explained answer to a blank sample: the first forward pass of a process takes several times as long."""
        predictor = self.predictor
        arrays = {name: inputs.blank(kind, predictor.states[name], 1) for name, kind in predictor.modalities.items()}
        present = {name: np.ones(1, bool) for name in arrays}
        self.infer([Sample(arrays, present, "fast")])


@contextlib.contextmanager
def _naming(modality: str) -> Iterator[None]:
    """Errors of the data become a 422 that names the field, without the path that a reader's error names."""
    try:
        yield
    except ReadError as error:
        raise RequestError(422, error.reason, modality) from error
    except DataError as error:
        place, colon, detail = str(error).partition(": ")
        if not colon or place.split(".")[0] != modality:
            place, detail = modality, str(error)
        column = re.match(r"column '([^']+)'", detail)
        raise RequestError(422, detail, f"{modality}.{column[1]}" if column else place) from error


def _request(request: Request) -> str:
    ask: Ask = request.state.ask
    return ask.request


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - for the type checker
    return problem(error.status, error.detail, error.name, _request(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    return problem(error.status_code, str(error.detail), request=_request(request))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    first = error.errors()[0]
    return problem(422, str(first["msg"]), str(first["loc"][-1]), _request(request))


async def _broken(request: Request, error: Exception) -> Response:
    return broken(request.state.ask, error)
