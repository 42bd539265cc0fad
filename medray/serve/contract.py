"""The contract of a served model: what it takes and gives, as a signature and as OpenAPI with an example that runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from medray.schema import NUMBER, TEXT
from medray.serve.bodies import MULTIPART

if TYPE_CHECKING:
    from fastapi import FastAPI

    from medray.predictor import Predictor

_PROBLEM = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {"type": "string"},
        "field": {"type": "string", "description": "what is wrong, as `modality` or `modality.column`"},
        "request": {"type": "string", "description": "the id under which the audit log has this request"},
    },
}
_REASONS = {
    400: "not well-formed",
    401: "no valid token",
    403: "the role may not",
    404: "no such model",
    413: "too large",
    415: "of another type",
    422: "a field is wrong",
    503: "the audit log cannot be written",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason, "content": {"application/json": {"schema": _PROBLEM}}}
    for status, reason in _REASONS.items()
}
_JSON_TYPES = {NUMBER: ["number", "null"], TEXT: ["string", "number", "boolean", "null"]}


def signature(predictor: Predictor) -> dict[str, Any]:
    """What a model takes, by modality, and what it gives."""
    return {
        "task": predictor.task,
        "classes": list(predictor.classes),
        "target": predictor.study.cohort.target.column,
        "threshold": predictor.study.evaluate.threshold,
        "inputs": {name: _input(predictor, name) for name in predictor.modalities},
    }


def example(predictor: Predictor) -> dict[str, dict[str, Any]]:
    """A body for `application/json`: each table's train means, and the first of its categories."""
    return {name: _typical(predictor, name) for name in _tables(predictor)}


def request_body(predictor: Predictor) -> dict[str, Any]:
    """The body of a prediction, for OpenAPI."""
    tables = {name: _object(predictor, name) for name in _tables(predictor)}
    files = {
        name: {"type": "string", "format": "binary", "description": _input(predictor, name)["format"]}
        for name in predictor.modalities
        if name not in tables
    }
    shape = {"type": "object", "minProperties": 1, "additionalProperties": False}
    content: dict[str, Any] = {MULTIPART: {"schema": {**shape, "properties": {**files, **tables}}}}
    if tables:
        content["application/json"] = {"schema": {**shape, "properties": tables}, "example": example(predictor)}
    return {"required": True, "content": content}


def openapi(app: FastAPI, version: str, open_paths: Collection[str]) -> dict[str, Any]:
    """The OpenAPI document of the app; every path but the open ones asks for the token."""
    document: dict[str, Any] = get_openapi(title=app.title, version=version, routes=app.routes)
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in open_paths else [{"token": []}]
    return document


def _tables(predictor: Predictor) -> list[str]:
    """The modalities that can be sent as values: those whose sample is a vector of columns."""
    return [name for name, shape in predictor.shapes.items() if len(shape) == 1]


def _input(predictor: Predictor, name: str) -> dict[str, Any]:
    reader = predictor.study.sources[predictor.study.source_of(name)]
    given: dict[str, Any] = {
        "kind": predictor.modalities[name].kind,
        "shape": list(predictor.shapes[name]),
        "format": reader.kind,
        "suffix": PurePosixPath(reader.path).suffix,
    }
    if name in _tables(predictor):
        given["columns"] = predictor.fields(name)
    else:
        given["names"] = predictor.names[name]
    return given


def _object(predictor: Predictor, name: str) -> dict[str, Any]:
    columns = predictor.fields(name)
    properties = {column: {"type": _JSON_TYPES.get(kind, ["string", "null"])} for column, kind in columns.items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _typical(predictor: Predictor, name: str) -> dict[str, Any]:
    fitted = predictor.states[name]["modality"].get("columns", [])
    return {
        column["name"]: float(f"{column['mean']:.4g}") if column["kind"] == NUMBER else column["categories"][0]
        for column in fitted
        if column["kind"] == NUMBER or column["categories"]
    }
