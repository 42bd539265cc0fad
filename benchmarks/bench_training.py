"""P2: samples a second of medray's training loop, fed by sealed shards, against plain PyTorch.

Films of 28 pixels, a ResNet-10 of width 32, batches of 64, one thread a process, no augmentation. The plain loop has
its samples as float tensors in memory: no files, no seals, no DataLoader. Two workers are two processes under gloo,
as Ray Train makes them; the peer is DistributedDataParallel as it comes. In each process an epoch of ours and an epoch
of each peer take turns.

Judged: samples a CPU second, which neighbours on the machine do not change, all work of all processes counted, also
what ours does beside its steps (opening, mixing). The wall clock is shown beside it. Two peers: the plain one (a
ResNet in PyTorch's default memory layout, `AdamW` as it comes), and as a measure of what loop and feed alone cost the
very network and optimizer of ours (channels last, fused).
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import tempfile
import time
import warnings
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # read when torch is loaded

import numpy as np
import torch
from measuring import Claim, arguments, cpu_s, finish
from plain import ResNet
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medray import loop
from medray.artifacts.manifest import Manifest, write_manifest
from medray.artifacts.shards import Entry, ShardFacts, Shards, write_shard
from medray.governance.crypto import Keyring
from medray.modalities.image import Image
from medray.models.cnn import Cnn
from medray.study import Train

SIDE, BATCH, PER_SHARD = 28, 64, 128
RATE, DECAY = 1e-3, 1e-4
SIDES = ("ours", "plain", "alike")


def write_shards(folder: Path, count: int) -> Shards:
    """Sealed shards as `medray train` leaves them, of films with a bright corner in the ill."""
    draw = np.random.default_rng(0)
    shards, entries, ill = Shards(folder, Keyring(folder.parent / "keyring")), [], []
    for number in range(count // PER_SHARD):
        y = (draw.random((PER_SHARD, 1)) < 0.5).astype(np.float32)
        x = draw.integers(0, 120, (PER_SHARD, 1, SIDE, SIDE)).astype(np.uint8)
        x[:, :, :8, :8] += (100 * y[:, :, None, None]).astype(np.uint8)
        ids = draw.integers(0, 256, (PER_SHARD, 16)).astype(np.uint8)
        arrays = {"x.films": x, "present.films": np.ones(PER_SHARD, bool), "y": y, "subject": ids, "unit": ids}
        write_shard(shards.vault, f"train-{number:05d}", arrays)
        entries.append(Entry(name=f"train-{number:05d}", split="train", rows=PER_SHARD))
        ill.append(y.mean())
    facts = ShardFacts(
        task="binary", classes=["ill"], shapes={"films": [1, SIDE, SIDE]}, entries=entries,
        class_share={"ill": float(np.mean(ill))}, units={"train": count},
    )  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    write_manifest(folder, Manifest(sort="shards", digest=folder.name, facts=facts.model_dump(), created=now))
    return shards


class Peer:
    """The training loop of PyTorch's tutorials."""

    def __init__(self, network: nn.Module, x: torch.Tensor, y: torch.Tensor, rank: int, world: int, fused: bool):
        self.x, self.y, self.rank, self.world = x, y, rank, world
        self.network = DistributedDataParallel(network) if world > 1 else network
        options = {"fused": True} if fused else {}
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, **options)
        self.objective = nn.BCEWithLogitsLoss()
        self.generator = torch.Generator().manual_seed(0)  # the same order in each process

    def epoch(self) -> None:
        self.network.train()
        order = torch.randperm(len(self.x), generator=self.generator)[self.rank :: self.world]
        total = 0.0
        for batch in order.split(BATCH // self.world):
            loss = self.objective(self.network(self.x[batch]), self.y[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()


class Alike(nn.Module):
    """Medray's network, called as any other."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network({"films": x}, {"films": torch.ones(len(x), dtype=torch.bool)})


def run(rank: int, world: int, folder: Path, port: int, rounds: int, width: int) -> None:
    """One process: epochs that take turns, a line of CPU and wall seconds each."""
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    torch.set_num_threads(1)
    if world > 1:
        where = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    shards = Shards(folder / "shards", Keyring(folder / "keyring"))
    model, modality = Cnn(depth=10, width=width), Image(size=SIDE)
    train = Train(epochs=99, batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY)
    ours = loop._Loop(
        loop.Setup(model, {"films": modality}, train, 0), shards, folder / f"run-{world}", rank, world, "cpu"
    )
    opened = [shards.read(entry.name) for entry in shards.entries("train")]
    x = modality.load(torch.from_numpy(np.concatenate([arrays["x.films"] for arrays in opened])))
    y = torch.from_numpy(np.concatenate([arrays["y"] for arrays in opened]))
    network = ResNet(blocks=1, width=width, small=True)
    alike = Alike(model.build({"films": (1, SIDE, SIDE)}, 1))
    assert sum(map(torch.numel, network.parameters())) == sum(map(torch.numel, ours.last.parameters())) + sum(
        map(torch.numel, ours.network.encoder("films").parameters())
    )
    plain, like = Peer(network, x, y, rank, world, False), Peer(alike, x, y, rank, world, True)
    steps = {"ours": lambda: ours.train_epoch(lambda _done, _total: None), "plain": plain.epoch, "alike": like.epoch}
    lines = []
    for number in range(rounds + 1):  # the first warms up
        line = {}
        for side in SIDES[number % 3 :] + SIDES[: number % 3]:
            if world > 1:
                distributed.barrier()
            cpu, wall = cpu_s(), time.monotonic()
            steps[side]()
            line[side] = (cpu_s() - cpu, time.monotonic() - wall)
        ours.end_epoch()  # judges and saves: not a step's work
        lines.append(line)
    (folder / f"{world}-{rank}.json").write_text(json.dumps(lines[1:]), encoding="utf-8")
    if world > 1:
        distributed.destroy_process_group()


def main() -> None:
    chosen = arguments(__doc__)
    count, width = (256, 8) if chosen.quick else (2048, 32)
    rounds = chosen.rounds or (2 if chosen.quick else 12)
    claims, wall = [], []
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as name:
        folder = Path(name)
        write_shards(folder / "shards", count)
        for world, title in ((1, "one worker"), (2, "two workers")):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            torch.multiprocessing.spawn(run, (world, folder, port, rounds, width), nprocs=world)
            ranks = [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]
            together = list(zip(*ranks, strict=True))  # a round of all ranks
            cpu = {side: [count / sum(line[side][0] for line in lines) for lines in together] for side in SIDES}
            clock = {side: [count / max(line[side][1] for line in lines) for lines in together] for side in SIDES}
            peer = "plain PyTorch" if world == 1 else "plain DDP"
            claims.append(Claim(f"{title} / {peer}", "samples/CPU s", cpu["ours"], cpu["plain"], 1.0, True))
            claims.append(Claim(f"{title} / the same tuned as ours", "samples/CPU s", cpu["ours"], cpu["alike"]))
            wall.append(Claim(f"{title} / {peer}, wall clock", "samples/s", clock["ours"], clock["plain"]))
    finish("training", claims + wall, chosen, samples=count, pixels=SIDE, batch=BATCH, threads=1, width=width)


if __name__ == "__main__":
    main()
