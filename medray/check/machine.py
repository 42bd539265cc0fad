"""The machine: workers, devices, ports, the workspace and its disk, the key."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medray.check.findings import Findings
from medray.errors import ComputeError
from medray.study import Study

if TYPE_CHECKING:
    from medray.check.sources import Seen

CPUS_A_WORKER = 0.5  # what a training worker asks Ray for on a small machine
GROWTH = 4  # bytes in the workspace for a byte of raw files: the table, the shards, a rewrite
RESERVED = {6379: "Ray's head", 8265: "Ray's dashboard", 10001: "Ray's client", 8404: "HAProxy", 9101: "HAProxy"}
WORKER_PORTS = range(10002, 20000)  # Ray's own workers listen there


def check_machine(study: Study, workspace: Path | None, seen: Mapping[str, Seen], findings: Findings) -> None:
    """What this machine or cluster lacks."""
    _check_workers(study, findings)
    _check_port(study, findings)
    _check_workspace(workspace or study.folder / ".medray", sum(source.size for source in seen.values()), findings)
    _check_key(study, findings)
    _check_spill(study, findings)


def _check_workers(study: Study, findings: Findings) -> None:
    from medray.runtime import cluster

    compute = study.compute
    if compute.address or os.environ.get("RAY_ADDRESS"):
        try:
            with cluster(compute) as found:
                cpus, gpus, where = found.num_cpus, found.num_gpus, "the cluster"
        except ComputeError as error:
            findings.fail("compute.address", str(error).split(". ")[0], "Start it, or leave the address out")
            return
    else:
        cpus, gpus, where = float(len(os.sched_getaffinity(0))), _cards(study), "this machine"
    if compute.device == "cuda" and gpus < compute.workers:
        findings.fail(
            "compute.device", f"{compute.workers} workers need as many GPUs; {where} has {gpus:.0f}", "Say cpu"
        )
    elif compute.workers * CPUS_A_WORKER > cpus:
        most = int(cpus / CPUS_A_WORKER)
        findings.fail("compute.workers", f"{compute.workers} do not fit {where} of {cpus:.0f} CPUs", f"At most {most}")
    elif compute.workers * max(1, compute.threads) > cpus:
        what = f"{compute.workers} workers of {max(1, compute.threads)} threads on {cpus:.0f} CPUs slow each other down"
        findings.mind("compute.workers", what, "Fewer are faster")


def _cards(study: Study) -> float:
    if study.compute.device != "cuda":
        return 0.0
    import torch

    return float(torch.cuda.device_count())


def _check_port(study: Study, findings: Findings) -> None:
    port = study.serve.port
    if port in RESERVED:
        findings.fail("serve.port", f"{port} is the port of {RESERVED[port]}", "Choose another, such as 8000")
    elif port in WORKER_PORTS:
        findings.fail(
            "serve.port", f"{port} is one of those that Ray's workers take (10002 to 19999)", "Choose another"
        )
    elif 0 < port < 1024 and os.geteuid() != 0:
        findings.fail("serve.port", f"{port} is open to the administrator only", "Choose one of 1024 or more")


def _check_workspace(folder: Path, raw_bytes: int, findings: Findings) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        findings.fail("workspace", f"{there} cannot be written to", "Name another by --workspace or MEDRAY_WORKSPACE")
        return
    free = shutil.disk_usage(there).free
    if free < raw_bytes:
        what = f"{_gb(free)} free for {_gb(raw_bytes)} of raw files"
        findings.fail("workspace", what, "Free some space, or name another disk by --workspace")
    elif free < GROWTH * raw_bytes:
        what = f"{_gb(free)} free; {_gb(raw_bytes)} of raw files may take {_gb(GROWTH * raw_bytes)}"
        findings.mind("workspace", what, "Free some space, or name another disk by --workspace")


def _check_key(study: Study, findings: Findings) -> None:
    kind, _, name = study.governance.key.partition(":")
    if kind == "env" and not os.environ.get(name):
        findings.fail(
            "governance.key", f"the environment variable {name} is not set", "Set it to the installation's secret"
        )
    elif kind == "file" and not os.access(name, os.R_OK):
        findings.fail("governance.key", f"{name} cannot be read", "Put the installation's secret there, mode 0600")


def _check_spill(study: Study, findings: Findings) -> None:
    spill = study.compute.spill
    if spill and not os.access(spill, os.W_OK | os.X_OK):
        findings.fail(
            "compute.spill", f"{spill} is no folder that can be written to", "Make it, on an encrypted volume"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
