"""What a person wrote: what it implies, and how one path of it is changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from medray import plugins
from medray.errors import StudyError


def thaw(value: Any) -> Any:
    """`value` with every mapping a dict and every sequence a list, all the way down."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list | tuple) else copy.copy(value)


def implied(written: Mapping[str, Any]) -> dict[str, Any]:
    """What the person wrote, with modalities, encoders and model filled in from the sources."""
    full = dict(written)
    sources = full.get("sources")
    if not isinstance(sources, Mapping):
        return full
    try:
        modalities = full.get("modalities") or {name: {} for name in sources}
        filled = {}
        for name, modality in modalities.items():
            fields = dict(modality or {})
            of = sources.get(fields.get("of") or name)
            if "kind" not in fields and isinstance(of, Mapping):
                fields["kind"] = getattr(plugins.find("readers", str(of.get("kind"))), "modality", None)
            filled[str(name)] = fields
        full["modalities"] = filled
        encoders = {name: getattr(plugins.find("modalities", m["kind"]), "encoder", "") for name, m in filled.items()}
    except (StudyError, KeyError, TypeError, AttributeError):
        return full  # the validation that follows says what is wrong, and where
    model = full.get("model")
    model = {"kind": model} if isinstance(model, str) else dict(model or {})
    if "kind" not in model:
        model["kind"] = "fusion" if len(filled) > 1 else next(iter(encoders.values()), "")
    if model["kind"] == "fusion":
        chosen = dict(model.get("encoders") or {})
        for name, kind in encoders.items():
            given = chosen.get(name)
            given = {"kind": given} if isinstance(given, str) else dict(given or {})
            chosen[name] = {"kind": kind, **given}
        model["encoders"] = chosen
    full["model"] = model
    return full


def set_path(written: dict[str, Any], resolved: Any, path: list[str], value: Any, whole: str) -> None:
    """Set one dotted path in what was written; a kind that was only implied is written down on the way."""
    here: Any = written
    for index, part in enumerate(path[:-1]):
        resolved = resolved.get(part) if isinstance(resolved, Mapping) else None
        step = here.get(part)
        if isinstance(step, str) and isinstance(resolved, Mapping) and "kind" in resolved:
            step = {"kind": step}
        if step is None:
            step = {}
        if not isinstance(step, dict):
            raise StudyError(f"{whole}: '{'.'.join(path[: index + 1])}' holds no further keys")
        if isinstance(resolved, Mapping) and "kind" in resolved and "kind" not in step and path[index + 1] != "kind":
            step["kind"] = resolved["kind"]
        here[part] = step
        here = step
    if path[-1] == "kind" and here.get("kind") != value:
        here.clear()
    here[path[-1]] = value
