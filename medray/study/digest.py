"""What of a study decides a result, as a text that a digest covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medray.plugins import Config, Kind


def essence(value: Any) -> Any:
    """What a digest covers: values that differ from their defaults, and the kind and version of each kind."""
    if isinstance(value, Config):
        fields = type(value).model_fields
        kept = {
            name: essence(getattr(value, name))
            for name, field in fields.items()
            if name != "kind" and getattr(value, name) != field.get_default(call_default_factory=True)
        }
        return {**kept, "kind": value.kind, "version": value.version} if isinstance(value, Kind) else kept
    if isinstance(value, Mapping):
        return {str(key): essence(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [essence(item) for item in value]
    return value
