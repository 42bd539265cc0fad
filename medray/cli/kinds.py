"""The command `kinds`: what a study may name, from the classes themselves."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import typer

from medray.cli.options import Json
from medray.cli.terminal import Terminal


def kinds(
    room: Annotated[str, typer.Argument(metavar="[ROOM]", show_default=False, help="readers, models, ...")] = "",
    kind: Annotated[str, typer.Argument(metavar="[KIND]", show_default=False, help="One of the room's.")] = "",
    json: Json = False,
) -> None:
    """List the kinds that a study can name, their fields, defaults."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray import plugins
        from medray.errors import StudyError

        if room and room not in plugins.ROOMS:
            known = ", ".join(plugins.ROOMS)
            raise StudyError(f"no room '{room}'{plugins.suggest(room, plugins.ROOMS)} Known: {known}.")
        found = {
            each: {name: plugins.find(each, name) for name in ([kind] if kind else plugins.names(each))}
            for each in ([room] if room else plugins.ROOMS)
        }
        for each, classes in found.items():
            if room:
                for name, cls in classes.items():
                    _show(terminal, each, name, cls)
            else:
                terminal.show(_table(each, classes))
        described = {each: {name: _described(cls) for name, cls in classes.items()} for each, classes in found.items()}
        terminal.result({"verb": "kinds", "digest": None, "path": None, "metrics": {}, "kinds": described})


def _table(room: str, classes: Mapping[str, type]) -> Any:
    from rich.table import Table

    table = Table(title=room, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=22)
    for name, cls in classes.items():
        table.add_row(name, _summary(cls))
    return table


def _show(terminal: Terminal, room: str, name: str, cls: type) -> None:
    from rich.table import Table

    told = _described(cls)
    terminal.show(f"[bold]{name}[/bold] ({room})")
    terminal.say(told["doc"])
    table = Table("field", "type", "default", "", box=None, pad_edge=False)
    for field, facts in told["fields"].items():
        default = "needed" if facts["needed"] else repr(facts["default"]).replace("FrozenDict", "")
        table.add_row(f"  {field}", facts["type"], default, facts["doc"])
    terminal.show(table)


def _described(cls: Any) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    from medray import plugins

    texts = plugins.described(cls)
    fields = {
        name: {
            "type": _type(field.annotation),
            "needed": field.is_required(),
            "default": None
            if field.is_required()
            else to_jsonable_python(field.get_default(call_default_factory=True)),
            "doc": texts.get(name, ""),
        }
        for name, field in cls.model_fields.items()
        if name != "kind"
    }
    doc = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:")[0]
    return {"doc": " ".join(doc.split()), "version": cls.version, "fields": fields}


def _summary(cls: type) -> str:
    """What the kind's file says first."""
    doc = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    return doc.split("\n\n")[0].replace("\n", " ")


def _type(annotation: Any) -> str:
    """A type as a person writes it: `int`, `'full' or 'small'`."""
    arguments = [each for each in get_args(annotation) if each is not Ellipsis]
    name = getattr(annotation, "__name__", str(annotation))
    if name == "Literal":
        return " or ".join(map(repr, arguments))
    if name in {"tuple", "list"} and arguments:
        return f"list of {_type(arguments[0])}"
    if name == "Annotated":
        return _type(arguments[0])
    if arguments:
        return " or ".join(dict.fromkeys(_type(each) for each in arguments if each is not type(None)))
    return {
        "FrozenDict": "mapping",
        "PathValue": "{path: regex}",
        "OfValue": "{of: source}",
        "RowValue": "{row: true}",
    }.get(name, name)
