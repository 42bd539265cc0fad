"""Doctor: the known traps of this machine, each with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OPEN_FILES = 4096  # Ray opens a few hundred a node, each worker's connections beside
SHARED_MEMORY = 2 << 30  # bytes; below it Ray keeps its objects in files on disk, and says so only in a log
MEMORY = 4 << 30  # bytes; a cluster with two workers and a dashboard holds 1.6 GB before any work
DISK_USED = 0.95  # Ray refuses to write objects to a disk that is fuller
SOCKET_PATH = 107  # bytes, AF_UNIX; Ray adds about 60 to its temp folder
PORTS = {8000: "serve", 8265: "Ray's dashboard and jobs", 6379: "Ray's head", 10001: "Ray's client"}


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: `fail` stops a run, `warn` slows it down or surprises.
        found: how it is here.
        fix: what to do; empty where nothing is.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def doctor(workspace: Path | None = None) -> list[Diagnosis]:
    """Look at everything; the worst first.

    Args:
        workspace: its keyring and disk are looked at too, where it exists.
    """
    found = [
        _python(),
        *_pins(),
        _torchvision(),
        _graphics(),
        _shared_memory(),
        _memory(),
        *_disks(workspace),
        _open_files(),
        _threads(),
        _temp_path(),
        *_ports(),
        _address(),
        _other_clusters(),
        _proxy(),
        *_keyring(workspace),
    ]
    return sorted(found, key=lambda each: ("fail", "warn", "ok").index(each.status))


def _python() -> Diagnosis:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Diagnosis("Python", "ok", found)
    return Diagnosis("Python", "fail", found, "make the environment with Python 3.11, 3.12 or 3.13")


def _pins() -> Iterator[Diagnosis]:
    """Ray and torch against what medray asks for."""
    for line in importlib.metadata.requires("medray") or []:
        match = re.match(r"(ray|torch)(?:\[[\w,]+\])?==([\d.]+?)(\.\*)?$", line.replace(" ", ""))
        if match is None:
            continue
        name, wanted, any_patch = match.groups()
        here = importlib.metadata.version(name)
        version = here.split("+")[0]
        if version == wanted or (any_patch and version.startswith(f"{wanted}.")):
            yield Diagnosis(name, "ok", here)
        else:
            fix = f"pip install '{name}=={wanted}{any_patch or ''}'"
            yield Diagnosis(name, "fail", f"{here}, medray is made for {wanted}{any_patch or ''}", fix)


def _torchvision() -> Diagnosis:
    """Only builds for CUDA exist; beside a CPU torch its mere presence breaks whoever looks for it."""
    found = [name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name)]
    if not found:
        return Diagnosis("torchvision", "ok", "not installed, as it should be")
    return Diagnosis(
        "torchvision",
        "warn",
        f"{', '.join(found)} is installed: built for another torch, it fails on import in libraries that look for it",
        f"pip uninstall {' '.join(found)}",
    )


def _graphics() -> Diagnosis:
    cards, torch = shutil.which("nvidia-smi"), importlib.metadata.version("torch")
    if cards and "+cpu" in torch:
        fix = "install the build of the same torch version for CUDA"
        return Diagnosis("graphics card", "warn", f"there is one, but torch {torch} cannot use it", fix)
    return Diagnosis("graphics card", "ok", "NVIDIA" if cards else "none")


def _shared_memory() -> Diagnosis:
    folder = Path("/dev/shm")  # noqa: S108 - where Linux has it; nothing is written
    if not folder.is_dir():
        return Diagnosis("shared memory", "warn", "no /dev/shm: Ray keeps its objects in files", "run on Linux")
    free = shutil.disk_usage(folder).free
    if free < SHARED_MEMORY:
        fix = "docker run --shm-size=4g, or mount -o remount,size=4g /dev/shm"
        return Diagnosis("shared memory", "warn", f"{_gib(free)} free in /dev/shm: Ray's objects go to disk", fix)
    return Diagnosis("shared memory", "ok", f"{_gib(free)} free in /dev/shm")


def _memory() -> Diagnosis:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return Diagnosis("memory", "ok", "not known here")
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = int(match[1]) << 10 if match else 0
    if free < MEMORY:
        return Diagnosis("memory", "warn", f"{_gib(free)} available", "end other programs, or use a larger machine")
    return Diagnosis("memory", "ok", f"{_gib(free)} available")


def _disks(workspace: Path | None) -> Iterator[Diagnosis]:
    for name, folder in (("temp disk", Path(tempfile.gettempdir())), ("workspace disk", workspace)):
        if folder is None or not folder.is_dir():
            continue
        usage = shutil.disk_usage(folder)
        used = 1 - usage.free / usage.total
        if used > DISK_USED:
            fix = "free some space: Ray writes no objects to a disk that is more than 95 % full"
            yield Diagnosis(name, "fail", f"{used:.0%} full", fix)
        else:
            yield Diagnosis(name, "ok", f"{_gib(usage.free)} free")


def _open_files() -> Diagnosis:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
        return Diagnosis("open files", "warn", f"at most {soft:,} a process", f"ulimit -n {most}")
    return Diagnosis("open files", "ok", f"{soft:,} a process" if soft != resource.RLIM_INFINITY else "unlimited")


def _threads() -> Diagnosis:
    cores = cores_here()
    wrong = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value and (not value.isdecimal() or not 0 < int(value) <= cores):
            wrong.append(f"{name}={value}")
    if wrong:
        return Diagnosis("threads", "warn", f"{', '.join(wrong)} with {cores} cores", f"unset {wrong[0].split('=')[0]}")
    return Diagnosis("threads", "ok", f"{cores} cores")


def cores_here() -> int:
    """Cores that this process may use: a container often has fewer than its machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _temp_path() -> Diagnosis:
    folder = tempfile.gettempdir()
    if len(folder) > SOCKET_PATH - 60:
        fix = "export TMPDIR=/tmp"
        return Diagnosis("temp folder", "fail", f"its path has {len(folder)} characters: too long for sockets", fix)
    return Diagnosis("temp folder", "ok", f"path of {len(folder)} characters")


def _ports() -> Iterator[Diagnosis]:
    for port, what in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken and port == 8000:
            yield Diagnosis(f"port {port}", "warn", f"taken; {what} uses it", "--set serve.port=ANOTHER")
        elif taken:
            yield Diagnosis(f"port {port}", "warn", f"taken: the port of {what}", "see RAY_ADDRESS and other clusters")
        else:
            yield Diagnosis(f"port {port}", "ok", "free")


def _address() -> Diagnosis:
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        return Diagnosis("RAY_ADDRESS", "warn", f"{address}: runs attach to that cluster", "unset RAY_ADDRESS")
    return Diagnosis("RAY_ADDRESS", "ok", "not set: a run starts its own cluster")


def _other_clusters() -> Diagnosis:
    """Other Ray nodes on this machine; medray never joins one unasked, but they share its cores and memory."""
    raylets = 0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            raylets += comm.read_text(encoding="utf-8").strip() == "raylet"
        except OSError:
            continue  # the process ended meanwhile, or is not ours to see
    if raylets:
        fix = "wait for them, or end those that are yours (`ray stop` would end all of them)"
        return Diagnosis("other clusters", "warn", f"{raylets} Ray node(s) run here and share cores and memory", fix)
    return Diagnosis("other clusters", "ok", "none")


def _proxy() -> Diagnosis:
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy") if os.environ.get(name)]
    spared = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if proxies and not {"127.0.0.1", "*"} & {part.strip() for part in spared.split(",")}:
        fix = "export no_proxy=127.0.0.1,localhost"
        return Diagnosis("proxy", "warn", f"{proxies[0]} also takes what goes to this machine itself", fix)
    return Diagnosis("proxy", "ok", "none in the way")


def _keyring(workspace: Path | None) -> Iterator[Diagnosis]:
    """Whoever reads the secret can link pseudonyms to people and open every sealed file."""
    folder = workspace / "keyring" if workspace else None
    if folder is None or not folder.is_dir():
        yield Diagnosis("keyring", "ok", "none yet")
        return
    loose = [path.name for path in sorted(folder.iterdir()) if _open_to_others(path)]
    if _open_to_others(folder) or loose:
        fix = f"chmod 700 {folder}; chmod 600 {folder}/*"
        yield Diagnosis("keyring", "fail", "others on this machine can read it", fix)
    elif folder.stat().st_uid != os.getuid():
        yield Diagnosis("keyring", "warn", "it belongs to another user", f"chown -R {os.getuid()} {folder}")
    else:
        yield Diagnosis("keyring", "ok", "only you can read it")


def _open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
