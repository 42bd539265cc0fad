"""The commands of the main way: from raw files to a report."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medray.cli.options import Changes, Force, Json, StudyFile, WorkspaceFolder, load, shown, workspace_of
from medray.cli.terminal import Terminal

if TYPE_CHECKING:
    from medray.report import Report
    from medray.tune import Tuning


def run(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: WorkspaceFolder = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run a study: ingest, tune, train, predict, evaluate, register."""
    with Terminal(as_json=json) as terminal:
        from medray.pipeline import run as verb

        loaded = load(study, changes)
        place = workspace_of(loaded, workspace)
        done = verb(loaded, place, force=force, progress=terminal.progress)
        report, version = done.evaluation.report, done.version
        name = str(version)
        told = f" --workspace {shown(place.root)}" if place.root != Path(".medray").resolve() else ""
        terminal.show(metrics_table(report))
        terminal.show(report.verdict)
        terminal.show(f"\nreport   {shown(done.evaluation.paths.html)}\nmodel    {name} ({version.stage})")
        terminal.show(f"next     medray models approve {name}{told}")
        terminal.show(f"         medray serve {name}{told}")
        terminal.show(f"         medray query {version.name} FILE...{told}")
        terminal.result(
            {
                "verb": "run",
                "digest": done.checkpoint.digest,
                "path": done.evaluation.paths.html,
                "model": name,
                "metrics": metrics_of(report),
                "steps": done.seconds,
            }
        )


def ingest(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    prune: Annotated[bool, typer.Option("--prune", help="Also remove the rows of files that have vanished.")] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read raw files into a de-identified, sealed table."""
    with Terminal(as_json=json) as terminal:
        from medray.ingest import ingest as verb

        loaded = load(study, changes)
        place = workspace_of(loaded, workspace)
        done = verb(loaded, place, force=force, prune=prune, progress=terminal.progress)
        quarantined = sum(count for reasons in done.quarantined.values() for count in reasons.values())
        counts = {
            "records": done.records,
            "subjects": done.subjects,
            "new_files": done.new_files,
            "changed_files": done.changed_files,
            "vanished_files": done.vanished_files,
            "quarantined": quarantined,
        }
        for name, count in counts.items():
            terminal.show(f"{name.replace('_', ' '):15}{count:>10,}")
        for source, reasons in done.quarantined.items():
            for reason, count in reasons.items():
                terminal.show(f"  {source}: {count:,} x {reason}")
        for split, subjects in done.splits.items():
            terminal.show(f"{split.replace('_', ' '):15}{subjects:>10,} subjects")
        for source in done.own_subject:
            terminal.show(f"  {source} names no subject: each record counts as its own")
        for source, columns in done.dropped.items():
            for column, reason in columns.items():
                terminal.show(f"  {source}.{column} is left out: {reason}")
        terminal.show(f"table          {shown(done.table.folder)}")
        terminal.result(
            {
                "verb": "ingest",
                "digest": done.table.digest,
                "path": done.table.folder,
                "metrics": {**counts, "splits": done.splits},
                "reasons": done.quarantined,
                "dropped": done.dropped,
            }
        )


def train(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train the model: table to checkpoint.

    Goes on where a run was cut off.
    """
    with Terminal(as_json=json) as terminal:
        from medray.train import train as verb

        loaded = load(study, changes)
        checkpoint = verb(loaded, workspace_of(loaded, workspace), force=force, progress=terminal.progress)
        history = checkpoint.facts.history
        terminal.show(f"checkpoint {checkpoint.digest} after {len(history)} epochs: {shown(checkpoint.folder)}")
        terminal.result(
            {
                "verb": "train",
                "digest": checkpoint.digest,
                "path": checkpoint.folder,
                "metrics": history[-1] if history else {},
            }
        )


def tune(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the best study here; beside STUDY, say.", show_default=False),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Search what the study's section `tune` names; write the best study.

    Goes on where a search was cut off.
    """
    with Terminal(as_json=json) as terminal:
        from medray.tune import tune as verb

        loaded = load(study, changes)
        place = workspace_of(loaded, workspace)
        done = verb(loaded, place, force=force, progress=terminal.progress)
        if write is not None:
            done.write(write)
        path = write or done.path
        terminal.show(trials_table(done))
        terminal.show(f"\nstudy    {shown(path)}\nnext     medray run {shown(path)} --workspace {shown(place.root)}")
        terminal.result(
            {
                "verb": "tune",
                "digest": done.digest,
                "path": path,
                "metrics": {"tuning_loss": done.value, f"tuning_{done.metric_name}": done.metric},
                "best": done.best_values,
                "trials": [asdict(trial) for trial in done.trials],
            }
        )


def predict(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    split: Annotated[str, typer.Option(help="train, tuning or held_out.")] = "held_out",
    force: Force = False,
    json: Json = False,
) -> None:
    """Score a split with the study's checkpoint."""
    with Terminal(as_json=json) as terminal:
        from medray.predict import predict as verb

        loaded = load(study, changes)
        scores = verb(loaded, workspace_of(loaded, workspace), split=split, force=force, progress=terminal.progress)
        terminal.show(f"scores {scores.digest}: {shown(scores.folder)}")
        terminal.result({"verb": "predict", "digest": scores.digest, "path": scores.folder, "metrics": {}})


def evaluate(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Judge the held-out scores: metrics with intervals, a report."""
    with Terminal(as_json=json) as terminal:
        from medray.evaluate import evaluate as verb

        loaded = load(study, changes)
        done = verb(loaded, workspace_of(loaded, workspace), force=force, progress=terminal.progress)
        terminal.show(metrics_table(done.report))
        terminal.show(done.report.verdict)
        terminal.show(f"\nreport   {shown(done.paths.html)}")
        terminal.result(
            {
                "verb": "evaluate",
                "digest": done.folder.name,
                "path": done.paths.html,
                "metrics": metrics_of(done.report),
            }
        )


def trials_table(tuning: Tuning) -> Any:
    """The trials of a search, the best first, those that failed last."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("tuning loss", tuning.metric_name.upper(), "epochs", "seconds", box=None, pad_edge=False)
    for path in tuning.best_values:
        table.add_column(path)
    for trial in sorted(tuning.trials, key=lambda trial: math.inf if trial.value is None else trial.value):
        loss = "failed" if trial.value is None else f"{trial.value:.4g}"
        metric = "" if trial.metric is None else f"{trial.metric:.4g}"
        values = [f"{value:.4g}" if isinstance(value, float) else escape(str(value)) for value in trial.values.values()]
        table.add_row(loss, metric, f"{trial.epochs}", f"{trial.seconds:.1f}", *values)
    return table


def metrics_of(report: Report) -> dict[str, Any]:
    """Value, interval and n of each metric, of the model and of the baseline."""

    def figures(estimates: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {"value": each.value, "low": each.low, "high": each.high, "n": each.n}
            for name, each in estimates.items()
        }

    units = report.measures.units
    return {**figures(units.model), "baseline": figures(units.baseline)}


def metrics_table(report: Report) -> Any:
    """The metrics of the model with their intervals, and the baseline's beside them."""
    from rich.table import Table

    from medray.report import words

    units = report.measures.units
    table = Table(title=f"{report.study}: {words.units(report)}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("model (95 % interval)")
    if units.baseline:
        table.add_column(report.baseline)
    table.add_column("n", justify="right")
    for name, estimate in units.model.items():
        baseline = [words.with_interval(units.baseline.get(name))] if units.baseline else []
        table.add_row(words.label(name, report), words.with_interval(estimate), *baseline, f"{estimate.n:,}")
    return table
