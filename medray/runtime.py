"""Ray, started or attached to: settings by the cluster's size, token, temporary folder, log level, watchdog.

The one place for Ray's settings. A cluster that is started here is for one person on one machine: token
authentication, no dashboard, no usage statistics, nothing spilled in clear text, everything in a 0700 folder that is
removed at exit. To a cluster that runs already only the settings of the driver's side apply.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from medray.errors import ComputeError
from medray.study import Compute

Progress = Callable[[str, int, int], None]  # what is being done, done, total; total 0 = not known
Item = TypeVar("Item")

SMALL_CPUS = 8
STALLED_S = 120.0
CONNECT_S = 10.0
BLOCK_BYTES = 16 << 20  # flat memory, nothing spilled, the same CPU (measured against 128 MiB)
STORE_BYTES = 1 << 30  # of a small machine: paths and results go through the object store, not the data
MIN_STORE_BYTES = 80 << 20  # Ray refuses less
PREFIX = "medray-ray-"

# Read by Ray's own modules when they are imported, and by the worker processes, which inherit them.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its new default, chosen now: the old one warns
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",  # what fails is raised; the log repeats it
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three files a trial, which nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search as it ends all else
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a search goes on from Optuna's journal, not from Tune's own state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints where its folder was, at any verbosity
    "OMP_WAIT_POLICY": "passive",  # two spinning threads on busy cores cost 5 to 22 ms a sample, sleeping ones 1.5
}
_SMALL_SETTINGS = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # it starts 32 actors for each read
    "RAY_DATA_DEFAULT_SHUFFLE_STRATEGY": "sort_shuffle_pull_based",  # the default starts 3 to 5 processes an operation
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for this poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",  # a loaded laptop needs it; 15 s retried for ever
}

_token = ""  # one a process: Ray's core reads it once
_kept: contextlib.ExitStack | None = None  # of `one_cluster`


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that is connected to.

    Attributes:
        small: 8 CPUs at most; chooses the settings.
        started: here, so that it ends with the block and all that runs on it.
    """

    num_cpus: float
    num_gpus: float
    small: bool
    started: bool = False


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
    del what, done, total


@contextlib.contextmanager
def cluster(compute: Compute | None = None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """A Ray cluster to work on; inside another one it is that one.

    In a job, and where `RAY_ADDRESS` is set, it is that cluster; else that of `compute.address`; else one is started
    on this machine and ends with the block.

    Args:
        compute: where the study wants to run.
        num_cpus: of a cluster that is started here; the machine's unless given.

    Raises:
        ComputeError: no cluster answers, or none can be started.
    """
    import ray

    if ray.is_initialized():
        yield _connected()
        return
    with contextlib.ExitStack() as stack:
        yield (_kept or stack).enter_context(_opened(compute or Compute(), num_cpus))


@contextlib.contextmanager
def one_cluster() -> Iterator[None]:
    """Whatever asks for a cluster within the block gets the same one: opened for the first, closed with the block."""
    global _kept
    if _kept is not None:
        yield
        return
    with contextlib.ExitStack() as _kept:
        try:
            yield
        finally:
            _kept = None


@contextlib.contextmanager
def _opened(compute: Compute, num_cpus: int | None) -> Iterator[Cluster]:
    import ray

    address = "" if os.environ.get("RAY_ADDRESS") else compute.address
    attach = bool(address or os.environ.get("RAY_ADDRESS"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_SETTINGS))
        if attach:
            _probe(address or os.environ["RAY_ADDRESS"])
            try:
                # no further arguments: a job's driver is connected by what the job has set
                if address:
                    ray.init(address=address)
                else:
                    ray.init()
            except (RuntimeError, OSError) as error:
                where = address or os.environ["RAY_ADDRESS"]
                raise ComputeError(f"no Ray cluster answers at {where}. Start it, or leave the address out.") from error
            stack.callback(ray.shutdown)
            found = _connected()
            stack.enter_context(_environment(_SMALL_SETTINGS if found.small else {}))
        else:
            small = (num_cpus or len(os.sched_getaffinity(0))) <= SMALL_CPUS
            stack.enter_context(_environment(_SMALL_SETTINGS if small else {}))
            folder = stack.enter_context(_temporary_folder())
            stack.enter_context(_authentication(folder))
            _start(folder, compute, num_cpus, small)
            stack.callback(ray.shutdown)
            found = replace(_connected(), started=True)
        logging.getLogger("ray").setLevel(logging.ERROR)
        yield found


def settle(context: Any) -> None:
    """Give Ray Data what the environment cannot: smaller blocks, and the settings above where it was imported before.

    For the owners of Ray Data, before they make a dataset: `settle(ray.data.DataContext.get_current())`.
    """
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if _connected().small:
        context.use_datasource_v2 = False
        context.shuffle_strategy = type(context.shuffle_strategy)("sort_shuffle_pull_based")


def watchdog(items: Iterable[Item], what: str, stalled_s: float = STALLED_S) -> Iterator[Item]:
    """`items`, as they come; seen once: an iteration of Ray Data that never went on and never ended.

    Args:
        items: a Ray Data iteration. It is read in a thread of its own.
        what: is being done, for the message.
        stalled_s: how long an item may take to come.

    Raises:
        ComputeError: none came for `stalled_s` seconds, or Ray has lost what it ran on.
    """
    arrived: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=16)
    ended = threading.Event()

    def put(sort: str, value: Any) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                arrived.put((sort, value), timeout=0.5)
                return

    def read() -> None:
        try:
            for item in items:
                put("item", item)
                if ended.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            put("error", error)
        else:
            put("end", None)

    threading.Thread(target=read, name="medray watchdog", daemon=True).start()
    try:
        while True:
            try:
                sort, value = arrived.get(timeout=stalled_s)
            except queue.Empty:
                raise ComputeError(
                    f"{what}: no progress for {stalled_s:.0f} s. A worker waits, or dies again and again: see "
                    "`medray doctor`. The same command goes on from where this one stopped."
                ) from None
            if sort == "end":
                return
            if sort == "error":
                _raise(value, what)
            yield value
    finally:
        ended.set()


def _raise(error: BaseException, what: str) -> NoReturn:
    """What a task raised as it is; what happened to its process or node as ours."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        raise ComputeError(
            f"{what}: Ray has lost a process or node that it ran on ({type(error).__name__}): killed, or no memory "
            "left. The same command goes on from where this one stopped."
        ) from error
    raise error


def _probe(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try it for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # `auto`, say
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ComputeError(f"no Ray cluster answers at {address}. Start it, or leave the address out.") from error


def _connected() -> Cluster:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = resources.get("CPU", 0.0)
    return Cluster(num_cpus=cpus, num_gpus=resources.get("GPU", 0.0), small=cpus <= SMALL_CPUS)


def _start(folder: Path, compute: Compute, num_cpus: int | None, small: bool) -> None:
    """A cluster on this machine; `address="local"` never joins another one that happens to run here."""
    import ray

    options: dict[str, Any] = {}
    system: dict[str, Any] = {}
    if compute.spill:
        spill = Path(compute.spill).expanduser().resolve()
        spill.mkdir(mode=0o700, parents=True, exist_ok=True)
        options["object_spilling_directory"] = str(spill)
    else:
        system["automatic_object_spilling_enabled"] = False  # what is spilled is clear text; the variable has no effect
    options |= _object_store(folder, small)
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "ray"),  # Ray opens it to everybody; the folder above is ours alone
            _system_config=system,
            **options,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ComputeError(
            f"Ray does not start here ({type(error).__name__}). `medray doctor` names what is wrong with this machine."
        ) from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        ray.shutdown()
        raise ComputeError("Ray started without token authentication, so it was stopped. Unset RAY_AUTH_MODE.")


def _object_store(folder: Path, small: bool) -> dict[str, Any]:
    """How much shared memory, and where; a container's /dev/shm may hold 64 MB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = min(memory // 5, STORE_BYTES) if small else memory * 3 // 10
    shared = Path("/dev/shm")  # noqa: S108 - Linux's shared memory
    room = shutil.disk_usage(shared).free * 8 // 10 if shared.is_dir() else 0
    if room >= MIN_STORE_BYTES:
        return {"object_store_memory": max(MIN_STORE_BYTES, min(wanted, room))}
    return {"object_store_memory": max(MIN_STORE_BYTES, min(wanted, STORE_BYTES)), "_plasma_directory": str(folder)}


@contextlib.contextmanager
def _authentication(folder: Path) -> Iterator[None]:
    """A token of our own, mode 0600; never the user's ~/.ray/auth_token."""
    global _token
    _token = _token or secrets.token_hex(32)
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_token)
    # Ray's core has read RAY_AUTH_MODE at its import; unset, Ray chooses token for a new cluster and has it read again
    with _environment({"RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_MODE": ""}, override=True):
        yield


@contextlib.contextmanager
def _environment(settings: dict[str, str], *, override: bool = False) -> Iterator[None]:
    """Settings for this process and those it starts; what the user has set stays, unless `override`. Empty: unset."""
    before = {name: os.environ.get(name) for name in settings}
    for name, value in settings.items():
        if value and (override or name not in os.environ):
            os.environ[name] = value
        elif not value:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A 0700 folder for Ray, removed at the end, as are those that killed processes left behind.

    A folder is in use while its file `alive` is locked; a lock dies with its process, also in another container.
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > 30:  # a Unix socket's path may have 107 bytes, and Ray adds about 70
        parent = Path("/tmp")  # noqa: S108 - the folder inside is 0700 and of a random name
    for left in parent.glob(f"{PREFIX}*"):
        if not left.is_symlink() and left.stat().st_uid == os.getuid():
            with _locked(left / "alive") as free:
                if free:
                    shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix="medray-new-", dir=parent))
    folder = parent / made.name.replace("medray-new-", PREFIX)
    try:
        with _locked(made / "alive"):
            made.rename(folder)  # locked before another process can take it for one that was left behind
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock on `path`; it is held until the end."""
    try:
        file = path.open("a")
    except OSError:  # removed by another process meanwhile
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
