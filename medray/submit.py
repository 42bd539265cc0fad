"""Submit: a verb as a job on a Ray cluster. The study and the job's few lines are sent; data and keys never are.

A study whose sources all name a `root` of their own is sent. One whose data lie beside it is read where it lies, at the
same path, on a disk that the cluster sees. Environment variables that a study names are those of the cluster.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray import plugins
from medray.errors import AccessError, ComputeError, StudyError
from medray.study import Study
from medray.study.written import read, settings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: under which Ray knows it.
        address: of the cluster's job server.
    """

    id: str
    address: str

    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(_client(self.address).get_job_status(self.id).value)

    def wait(self) -> str:
        """The status in which it ends."""
        client = _client(self.address)
        while (status := str(client.get_job_status(self.id).value)) not in ENDED:
            time.sleep(POLL_S)
        return status

    def follow(self, write: Callable[[str], object]) -> str:
        """Hand on its log as it comes; the status in which it ends."""
        client = _client(self.address)

        async def tail() -> None:
            async for text in client.tail_job_logs(self.id):
                write(text)

        asyncio.run(tail())
        return self.wait()


def submit(
    verb: str, study: Path, changes: Sequence[str] = (), *, workspace: Path | None = None, address: str = ""
) -> Job:
    """Submit a verb of a study as a job.

    Args:
        verb: a file in `jobs/`.
        study: the study file.
        changes: `PATH=VALUE`, as `--set` takes them.
        workspace: its folder as the cluster sees it; else MEDRAY_WORKSPACE, else `.medray` beside a study that is not
            sent.
        address: of the cluster's job server; else RAY_API_SERVER_ADDRESS.

    Raises:
        StudyError: the study is wrong, there is no such job, or no workspace that would outlive the job.
        ComputeError: no job server answers at the address.
        AccessError: it does not know the token.
    """
    loaded = Study.load(study, settings(changes))
    jobs = _jobs()
    known = sorted(path.stem for path in jobs.glob("*.py"))
    if verb not in known:
        raise StudyError(f"no job '{verb}'{plugins.suggest(verb, known)} Known: {', '.join(known)}.")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise ComputeError("no cluster named: set RAY_API_SERVER_ADDRESS, such as http://127.0.0.1:8265")
    sent = all(Path(reader.root).is_absolute() or reader.root.startswith("${") for reader in loaded.sources.values())
    environment: dict[str, Any] = read((jobs / "runtime_env.yaml").read_text(encoding="utf-8")) or {}
    environment.pop("excludes", None)  # what is sent is chosen here
    variables = dict(environment.get("env_vars") or {})
    place = workspace or os.environ.get("MEDRAY_WORKSPACE") or (None if sent else loaded.folder / ".medray")
    if place:
        variables["MEDRAY_WORKSPACE"] = str(Path(place).expanduser().resolve())
    elif "MEDRAY_WORKSPACE" not in variables:
        raise StudyError("name a workspace that outlives the job, on a disk that the cluster sees, by --workspace")
    with tempfile.TemporaryDirectory(prefix="medray-job-") as folder:
        (Path(folder) / "jobs").mkdir()
        shutil.copy(jobs / f"{verb}.py", Path(folder) / "jobs")
        if sent:
            shutil.copy(study, Path(folder) / study.name)
        where = study.name if sent else str(study.resolve())
        chosen = [part for change in changes for part in ("--set", change)]
        entrypoint = shlex.join(["python", f"jobs/{verb}.py", where, *chosen, "--json"])
        try:
            job = _client(address).submit_job(
                entrypoint=entrypoint,
                runtime_env={**environment, "env_vars": variables, "working_dir": folder},
                metadata={"study": loaded.name, "verb": verb},
            )
        except RuntimeError as error:
            raise ComputeError(f"the cluster at {address} refused the job: {str(error).splitlines()[0]}") from error
    return Job(job, address)


def _jobs() -> Path:
    """The folder of jobs: of the working folder, else of the checkout that medray runs from."""
    for folder in (Path("jobs"), Path(__file__).resolve().parent.parent / "jobs"):
        if (folder / "runtime_env.yaml").is_file():
            return folder
    raise StudyError("no folder jobs/ here: run this in a checkout of medray, or copy its jobs/ here")


def _client(address: str) -> JobSubmissionClient:
    """A client that shows the cluster's token, which Ray's own does only where RAY_AUTH_MODE says so."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and path:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise AccessError(f"{path}: the cluster's token cannot be read ({error.strerror})") from error
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError as error:
        raise AccessError(f"{address} does not know this token: set RAY_AUTH_TOKEN_PATH to its file") from error
    except ConnectionError as error:
        raise ComputeError(f"no job server answers at {address}. Start it, or correct the address.") from error
    except RuntimeError as error:
        raise ComputeError(f"{address}: {str(error).splitlines()[0]}") from error
