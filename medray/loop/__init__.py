"""Loop: shards -> the weights of the best epoch. Plain torch; it knows neither Ray nor where its rank comes from.

A run that was cut off goes on from its newest complete step and ends with the weights of an undisturbed one, bit for
bit: the order of samples is a function of seed, epoch and step, and each step seeds itself. Equal weights mean: same
seed, workers, threads and device.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medray import inputs
from medray.artifacts.checkpoint import newest_step, save_step
from medray.artifacts.shards import Shards
from medray.errors import TrainingError
from medray.loop.feed import Batch, Feed, Opened, seed_of
from medray.loop.objective import Objective
from medray.modalities import Modality
from medray.schema import TUNING

if TYPE_CHECKING:
    from medray.models import Model
    from medray.models._network import Network
    from medray.study import Train

Epoch = dict[str, float]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW
CHECK_STEPS = 50  # between looks at the loss where a look has to wait for a device or for other processes
JUDGE_ROWS = 256  # of the tuning split at a time
WARM_UP = 0.05  # share of the epochs in which a cosine schedule's learning rate rises
TICK_S = 1.0  # between two words about progress within an epoch


@dataclass(frozen=True)
class Setup:
    """What decides the weights, beside the shards and the number of processes."""

    model: Model
    modalities: Mapping[str, Modality]
    train: Train
    seed: int


@dataclass
class Trained:
    """What a run of the loop leaves.

    Attributes:
        weights: of the best epoch, on the CPU; their logits are log odds of the cohort, whatever `balance` weighed.
        history: one mapping an epoch: epoch, loss, tuning_loss, tuning_auroc or tuning_rmse, samples_per_s, waiting_s.
        best_epoch: counted from 1.
        steps: in all.
        resumed_at: the step from which this process went on; 0 where it began.
        warnings: for people.
    """

    weights: dict[str, Tensor]
    history: list[Epoch]
    best_epoch: int
    steps: int
    resumed_at: int
    warnings: list[str] = field(default_factory=list)


def fit(
    setup: Setup,
    shards: Shards,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    threads: int = 1,
    report: Callable[[Epoch], None] = lambda _: None,
    tick: Callable[[int, int], None] = lambda _done, _total: None,
) -> Trained:
    """Train, or go on training.

    Args:
        setup: model, modalities, the study's `train`, seed.
        shards: encoded samples.
        folder: of the checkpoint; rank 0 reads and writes `step-*` in it.
        rank: of this process.
        world: processes; with more than one, the caller has made torch's default process group.
        device: `cpu` or `cuda`.
        threads: of torch in this process.
        report: is given each epoch's history, in every process alike.
        tick: is told steps done and steps at most, now and then.

    Raises:
        TrainingError: loss or weights are not finite, or the workers do not fit the shards; in every process alike.
        IntegrityError: a shard or step was changed.
    """
    with _settled(device, threads):
        loop = _Loop(setup, shards, folder, rank, world, device)
        loop.resume()
        resumed_at = loop.total
        while not loop.done:
            loop.train_epoch(tick)
            report(loop.end_epoch())
        return Trained(
            weights=loop.answer(),
            history=loop.history,
            best_epoch=loop.best_epoch,
            steps=loop.total,
            resumed_at=resumed_at,
            warnings=loop.warnings,
        )


class _Loop:
    """The state of a run; everything in it that `_save` leaves out is made anew by `__init__`."""

    def __init__(self, setup: Setup, shards: Shards, folder: Path, rank: int, world: int, device: str) -> None:
        facts, train = shards.facts, setup.train
        self.setup, self.folder, self.rank, self.world, self.device = setup, folder, rank, world, device
        torch.manual_seed(seed_of("weights", setup.seed))
        shapes = {name: tuple(facts.shapes[name]) for name in setup.modalities}
        # built on the CPU: a device draws other numbers from the same seed
        network: Network = setup.model.build(shapes, inputs.num_outputs(facts.task, facts.classes))
        self.network = network.to(device)
        self.last = cast(nn.Linear, network.classifier[-1])
        # find_unused_parameters: else DDP lays its buckets out anew after the first step, and what a resumed run adds
        # up in another order differs in the last bit. forward_sync_buffers: rank 0's are taken where they are used.
        self.parallel = (
            DistributedDataParallel(self.network, find_unused_parameters=True, forward_sync_buffers=False)
            if world > 1
            else self.network
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.objective = Objective(facts, balance=train.balance, device=device)
        self.opened = Opened(shards)
        self.feed = Feed(
            self.opened,
            batch_size=train.batch_size,
            seed=setup.seed,
            mix_shards=train.mix_shards,
            rank=rank,
            world=world,
        )
        self.tuning = shards.entries(TUNING)
        self.warnings = [] if self.tuning else ["no tuning split: training stops early by the train loss"]
        self.generator = torch.Generator(device)  # of random transforms
        # of dropout and modality dropout; torch.manual_seed would take 80 us a step to look at every sort of device
        cuda = torch.cuda.default_generators[torch.cuda.current_device()] if device == "cuda" else None
        self.draws: torch.Generator = cuda or torch.default_generator
        self.epoch = self.step = self.total = 0  # epochs done, steps of this epoch done, steps done
        self.loss_sum = 0.0  # of this epoch's steps
        self.done = False
        self.history: list[Epoch] = []
        self.best_epoch, self.best_loss = 0, float("inf")
        self.best: dict[str, Tensor] = {}
        self.saved = ""
        self.pace: Epoch = {}
        self._unchecked: list[Tensor] = []

    # ---- an epoch

    def train_epoch(self, tick: Callable[[int, int], None]) -> None:
        """Take the steps of this epoch that are left."""
        train = self.setup.train
        steps, size = self.feed.shape(self.epoch)
        first, began, told, waited = self.step, time.monotonic(), time.monotonic(), 0.0
        check_steps = 1 if self.world == 1 and self.device == "cpu" else CHECK_STEPS
        self.parallel.train()
        batches = self.feed.batches(self.epoch, self.step)
        while self.step < steps:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            self._unchecked.append(self._take(batch))
            self.step, self.total = self.step + 1, self.total + 1
            saves = train.checkpoint_steps and self.total % train.checkpoint_steps == 0 and self.step < steps
            if saves or self.step % check_steps == 0 or self.step == steps:
                self._check()
            if saves:
                self._save()
            if self.rank == 0 and asked - told > TICK_S:
                told = asked
                tick(self.total, self.total + steps - self.step + (train.epochs - self.epoch - 1) * steps)
        seconds = max(time.monotonic() - began, 1e-9)
        self.pace = {
            "samples_per_s": round((steps - first) * size * self.world / seconds, 2),
            "waiting_s": round(waited, 3),
        }

    def end_epoch(self) -> Epoch:
        """Judge the weights, keep the best, decide whether to go on, save."""
        judged = self._judge()
        told: Epoch = {"epoch": self.epoch + 1, "loss": self.loss_sum / self.step}
        told |= {f"tuning_{name}": value for name, value in judged.items()}
        self.history.append(told | self.pace)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        loss = told.get("tuning_loss", told["loss"])
        if loss < self.best_loss or not self.best:
            self.best_epoch, self.best_loss, self.best = self.epoch, loss, self._weights()
        train = self.setup.train
        self.done = self.epoch >= train.epochs or self.epoch - self.best_epoch >= train.patience
        self._save()
        return self.history[-1]

    def _take(self, batch: Batch) -> Tensor:
        """One step; gives the loss."""
        seed = seed_of("step", self.setup.seed, self.epoch, self.step, self.rank)
        self.draws.manual_seed(seed)
        values, present, labels = self._tensors(batch)
        values = inputs.augment(self.setup.modalities, values, self.generator.manual_seed(seed))
        loss = self.objective.loss(self.parallel(values, present), labels)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _learning_rate(self) -> float:
        """Of this step: a function of how far the run is, so that a resumed one needs no state of it."""
        train = self.setup.train
        if train.schedule == "constant":
            return train.learning_rate
        done = (self.epoch + self.step / self.feed.shape(self.epoch)[0]) / train.epochs
        rising = min(1.0, (done + 1e-3) / WARM_UP)
        return train.learning_rate * rising * (1 + math.cos(math.pi * done)) / 2

    def _tensors(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        names = self.setup.modalities
        arrays = {name: batch[f"x.{name}"] for name in names}
        masks = {name: batch[f"present.{name}"] for name in names}
        values, present = inputs.to_tensors(names, arrays, masks, self.device)
        return values, present, torch.tensor(batch["y"], device=self.device)

    def _check(self) -> None:
        """Add up the losses since the last look, the mean of all ranks.

        Raises:
            TrainingError: one is not finite; every rank sees the same.
        """
        if not self._unchecked:
            return
        losses = torch.stack(self._unchecked).double()
        if self.world > 1:
            distributed.all_reduce(losses)
            losses /= self.world
        first = self.step - len(self._unchecked)
        self._unchecked = []
        for number, loss in enumerate(losses.tolist(), start=first + 1):
            if not abs(loss) < float("inf"):
                raise TrainingError(self._not_finite("loss is", number))
            self.loss_sum += loss

    def _not_finite(self, what: str, step: int) -> str:
        good = f"The last good checkpoint is {self.saved}." if self.saved else "There is no earlier checkpoint."
        return (
            f"epoch {self.epoch + 1}, step {step}: the {what} not finite. {good} "
            f"Lower train.learning_rate (now {self.setup.train.learning_rate:g}) and train again."
        )

    def _judge(self) -> Epoch:
        """Loss and main metric of the tuning split, the same in every process: all see all logits."""
        if not self.tuning:
            return {}
        if self.world > 1:  # batch normalization's running statistics are those of rank 0
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, 0)
        self.network.eval()
        mine = [torch.empty((0, 2 * self.last.out_features), device=self.device)]
        with torch.inference_mode():
            for entry in self.tuning[self.rank :: self.world]:
                shard = self.opened.read(entry.name)
                for start in range(0, entry.rows, JUDGE_ROWS):
                    part = {key: values[start : start + JUDGE_ROWS] for key, values in shard.items()}
                    values, present, labels = self._tensors(part)
                    mine.append(torch.cat([self.network(values, present).float(), labels], dim=1))
            logits, labels = self._gathered(torch.cat(mine)).chunk(2, dim=1)
            return self.objective.judged(logits, labels)

    def _gathered(self, mine: Tensor) -> Tensor:
        """The rows of all ranks, in the same order everywhere."""
        if self.world == 1:
            return mine
        rows = [sum(entry.rows for entry in self.tuning[rank :: self.world]) for rank in range(self.world)]
        padded = mine.new_zeros((max(rows), mine.shape[1]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in rows]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    # ---- what outlives the process

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def _save(self) -> None:
        """Keep everything that the next step depends on; rank 0 writes.

        Raises:
            TrainingError: a weight is not finite; weights are the same in every process.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            raise TrainingError(self._not_finite("weights are", self.total))
        self.saved = f"step {self.total} in {self.folder}"
        if self.rank:
            return
        weights = {f"now.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.best_epoch != self.epoch or self.step:
            weights |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        moments = {
            f"{key}.{name}": self.optimizer.state[parameter][key]
            for name, parameter in self.network.named_parameters()
            for key in self.optimizer.state[parameter]
        }
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "done": self.done,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if self.best else None,
        }
        save_step(self.folder, self.total, weights, moments, state)

    def resume(self) -> None:
        """Go on from the newest step, if there is one; rank 0 reads it, so that all go on from the same."""
        found: list[Any] = [newest_step(self.folder) if self.rank == 0 else None]
        if self.world > 1:
            distributed.broadcast_object_list(found, 0)
        if found[0] is None:
            return
        self.total, weights, moments, state = found[0]
        kept: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
        for key, tensor in weights.items():
            sort, name = key.split(".", 1)
            kept[sort][name] = tensor
        self.network.load_state_dict(kept["now"])
        self.epoch, self.step, self.done = state["epoch"], state["step"], state["done"]
        self.loss_sum, self.history = state["loss_sum"], state["history"]
        if state["best_loss"] is not None:
            self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]
            self.best = kept["best"] or self._weights()
        for name, parameter in self.network.named_parameters():
            for key in [key for key in MOMENTS if f"{key}.{name}" in moments]:
                saved = moments[f"{key}.{name}"]
                # laid out as the weights are (channels last, say): the fused optimizer walks both side by side
                like = torch.empty_like(parameter if saved.ndim else saved, device=self.device)
                self.optimizer.state[parameter][key] = like.detach().copy_(saved)
        self.saved = f"step {self.total} in {self.folder}"

    def answer(self) -> dict[str, Tensor]:
        """The best weights, with what the class weights shifted taken off the last layer's bias."""
        self.network.load_state_dict(self.best)
        with torch.no_grad():
            self.last.bias.sub_(self.objective.shift)
        return self._weights()


@contextlib.contextmanager
def _settled(device: str, threads: int) -> Iterator[None]:
    """Set torch up to repeat itself, and put it back as it was."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    forked = torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else [])
    try:
        with forked, warnings.catch_warnings():
            # what DDP says of find_unused_parameters where every parameter is used
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
