"""The training loop, without Ray: order of samples, exact resume, early stopping, what a probability means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medray import loop
from medray.artifacts.checkpoint import newest_step
from medray.artifacts.shards import Shards
from medray.errors import TrainingError
from medray.inputs import num_outputs, to_tensors
from medray.loop import Setup, Trained, fit
from medray.loop.baseline import baseline_scores, fit_baseline
from medray.loop.feed import Feed, Opened
from medray.loop.objective import Objective
from medray.metrics import main_value
from tests.samples import setup, write_shards


class Cut(Exception):  # noqa: N818 - it stands for a killed process
    pass


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def whole(shards: Shards, split: str) -> dict[str, np.ndarray[Any, Any]]:
    parts = [shards.read(entry.name) for entry in shards.entries(split)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def scores(made: Setup, trained: Trained, shards: Shards, split: str = "held_out") -> np.ndarray[Any, Any]:
    """As `predict` scores: the weights' own logits."""
    facts, samples = shards.facts, whole(shards, split)
    shapes = {name: tuple(facts.shapes[name]) for name in made.modalities}
    network = made.model.build(shapes, num_outputs(facts.task, facts.classes)).eval()
    network.load_state_dict(trained.weights)
    arrays = {name: samples[f"x.{name}"] for name in made.modalities}
    present = {name: samples[f"present.{name}"] for name in made.modalities}
    with torch.inference_mode():
        logits = network(*to_tensors(made.modalities, arrays, present))
    return Objective(facts, balance=False).scores(logits).numpy()


# ---- the feed


def feed(shards: Shards, **options: Any) -> Feed:
    return Feed(Opened(shards), **{"batch_size": 16, "seed": 3, "mix_shards": 3, **options})


def rows(batches: list[dict[str, np.ndarray[Any, Any]]]) -> list[bytes]:
    return [row.tobytes() for batch in batches for row in batch["x.labs"]]


def test_an_epoch_shows_every_row_once_but_those_that_fill_no_batch(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 117),))
    shown = list(feed(shards).batches(0))
    assert [len(batch["y"]) for batch in shown] == [16] * 7
    assert len(set(rows(shown))) == 112
    assert set(rows(shown)) < {row.tobytes() for row in whole(shards, "train")["x.labs"]}


def test_labels_stay_with_their_samples(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s")
    train = whole(shards, "train")
    label_of = {row.tobytes(): label for row, label in zip(train["x.labs"], train["y"], strict=True)}
    for batch in feed(shards).batches(1):
        assert all(label_of[row.tobytes()] == label for row, label in zip(batch["x.labs"], batch["y"], strict=True))


def test_each_epoch_has_another_order_and_the_same_seed_the_same(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s")
    first = rows(list(feed(shards).batches(0)))
    assert first == rows(list(feed(shards).batches(0)))
    assert first != rows(list(feed(shards).batches(1)))
    assert first != rows(list(feed(shards, seed=4).batches(0)))


@pytest.mark.parametrize("mix_shards", [1, 2, 100])
@pytest.mark.parametrize("batch_size", [5, 16, 50])
def test_a_feed_goes_on_at_any_step(tmp_path: Path, mix_shards: int, batch_size: int) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 117),))
    fed = feed(shards, mix_shards=mix_shards, batch_size=batch_size)
    shown = list(fed.batches(2))
    for start in range(len(shown) + 1):
        assert rows(list(fed.batches(2, start))) == rows(shown[start:])


def test_ranks_share_an_epoch_without_overlap_in_equal_steps(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 117),))
    ranks = [feed(shards, batch_size=18, rank=rank, world=3) for rank in range(3)]
    shown = [list(rank.batches(0)) for rank in ranks]
    assert len({rank.shape(0) for rank in ranks}) == 1
    assert len({len(batches) for batches in shown}) == 1
    assert {len(batch["y"]) for batches in shown for batch in batches} == {6}
    seen = [row for batches in shown for row in rows(batches)]
    assert len(seen) == len(set(seen))


def test_few_samples_make_small_batches_instead_of_none(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 10),))
    assert [len(batch["y"]) for batch in feed(shards).batches(0)] == [10]


def test_more_workers_than_shards_are_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 20),))
    with pytest.raises(TrainingError, match=r"2 train shards cannot feed 4 workers. Lower compute.workers to 2"):
        feed(shards, world=4)


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s")
    with pytest.raises(TrainingError, match=r"cannot be shared equally by 3 workers. Set train.batch_size to 18"):
        feed(shards, world=3)


def test_opened_shards_stay_within_their_budget(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 64),))
    size = sum(values.nbytes for key, values in shards.read("train-0000").items() if key not in {"subject", "unit"})
    opened = Opened(shards, budget=2 * size)
    kept = [opened.read(entry.name)["y"] is opened.read(entry.name)["y"] for entry in shards.entries("train")]
    assert kept == [True, True, False, False]


# ---- exact resume


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", films=True)
    made = [fit(setup(films=True, epochs=2), shards, tmp_path / name).weights for name in ("a", "b")]
    assert equal(*made)
    assert not equal(made[0], fit(setup(films=True, epochs=2, seed=1), shards, tmp_path / "c").weights)


def test_a_run_leaves_no_trace_in_the_process_that_called_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s")
    torch.manual_seed(1)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(1)
    fit(setup(epochs=1), shards, tmp_path / "a", threads=threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("films", [False, True], ids=["labs", "films"])
@pytest.mark.parametrize("checkpoint_steps", [0, 3])
def test_a_run_cut_anywhere_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, films: bool, checkpoint_steps: int
) -> None:
    shards = write_shards(tmp_path / "s", films=films, absent=0.2)
    made = setup(films=films, epochs=3, checkpoint_steps=checkpoint_steps)
    undisturbed = fit(made, shards, tmp_path / "undisturbed")
    steps = undisturbed.steps
    take = loop._Loop._take
    for cut in range(1, steps, 4 if films else 1):
        folder = tmp_path / f"cut-{cut}"

        def cut_off(self: Any, batch: Any, cut: int = cut) -> Any:
            if self.total == cut:
                raise Cut
            return take(self, batch)

        monkeypatch.setattr(loop._Loop, "_take", cut_off)
        with pytest.raises(Cut):
            fit(made, shards, folder)
        monkeypatch.setattr(loop._Loop, "_take", take)
        resumed = fit(made, shards, folder)
        interval = checkpoint_steps or steps // 3
        assert cut - resumed.resumed_at <= interval
        assert equal(resumed.weights, undisturbed.weights)
        figures = [{key: epoch[key] for key in ("epoch", "loss", "tuning_loss")} for epoch in undisturbed.history]
        assert [{key: epoch[key] for key in figures[0]} for epoch in resumed.history] == figures


def test_a_run_that_had_ended_is_not_trained_again(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s")
    first = fit(setup(), shards, tmp_path / "a")
    again = fit(setup(), shards, tmp_path / "a")
    assert again.resumed_at == again.steps == first.steps
    assert equal(again.weights, first.weights)
    assert again.history == first.history


# ---- what it learns, and when it stops


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_every_task_learns_its_planted_cause(tmp_path: Path, task: str) -> None:
    shards = write_shards(tmp_path / "s", task=task, splits=(("train", 400), ("tuning", 100), ("held_out", 200)))
    made = setup(epochs=30, learning_rate=0.01)
    trained = fit(made, shards, tmp_path / "a")
    labels = whole(shards, "held_out")["y"]
    value = main_value(task, labels, scores(made, trained, shards))
    assert value is not None
    if task == "regression":
        assert value < 0.4 * labels.std()
        assert trained.history[-1]["tuning_rmse"] < 0.4 * labels.std()
    else:
        assert value > 0.9
        assert trained.history[-1]["tuning_auroc"] > 0.9


@pytest.mark.parametrize("balance", [True, False])
def test_a_probability_means_what_it_says_whatever_classes_weigh(tmp_path: Path, balance: bool) -> None:
    shards = write_shards(tmp_path / "s", prevalence=0.15, splits=(("train", 600), ("tuning", 200), ("held_out", 1000)))
    made = setup(epochs=20, learning_rate=0.01, balance=balance)
    predicted = scores(made, fit(made, shards, tmp_path / "a"), shards)
    assert abs(predicted.mean() - whole(shards, "held_out")["y"].mean()) < 0.04


def test_training_stops_early_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 48), ("tuning", 200), ("held_out", 10)))
    made = setup(epochs=200, learning_rate=0.05, patience=4, balance=False)
    trained = fit(made, shards, tmp_path / "a")
    losses = [epoch["tuning_loss"] for epoch in trained.history]
    assert len(losses) < 200
    assert trained.best_epoch == losses.index(min(losses)) + 1 == len(losses) - 4
    predicted = torch.from_numpy(scores(made, trained, shards, "tuning"))
    loss = torch.nn.functional.binary_cross_entropy(predicted, torch.tensor(whole(shards, "tuning")["y"]))
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_without_a_tuning_split_the_train_loss_decides_and_it_is_said(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", splits=(("train", 48), ("held_out", 10)))
    trained = fit(setup(epochs=2), shards, tmp_path / "a")
    assert trained.warnings == ["no tuning split: training stops early by the train loss"]
    assert "tuning_loss" not in trained.history[0]


def test_a_loss_that_is_not_finite_stops_with_its_place_and_the_last_good_step(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", task="regression")
    made = setup(epochs=50, learning_rate=1e18, checkpoint_steps=1)
    with pytest.raises(TrainingError, match=r"epoch \d+, step \d+: the .* not finite. .*learning_rate \(now 1e\+18\)"):
        fit(made, shards, tmp_path / "a")
    found = newest_step(tmp_path / "a")
    assert found is None or all(bool(tensor.isfinite().all()) for tensor in found[1].values())


def test_progress_is_told_each_epoch_and_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.0)
    shards = write_shards(tmp_path / "s")
    epochs: list[dict[str, float]] = []
    ticks: list[tuple[int, int]] = []
    tick: Callable[[int, int], None] = lambda done, total: ticks.append((done, total))  # noqa: E731
    trained = fit(setup(epochs=2), shards, tmp_path / "a", report=epochs.append, tick=tick)
    assert epochs == trained.history
    assert {"epoch", "loss", "tuning_loss", "tuning_auroc", "samples_per_s", "waiting_s"} == set(epochs[0])
    assert ticks[-1] == (trained.steps, trained.steps)


# ---- what it is compared with


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_the_baseline_learns_the_planted_cause_of_every_task(tmp_path: Path, task: str) -> None:
    shards = write_shards(tmp_path / "s", task=task, films=True, absent=0.2, splits=(("train", 900), ("held_out", 200)))
    made, samples = setup(films=True), whole(shards, "held_out")
    fitted = fit_baseline(shards, made.modalities)
    arrays = {name: samples[f"x.{name}"] for name in made.modalities}
    present = {name: samples[f"present.{name}"] for name in made.modalities}
    found = baseline_scores(fitted, task, made.modalities, arrays, present)
    there = samples["present.labs"] & samples["present.films"]
    value = main_value(task, samples["y"][there], found[there])
    assert value is not None
    assert value < 8 if task == "regression" else value > 0.8
    arrays["labs"] = np.where(present["labs"][:, None], arrays["labs"], 1e6).astype(np.float32)
    assert np.allclose(baseline_scores(fitted, task, made.modalities, arrays, present), found)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_the_baseline_knows_classes_that_train_lacks(tmp_path: Path, num_classes: int) -> None:
    from medray.loop.baseline import _fitted

    inputs = np.linspace(-1, 1, 40)[:, None]
    labels = np.eye(3)[np.where(inputs[:, 0] > 0, num_classes - 1, 0)]
    weight, bias = _fitted("multiclass", inputs, labels)
    logits = inputs @ weight.T + bias
    assert (logits.argmax(axis=1) == labels.argmax(axis=1)).all()
    assert (logits[:, num_classes:] < logits.max(axis=1, keepdims=True) - 10).all()
