"""Kinds: `kind: lstm` in a study is the class in `medray/models/lstm.py`, or an entry point of an outside package.

A kind is a frozen pydantic class: its fields are its YAML keys, its methods its behaviour. Nothing is imported until a
study names it. An outside package adds a kind by an entry point, e.g. in its `pyproject.toml`:

    [project.entry-points."medray.models"]
    transformer_xl = "their_package.transformer_xl:TransformerXL"
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from medray.errors import MissingExtraError, StudyError
from medray.schema import FrozenDict

ROOMS = ("readers", "modalities", "transforms", "models", "explainers")
ROOM = "x-medray-room"  # in a JSON schema: here stands a kind of this room


class Config(BaseModel):
    """Base of everything written in a study: frozen, refuses unknown keys, keeps subclass fields in its dump."""

    # polymorphic_serialization: without it pydantic drops the fields of a kind's subclass from the dump, silently,
    # and a digest would ignore hyperparameters.
    model_config = ConfigDict(frozen=True, extra="forbid", polymorphic_serialization=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """`train:` with nothing behind it, or with comments only, is a key not written."""
        if isinstance(value, Mapping) and None in value.values():
            return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}
        return value


class Kind(Config):
    """A component and its config in one class. `version` is raised when its behaviour changes: it is in digests."""

    version: ClassVar[int] = 1
    kind: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_itself(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and not value.get("kind"):
            return {**value, "kind": cls.__module__.rsplit(".", 1)[-1]}
        return value


def names(room: str) -> dict[str, str]:
    """The kinds of a room: name -> module (built in) or entry point.

    Raises:
        StudyError: two packages claim one name.
    """
    return dict(_names(room))


@functools.cache
def _names(room: str) -> Mapping[str, str]:
    folder = Path(__file__).parent / room
    # a file, or the folder of the same name that it became when it grew over 400 lines
    found = [*folder.glob("[!_]*.py"), *(init.parent for init in folder.glob("[!_]*/__init__.py"))]
    known = {path.stem: f"medray.{room}.{path.stem}" for path in sorted(found)}
    for entry in importlib.metadata.entry_points(group=f"medray.{room}"):
        if entry.name in known and known[entry.name] != entry.value:
            raise StudyError(
                f"kind '{entry.name}' of {room} is claimed twice: {known[entry.name]} and {entry.value}. Uninstall one."
            )
        known[entry.name] = entry.value
    return known


@functools.cache
def find(room: str, name: str) -> type[Kind]:
    """The class of a kind.

    Raises:
        StudyError: no such kind; the message names the nearest one. Or it is there and cannot be used.
    """
    known = names(room)
    if name not in known:
        raise StudyError(f"unknown kind '{name}'{suggest(name, known)} Known: {', '.join(sorted(known))}.")
    module_name, _, attribute = known[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise StudyError(f"kind '{name}' of {room} cannot be imported from {module_name}: {error}") from error
    if attribute:
        cls = getattr(module, attribute, None)
        if not (inspect.isclass(cls) and issubclass(cls, Kind)):
            raise StudyError(f"kind '{name}' of {room}: {known[name]} is no kind")
        return cls
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Kind) and member.__module__ == module_name and not member.__name__.startswith("_")
    ]
    if len(classes) != 1:
        raise StudyError(f"{module_name} must hold exactly one public kind, found {len(classes)}")
    return classes[0]


def suggest(word: str, known: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """`. Did you mean 'lstm'?` when something known is near, else a full stop."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean '{near[0]}'?" if near else "."


def resolve(room: str, value: Any) -> Any:
    """A mapping with `kind:`, or a bare kind name, as an instance of that kind."""
    if isinstance(value, Kind):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping with 'kind:', found {type(value).__name__}")
    name = value.get("kind")
    if not isinstance(name, str):
        raise ValueError(f"'kind:' is missing. Known: {', '.join(sorted(names(room)))}.")
    try:
        cls = find(room, name)
    except StudyError as error:
        raise ValueError(str(error)) from error
    try:
        return cls.model_validate(dict(value))
    except ValidationError as error:
        raise KindError(lines(error, cls)) from error


def resolve_mapping(room: str, value: Any) -> Any:
    """A mapping of names to kinds, frozen; the mistakes of all of them are gathered."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of names, found {type(value).__name__}")
    kinds: dict[str, Any] = {}
    wrong: list[str] = []
    for name, item in value.items():
        try:
            kinds[str(name)] = resolve(room, item)
        except KindError as error:
            wrong += [f"{name}.{line}" for line in error.lines]
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise KindError(wrong)
    return FrozenDict(kinds)


class KindError(ValueError):
    """Mistakes inside kinds, as lines `field: what is wrong`, on their way to the study's own list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def lines(error: ValidationError, cls: type[BaseModel]) -> list[str]:
    """A validation error as lines `where: what is wrong and what to do`."""
    found = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        cause = (item.get("ctx") or {}).get("error")
        if isinstance(cause, KindError):
            found += [f"{where}.{line}" if where else line for line in cause.lines]
        elif item["type"] == "extra_forbidden":
            known = _fields_at(cls, item["loc"][:-1])
            hint = suggest(str(item["loc"][-1]), known)
            found.append(f"{where}: unknown key{hint} Known: {', '.join(known)}.")
        elif item["type"] == "missing":
            found.append(f"{where}: is missing")
        else:
            found.append(f"{where}: {cause or item['msg']}" if where else str(cause or item["msg"]))
    return found


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        field = cls.model_fields.get(str(part))
        nested = [t for t in (field.annotation, *get_args(field.annotation)) if inspect.isclass(t)] if field else []
        models = [t for t in nested if issubclass(t, BaseModel)]
        if not models:
            return []
        cls = models[0]
    return [name for name in cls.model_fields if name != "kind" or not issubclass(cls, Kind)]


@dataclass(frozen=True)
class Room:
    """The type of a field whose values are kinds of a room.

    Attributes:
        name: of the room.
        many: a mapping of names to kinds, else one kind.
    """

    name: str
    many: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Resolve kinds before anything else looks at them."""
        resolver = functools.partial(resolve_mapping if self.many else resolve, self.name)
        return core_schema.no_info_before_validator_function(resolver, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A place that `medray.study.editors` fills with the kinds: they are not imported before."""
        del schema, handler
        place = {ROOM: self.name}
        return {"type": "object", "additionalProperties": place} if self.many else place


def mapping_of(room: str) -> Room:
    """For a mapping of names to kinds: `sources: Annotated[FrozenDict, plugins.mapping_of("readers")]`."""
    return Room(room, many=True)


def of(room: str) -> Room:
    """For one kind: `model: Annotated[Model, plugins.of("models")]`."""
    return Room(room)


def described(cls: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a class and of its bases say about each field, under `Attributes:`."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(BaseModel)]):
        _, _, attributes = (inspect.cleandoc(base.__dict__.get("__doc__") or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + attributes.split("\n\n")[0])[1:]:
            fields, _, text = entry.partition(": ")
            texts |= dict.fromkeys((name.strip() for name in fields.split(",")), " ".join(text.split()))
    return texts


def require(library: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        MissingExtraError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != library.split(".")[0]:
            raise
        raise MissingExtraError(library, extra) from error
