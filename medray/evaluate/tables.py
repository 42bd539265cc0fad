"""Tables: any CSV or Parquet file with labels and scores can be judged, whatever model made it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medray import inputs, limits, plugins
from medray import report as reports
from medray.artifacts.durable import sha256_of
from medray.errors import EvaluationError, ReadError
from medray.evaluate.evaluation import Evaluation, versions, write
from medray.metrics import Task
from medray.readers.csv import Csv
from medray.report import Certificate, Report
from medray.schema import NUMBER, canonical

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

TRUE, FALSE = ("1", "true"), ("0", "false")
ROWS = "scored"  # stands for the split


def evaluate_table(
    path: Path,
    *,
    label: str | Sequence[str],
    score: str | Sequence[str],
    folder: Path,
    subject: str = "",
    baseline: str | Sequence[str] = (),
    positive: str | Sequence[str] = (),
    task: Task | None = None,
    threshold: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The report of a table with one row a prediction.

    One label and one score column are a binary target (labels 0 and 1, or those in `positive`) or a regression; one
    label and several score columns a multiclass target, whose labels are the names of the score columns, with or
    without `score.`; as many label columns as score columns a multilabel one.

    Args:
        path: CSV (also gzipped, tab- or semicolon-separated) or Parquet.
        label: column or columns of what was observed; rows without one are left out and counted.
        score: column or columns of probabilities, or of predicted values.
        folder: into which the report is written.
        subject: column of whose row it is; intervals resample subjects. Each row its own unless given.
        baseline: score columns of something to compare with.
        positive: values of the label that are positive.
        task: to be given for a regression; found out otherwise.
        threshold: from which on a score is positive.
        num_resamples: of subjects.
        seed: of the resamples.

    Raises:
        ReadError: the file cannot be read.
        EvaluationError: a column is missing or holds something else, or labels and scores do not fit together.
    """
    began = time.monotonic()
    labels, scores, baselines = _names(label), _names(score), _names(baseline)
    found = _task(task, labels, scores)
    rows = _read(path, [*labels, *scores, *baselines, *_names(subject)])
    observed, classes = _labels(rows, found, labels, scores, _names(positive))
    values = {name: _numbers(rows, name) for name in [*scores, *baselines]}
    answers = np.stack([values[name] for name in scores], axis=1)
    beside = np.stack([values[name] for name in baselines], axis=1) if baselines else None
    subjects = _subjects(rows, subject)
    reasons = {
        "no label": np.isnan(observed).any(1),
        "no score": np.isnan(answers).any(1) | (np.isnan(beside).any(1) if beside is not None else False),
        "no subject": np.array([name is None for name in subjects]),
    }
    kept, left_out = np.ones(len(observed), bool), {}
    for reason, rows_without in reasons.items():
        left_out[reason] = int((kept & rows_without).sum())
        kept &= ~rows_without
    owners = np.array([name for name, keep in zip(subjects, kept, strict=True) if keep])
    measures = reports.measure(
        found,
        observed[kept],
        answers[kept],
        owners,
        classes,
        baseline_scores=None if beside is None else beside[kept],
        threshold=threshold,
        num_resamples=num_resamples,
        seed=seed,
    )
    unnamed = "No column names the subject: each row counts as its own, and intervals are too narrow if it is not."
    certificate = Certificate(
        subjects={ROWS: len(set(owners.tolist()))},
        units={ROWS: int(kept.sum())},
        units_per_class={ROWS: measures.num_positive} if measures.num_positive else {},
        disjoint=None,
        fitted_on="",
        left_out=left_out,
        earlier_looks=None,
        subject_rule=f"column {subject}" if subject else "each row is its own subject",
        warnings=() if subject else (unnamed,),
    )
    report = Report(
        study=path.name,
        target=", ".join(labels),
        unit="row",
        measures=measures,
        baseline=", ".join(baselines) or "baseline",
        certificate=certificate,
        parents={"table of scores": sha256_of(path)[:16]},
        seconds={"evaluate": round(time.monotonic() - began, 3)},
        versions=versions(),
        created=datetime.now(UTC),
    )
    return write(report, folder)


def _names(given: str | Sequence[str]) -> list[str]:
    return [name for name in ([given] if isinstance(given, str) else given) if name]


def _task(given: Task | None, labels: list[str], scores: list[str]) -> Task:
    if len(labels) == len(scores) == 1:
        return given or "binary"
    if len(labels) == len(scores) > 1:
        return "multilabel"
    if len(labels) == 1 and len(scores) > 1:
        return "multiclass"
    raise EvaluationError(
        f"{len(labels)} label and {len(scores)} score columns do not fit: give one of each, several scores for one "
        "label (multiclass), or as many labels as scores (multilabel)"
    )


def _read(path: Path, names: list[str]) -> pa.Table:
    limits.check_file(path)
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ReadError(path, f"not readable as Parquet ({type(error).__name__})") from error
    else:
        chunks = list(Csv(path=path.name).read(path))
        bad = [row for chunk in chunks for row in chunk.bad]
        if bad:
            raise ReadError(path, f"row {bad[0][0]}: {bad[0][1]}")
        table = pa.concat_tables([chunk.columns for chunk in chunks]) if chunks else pa.table({})
    for name in names:
        if name not in table.column_names:
            known = f" Known: {', '.join(table.column_names)}." if len(table.column_names) <= 40 else ""
            raise EvaluationError(f"{path}: no column '{name}'{plugins.suggest(name, table.column_names)}{known}")
    if not table.num_rows:
        raise EvaluationError(f"{path}: holds no rows")
    return table.select(list(dict.fromkeys(names)))


def _numbers(rows: pa.Table, name: str) -> Array:
    """A column as float64, missing as NaN."""
    columns, wrong = inputs.typed(rows, {name: NUMBER})
    if wrong:
        raise EvaluationError(f"row {next(iter(wrong))}: {next(iter(wrong.values()))}")
    return np.array(columns.column(0).to_numpy(), np.float64)


def _texts(rows: pa.Table, name: str) -> list[str | None]:
    return [canonical(cell) for cell in rows.column(name).to_pylist()]


def _subjects(rows: pa.Table, subject: str) -> list[str | None]:
    return _texts(rows, subject) if subject else [str(row) for row in range(rows.num_rows)]


def _labels(
    rows: pa.Table, task: Task, labels: list[str], scores: list[str], positive: list[str]
) -> tuple[Array, tuple[str, ...]]:
    """(n, k) of 0 and 1, or values; NaN where missing. And the names of the k classes."""
    if task == "regression":
        return _numbers(rows, labels[0])[:, None], ()
    if task == "multiclass":
        classes = [name.removeprefix("score.") for name in scores]
        found = _texts(rows, labels[0])
        unknown = len([text for text in found if text is not None and text not in classes])
        if unknown:
            raise EvaluationError(
                f"column '{labels[0]}': {unknown:,} labels are none of the score columns' names ({', '.join(classes)})"
            )
        observed = np.array([[np.nan if text is None else float(text == name) for name in classes] for text in found])
        return observed, tuple(classes)
    columns = [_binary(_texts(rows, name), name, positive) for name in labels]
    return np.stack(columns, axis=1), tuple(name.removeprefix("label.") for name in labels)


def _binary(texts: list[str | None], name: str, positive: list[str]) -> Array:
    wanted = {text for text in map(canonical, positive) if text is not None} or set(TRUE)
    others = {text for text in texts if text is not None} - wanted
    if not positive and not others <= set(FALSE):
        raise EvaluationError(
            f"column '{name}' holds other labels than 0 and 1: say which are positive, or that it is a regression"
        )
    return np.array([np.nan if text is None else float(text in wanted) for text in texts])
