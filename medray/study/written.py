"""What a person wrote: how it is read, what it implies, and how one path of it is changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from medray import plugins
from medray.errors import StudyError
from medray.plugins import Kind

if TYPE_CHECKING:
    from medray.study import Study

# The core schema of YAML 1.2. PyYAML's own is 1.1's, under which the class NO is false, 3e-4 a text, 010 is 8.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|(?:0|[1-9][0-9]*)(?:\.|\.?[eE][-+]?[0-9]+)"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


FULL = "integrated_gradients"  # of an input, where several passes are paid for; a feature map keeps its own explainer


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and type

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is written twice is a mistake, where PyYAML silently takes the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is written twice", key.start_mark)
            if isinstance(key.value, str) and key.value != "<<":
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out, not referred to."""
        del data
        return True


for _style in (_Loader, _Dumper):
    for _tag, (_pattern, _first) in _PLAIN.items():
        _style.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)


def read(text: str) -> Any:
    """YAML as Python values.

    Raises:
        StudyError: it is not YAML; says where.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise StudyError(f"not YAML: {where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise StudyError(f"not YAML: {' '.join(str(error).split())}") from error


def write(value: Any) -> str:
    """Python values as YAML that `read` reads as the same values."""
    return str(yaml.dump(thaw(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def settings(texts: Iterable[str]) -> dict[str, Any]:
    """`PATH=VALUE` as the command line takes them, as changes for `Study.override`; values are YAML.

    Raises:
        StudyError: a text without `=`, or a value that is not YAML.
    """
    changes = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise StudyError(f"'{text}': expected PATH=VALUE, such as train.epochs=5")
        try:
            changes[path.strip()] = read(value)
        except StudyError as error:
            raise StudyError(f"{path.strip()}: {error}") from error
    return changes


def thaw(value: Any) -> Any:
    """`value` with every mapping a dict and every sequence a list, all the way down."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list | tuple) else copy.copy(value)


def implied(written: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the person wrote, with modalities, encoders, model and explainers filled in from the sources; mistakes."""
    full = dict(written)
    sources = full.get("sources")
    modalities = full.get("modalities")
    if not isinstance(sources, Mapping) or not isinstance(modalities, Mapping | None):
        return full, []
    wrong: list[str] = []
    unknown = False
    filled: dict[str, Any] = {}
    for name, modality in (modalities or dict.fromkeys(sources)).items():
        fields = _fields(modality)
        of = sources.get(fields.get("of") or name)
        if "kind" not in fields and of is None:
            source = fields.get("of") or name
            wrong.append(f"modalities.{name}: no source '{source}'{plugins.suggest(str(source), sources)}")
            continue
        if "kind" not in fields:
            reader = _find("readers", _fields(of).get("kind"))
            if reader is None:
                unknown = True
                continue
            fields["kind"] = getattr(reader, "modality", None)
        filled[name] = fields
    full["modalities"] = filled
    kinds = {name: _find("modalities", fields["kind"]) for name, fields in filled.items()}
    if wrong or unknown or None in kinds.values():
        return full, wrong  # the validation that follows says what else is wrong, and where
    full["model"] = _model(full.get("model"), {name: getattr(kind, "encoder", "") for name, kind in kinds.items()})
    explainers = {name: getattr(kind, "explainer", "") for name, kind in kinds.items()}
    full["explain"] = _explain(full.get("explain"), explainers)
    return full, wrong


def _model(written: Any, encoders: Mapping[str, str]) -> dict[str, Any]:
    model = _fields(written)
    if "kind" not in model:
        model["kind"] = "fusion" if len(encoders) > 1 else next(iter(encoders.values()), "")
    chosen: Any = model.get("encoders")
    if model["kind"] == "fusion" and isinstance(chosen, Mapping | None):
        chosen = dict(chosen or {})
        model["encoders"] = chosen | {n: {"kind": kind, **_fields(chosen.get(n))} for n, kind in encoders.items()}
    return model


def _explain(written: Any, explainers: Mapping[str, str]) -> Any:
    if not isinstance(written, Mapping | None):
        return written
    fast, full = ((written or {}).get(sort) or {} for sort in ("fast", "full"))
    if not isinstance(fast, Mapping) or not isinstance(full, Mapping):
        return written
    fast = {**explainers, **fast}
    kinds = {name: _find("explainers", _fields(fast[name]).get("kind")) for name in explainers}
    thorough = {name: FULL if getattr(kind, "at", "") == "input" else fast[name] for name, kind in kinds.items()}
    return {**(written or {}), "fast": fast, "full": {**thorough, **full}}


def _fields(value: Any) -> dict[str, Any]:
    """A kind as it may be written, as a mapping; what is neither name nor mapping is left to validation."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return {} if value is None else {"kind": value}


def _find(room: str, name: Any) -> type[Kind] | None:
    try:
        return plugins.find(room, name) if isinstance(name, str) else None
    except StudyError:
        return None


def changed(study: Study, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What the person wrote, with some dotted paths set; their order does not matter.

    Raises:
        StudyError: a path leads into a value that holds no further keys.
    """
    written = thaw(study.written)
    # what is above comes first, and a kind before its fields, which it would drop
    for path in sorted(changes, key=lambda path: (path.count("."), not f".{path}".endswith(".kind"), path)):
        _set(written, study, path.split("."), thaw(changes[path]))
    return dict(written)


def _set(written: Any, resolved: Any, path: list[str], value: Any) -> None:
    """Set one path; a bare kind on the way becomes a mapping, an implied list of modalities is written down."""
    here = written
    for index, part in enumerate(path[:-1]):
        resolved = _at(resolved, part)
        step = here[_index(part, here, path)] if isinstance(here, list) else here.get(part)
        if isinstance(step, str) and isinstance(resolved, Kind):
            step = {"kind": step}
        if step is None:
            # a written `modalities:` is the whole list, so all of them are written down
            step = {name: {} for name in resolved} if path[: index + 1] == ["modalities"] else {}
        if not isinstance(step, dict | list):
            raise StudyError(f"{'.'.join(path)}: '{'.'.join(path[: index + 1])}' holds no further keys")
        here[_index(part, here, path) if isinstance(here, list) else part] = step
        here = step
    last = path[-1]
    if isinstance(here, list):
        here[_index(last, here, path)] = value
        return
    if last == "kind" and value != here.get("kind", getattr(resolved, "kind", None)):
        for field in [field for field in here if field not in _lasting(resolved)]:
            del here[field]
    if value is None:
        here.pop(last, None)
    else:
        here[last] = value


def _at(resolved: Any, part: str) -> Any:
    if isinstance(resolved, Mapping):
        return resolved.get(part)
    if isinstance(resolved, tuple):
        return resolved[int(part)] if part.isdecimal() and int(part) < len(resolved) else None
    return getattr(resolved, part, None) if part in getattr(type(resolved), "model_fields", {}) else None


def _index(part: str, items: list[Any], path: list[str]) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise StudyError(f"{'.'.join(path)}: the list has {len(items)} items, counted from 0; '{part}' is none of them")
    return int(part)


def _lasting(config: Any) -> frozenset[str]:
    """The fields that stay when the kind changes: those that every kind of the room has."""
    if isinstance(config, Kind):
        rooms = {f"medray.{room}" for room in plugins.ROOMS}
        shared = [base.model_fields for base in type(config).__mro__ if base.__module__ in rooms]  # type: ignore[attr-defined]
        return frozenset(name for fields in shared for name in fields)
    lasting: frozenset[str] = getattr(config, "lasting", frozenset())
    return lasting
