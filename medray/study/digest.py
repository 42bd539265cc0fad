"""What of a study decides a result, as values that a digest covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medray.plugins import Config, Kind

if TYPE_CHECKING:
    from medray.study import Study


def digest(study: Study, sections: Sequence[str]) -> str:
    """Sixteen hex digits over the values of these sections that differ from their defaults, and kinds' versions."""
    chosen = {}
    for section in sections:
        *above, last = section.split(".")
        config: Any = study
        for part in above:
            config = getattr(config, part)
        value = getattr(config, last)
        if value != type(config).model_fields[last].get_default(call_default_factory=True):
            chosen[section] = essence(value)
    text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def essence(value: Any) -> Any:
    """Of a config what differs from its defaults; of a kind its name and version too: an upgrade moves no digest."""
    if isinstance(value, Config):
        kept = {
            name: essence(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not (name == "kind" and isinstance(value, Kind))
            and getattr(value, name) != field.get_default(call_default_factory=True)
        }
        return {**kept, "kind": value.kind, "version": value.version} if isinstance(value, Kind) else kept
    if isinstance(value, Mapping):
        return {str(key): essence(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [essence(item) for item in value]
    return value
