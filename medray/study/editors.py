"""The JSON schema of a study file: completion, descriptions and red underlines in an editor."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel

from medray import plugins
from medray.errors import StudyError
from medray.plugins import ROOM, ROOMS, Config, Kind

# What a person need not write because it is implied.
IMPLIED = {"modalities", "model"}


def json_schema(study: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema 2020-12 with every kind of every room under `$defs`, and the docstrings as descriptions."""
    shared: dict[str, Any] = {}
    schema = _schema(study, shared)
    for section in schema["properties"].values():
        if "$ref" in section:  # `train:` with nothing behind it is not written
            section["anyOf"] = [{"$ref": section.pop("$ref")}, {"type": "null"}]
    schema["required"] = [name for name in schema["required"] if name not in IMPLIED]
    for room in ROOMS:
        kinds = {name: kind for name in sorted(plugins.names(room)) if (kind := _found(room, name))}
        for name, kind in kinds.items():
            shared[f"{room}.{name}"] = _kind(room, name, kind, shared)
        # in `modalities` and `model.encoders` the kind may be left out: only the names of fields are known then
        implied = {"type": "object", "not": {"required": ["kind"]}} if room in {"modalities", "models"} else None
        shared[room] = {
            "anyOf": [
                *({"$ref": f"#/$defs/{room}.{name}"} for name in kinds),
                {"enum": list(kinds), "description": "A kind with its defaults."},
                *([implied, {"type": "null"}] if implied else []),
            ]
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_with_rooms(schema),
        "$defs": _with_rooms(shared),
    }


def _found(room: str, name: str) -> type[Kind] | None:
    try:
        return plugins.find(room, name)
    except StudyError:  # of another package, and broken: a study that names it is told so
        return None


def _kind(room: str, name: str, kind: type[Kind], shared: dict[str, Any]) -> dict[str, Any]:
    schema = _schema(kind, shared)
    schema["properties"]["kind"] = {"const": name, "description": f"medray/{room}/{name}.py"}
    schema["required"] = sorted({"kind", *schema.get("required", ())})
    return schema


def _schema(cls: type[BaseModel], shared: dict[str, Any]) -> dict[str, Any]:
    """The schema of one class; those of the classes it holds go to `shared`."""
    schema = cls.model_json_schema()
    for name, nested in schema.pop("$defs", {}).items():
        shared[name] = nested
    for part in (cls, *_nested(cls)):
        target = schema if part is cls else shared.get(part.__name__)
        if target is None:
            continue
        target["description"] = inspect.cleandoc(part.__doc__ or "").split("\n\n", 1)[0].replace("\n", " ")
        texts = plugins.described(part)
        for field, of_field in target.get("properties", {}).items():
            if field in texts:
                of_field["description"] = texts[field]
    return schema


def _nested(cls: type[BaseModel]) -> set[type[Config]]:
    found: set[type[Config]] = set()
    for part in Config.__subclasses__():
        if part.__module__.startswith("medray.") and part is not Kind and not issubclass(part, Kind):
            found.add(part)
    return found - {cls}


def _with_rooms(value: Any) -> Any:
    if isinstance(value, dict):
        if ROOM in value:
            rest = {key: _with_rooms(item) for key, item in value.items() if key != ROOM}
            return {**rest, "$ref": f"#/$defs/{value[ROOM]}"}
        return {key: _with_rooms(item) for key, item in value.items()}
    return [_with_rooms(item) for item in value] if isinstance(value, list) else value
