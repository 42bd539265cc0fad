"""The command `demo`: the tour, on a synthetic hospital."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medray.cli.options import Json, shown
from medray.cli.terminal import Terminal
from medray.cli.verbs import metrics_of, metrics_table

if TYPE_CHECKING:
    from medray.demo import Demo


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="For the hospital; made where it is not there.")
    ] = Path("medray-demo"),
    subjects: Annotated[int, typer.Option(min=200, help="How many patients are invented.")] = 600,
    seed: Annotated[int, typer.Option(help="Of the hospital.")] = 8,
    json: Json = False,
) -> None:
    """Show everything on a synthetic hospital: four minutes, from raw files to an explained answer."""
    with Terminal(as_json=json) as terminal:
        from medray.demo import demo as verb

        done = verb(folder, subjects=subjects, seed=seed, progress=terminal.progress, say=terminal.say)
        report = done.result.evaluation.report
        terminal.show(metrics_table(report))
        terminal.show(report.verdict)
        for line in findings(done):
            terminal.show(line)
        terminal.show("\none patient, asked over HTTP:")
        for line in done.answered.lines():
            terminal.show(f"  {line}")
        terminal.show(f"\nreport   {shown(done.result.evaluation.paths.html)}")
        for name, path in done.answered.overlays.items():
            terminal.show(f"overlay  {shown(path)} ({name})")
        terminal.show(f"study    {shown(folder / 'study.yaml')}: change it, and `medray run` it")
        told: dict[str, Any] = {"pointing": asdict(done.truth.pointing)}
        told["lost"] = {name: asdict(each) for name, each in done.truth.lost.items()}
        terminal.result(
            {
                "verb": "demo",
                "digest": done.result.checkpoint.digest,
                "path": done.result.evaluation.paths.html,
                "model": str(done.version),
                "metrics": metrics_of(report),
                "truth": told,
                "answer": done.answered.answer,
                "overlays": done.answered.overlays,
                "steps": done.seconds,
            }
        )


def findings(done: Demo) -> list[str]:
    """What the demo found of the planted truth, in words."""
    from medray.report import words

    pointing = done.truth.pointing
    hits, control = words.share(pointing.hits, pointing.num), words.share(pointing.control, pointing.num)
    lines = [
        "\nwhat was planted, and what the model found:",
        f"  the map's maximum lies in the planted spot, to within a cell, in {hits} of the held-out films with one;",
        f"  a random point would in {pointing.chance:.0%}, the same network with random weights does in {control}",
    ]
    lines += [
        f"  without {name} the AUROC falls by {words.with_interval(each)}" for name, each in done.truth.lost.items()
    ]
    return lines
