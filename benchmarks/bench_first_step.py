"""P3: CPU seconds from `medray train` (one worker) to the first step, beyond a plain PyTorch script's.

200 films of 28 pixels, ingested before; a ResNet-10 of width 32, a batch of 32, one thread. Judged with table and
encoded shards there already, as at every training after the first; shown too with the encoding. The plain script
imports torch, loads the encoded films from a file and takes one step.

Counted: user and system time of every process that the command starts, Ray's own with them, until the checkpoint of
step 1 lies on the disk; /proc is read 20 times a second. CPU that a process spends between its last reading and its
end is counted where its parent has waited for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import Claim, arguments, finish
from PIL import Image

HERE = Path(__file__).resolve().parent
MEDRAY = Path(sys.executable).parent / "medray"
TICKS = os.sysconf("SC_CLK_TCK")
SIDE, BATCH, WIDTH = 28, 32, 32
POLL_S, LIMIT_S = 0.05, 600.0

STUDY = f"""
name: first-step
sources:
  films:
    kind: image
    path: "films/*/*.png"
    subject: {{path: '(s\\d+)'}}
    columns: {{finding: {{path: '/(ill|well)/'}}}}
modalities:
  films: {{kind: image, size: {SIDE}}}
cohort:
  unit: films
  target: {{column: films.finding, positive: ill}}
model: {{kind: cnn, depth: 10, width: {WIDTH}}}
train: {{epochs: 1, batch_size: {BATCH}, checkpoint_steps: 1}}
compute: {{workers: 1, threads: 1, device: cpu}}
"""

PLAIN = f"""
import sys
import numpy as np
import torch
from plain import ResNet
torch.set_num_threads(1)
arrays = np.load(sys.argv[1])
network = ResNet(blocks=1, width={WIDTH}, small=True)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
x = torch.from_numpy(arrays["x"][:{BATCH}]).float().div_(255).sub_(0.5).div_(0.25)
loss = torch.nn.BCEWithLogitsLoss()(network(x), torch.from_numpy(arrays["y"][:{BATCH}]))
optimizer.zero_grad()
loss.backward()
optimizer.step()
print(loss.item())
"""


class Tree:
    """The CPU seconds of a process and all that descend from it."""

    def __init__(self, root: int) -> None:
        self.known = {root}
        self.seen: dict[int, tuple[int, int]] = {}  # own ticks, and those of children that it has waited for
        self.living: set[int] = set()

    def read(self) -> float:
        parents, ticks = {}, {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                    parents[int(path.name)] = int(fields[1])
                    ticks[int(path.name)] = (int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]))
        grown = True
        while grown:
            new = {pid for pid, parent in parents.items() if parent in self.known} - self.known
            self.known |= new
            grown = bool(new)
        self.living = self.known & ticks.keys()
        self.seen |= {pid: ticks[pid] for pid in self.living}
        own = sum(self.seen[pid][0] for pid in self.living)
        waited = sum(self.seen[pid][1] for pid in self.living)
        ended = sum(seen[0] for pid, seen in self.seen.items() if pid not in self.living)
        # those that ended were mostly waited for too: the larger of the two sums holds nearly all of the other
        return (own + max(waited, ended)) / TICKS


def ours(folder: Path, environment: dict[str, str]) -> tuple[float, float, int]:
    """CPU and wall seconds from the command to step 1, and the processes at work then."""
    shutil.rmtree(folder / "work" / "checkpoints", ignore_errors=True)
    began = time.monotonic()
    process = subprocess.Popen(command(folder), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    tree = Tree(process.pid)
    while not list((folder / "work").glob("checkpoints/*/step-00000001")):
        tree.read()
        if process.poll() is not None or time.monotonic() - began > LIMIT_S:
            process.kill()
            sys.exit(f"medray train took no step: {process.communicate()[1].decode()[-2000:]}")
        time.sleep(POLL_S)
    found = tree.read(), time.monotonic() - began, len(tree.living)
    process.send_signal(signal.SIGINT)  # Ctrl-C: Ray ends with it
    process.communicate(timeout=120)
    return found


def plain(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    began = time.monotonic()
    arguments = [sys.executable, "-c", PLAIN, str(folder / "films.npz")]
    process = subprocess.Popen(arguments, env={**environment, "PYTHONPATH": str(HERE)}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return used.ru_utime + used.ru_stime, time.monotonic() - began


def command(folder: Path) -> list[str]:
    return [str(MEDRAY), "train", str(folder / "study.yaml"), "--workspace", str(folder / "work")]


def prepare(folder: Path, count: int, environment: dict[str, str]) -> None:
    """The films, the study, its table and its shards."""
    draw = np.random.default_rng(0)
    films = draw.integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)
    ill = (np.arange(count) % 2).astype(np.float32)
    for number, film in enumerate(films):
        path = folder / "films" / ("ill" if ill[number] else "well") / f"s{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film).save(path)
    np.savez(folder / "films.npz", x=films[:, None], y=ill[:, None])
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    ingest = [str(MEDRAY), "ingest", *command(folder)[2:]]
    for each in (ingest, command(folder)):
        done = subprocess.run(each, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(each)}: {done.stderr[-2000:]}")


def main() -> None:
    chosen = arguments(__doc__)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "MEDRAY_WORKSPACE"):
        environment.pop(name, None)
    encoded, encoding, peer, processes = [], [], [], 0
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as name:
        folder = Path(name)
        prepare(folder, 200, environment)
        plain(folder, environment)  # files come from the disk once
        for number in range(rounds):
            peer.append(plain(folder, environment))
            cpu, wall, processes = ours(folder, environment)
            encoded.append((cpu, wall))
            if not chosen.quick or number == 0:
                shutil.rmtree(folder / "work" / "shards")
                encoding.append(ours(folder, environment)[:2])
    (cpu, wall), (cpu_too, wall_too), (base, base_wall) = (
        list(zip(*each, strict=True)) for each in (encoded, encoding, peer)
    )
    claims = [
        Claim("to the first step - plain PyTorch", "CPU s", cpu, base, 8.0, beyond=True),
        Claim("with the encoding - plain PyTorch", "CPU s", cpu_too, base, beyond=True),
        Claim("to the first step - plain PyTorch, wall clock", "s", wall, base_wall, beyond=True),
        Claim("with the encoding - plain PyTorch, wall clock", "s", wall_too, base_wall, beyond=True),
    ]
    finish(
        "first_step", claims, chosen, samples=200, pixels=SIDE, batch=BATCH, threads=1, processes_at_step_1=processes
    )


if __name__ == "__main__":
    main()
