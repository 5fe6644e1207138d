"""A search as a job of Slurm: a script that starts a Ray on its nodes, searches, and goes back to the queue in time."""

from __future__ import annotations

import importlib.resources
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from search import mounts, output, storage
from search.errors import SearchError, UserError
from search.space import Space

NOTICE_S = 300
"""Seconds before the end of a job at which its trials save and stop; a quarter of a job that is shorter than 20 min."""

LOG = "vqsearch-%j.log"
"""The job's output, in the folder in which it was submitted; %j is its number."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What Slurm is asked for.

    Attributes:
        nodes: how many.
        gpus: of each node.
        time: limit, as Slurm writes it, such as 24:00:00 or 2-00.
        cpus: cores of each node; None for what its trials ask for.
        memory, partition, account: as sbatch takes them; "" for Slurm's default.
        options: further options of sbatch.
        setup: lines of shell that come first, such as ``module load cuda``.
        container: an Apptainer image in which everything runs; "" for this Python.
        shared: take the paths to be the same on all nodes, whatever their file systems.
    """

    nodes: int
    gpus: int
    time: str
    cpus: int | None = None
    memory: str = ""
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    container: str = ""
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Search:
    """What the job runs.

    Attributes:
        command: launch, compare or transfer.
        name: of the study or comparison.
        file: its space file or comparison.
        space: what its trials ask for, and where they find files.
        arguments: words after the command and the file, the storage and the output root aside.
        url: storage URL.
        storage_file: file that holds it; "" where it may be shown.
        root: output root.
    """

    command: str
    name: str
    file: Path
    space: Space
    arguments: tuple[str, ...]
    url: str
    storage_file: str
    root: str


def script(job: Job, search: Search, folder: Path) -> str:
    """The batch script.

    Args:
        job: what Slurm is asked for.
        search: what it runs.
        folder: in which it runs, and writes its log.

    Raises:
        UserError: the nodes could not reach storage, output root or files, or a value that Slurm would not take.
    """
    _check(job, search)
    url = _reachable_storage(search, job.shared)
    root = output.absolute(search.root)
    if "://" not in root:
        _require_shared(
            Path(root), "--output", "a folder on a file system that all nodes share, or a bucket", job.shared
        )
    where = ["--storage-file", str(Path(search.storage_file).absolute())] if search.storage_file else ["--storage", url]
    command = [
        "search",
        search.command,
        str(search.file.absolute()),
        *search.arguments,
        *where,
        "--output",
        root,
    ]
    seconds = _seconds(job.time)
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in _options(job, search, seconds)),
        "# Made by vqsearch slurm. Submitted again, it goes on with the search.",
        "# shellcheck disable=SC2016 # a $ in the name of a file is one",
        f"folder={shlex.quote(str(folder))}",
        f"gpus={job.gpus}",
        f"cpus={_cpus(job, search.space)}",
        f"python=({shlex.join(_python(job, search, root, url, folder))})",
        f"command=({shlex.join(command)})",
        *job.setup,
        importlib.resources.files("search").joinpath("templates/slurm.sh").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def submit(text: str) -> str:
    """Hand a script to Slurm.

    Returns:
        The number of the job.

    Raises:
        UserError: Slurm is not here, or does not take it.
        SearchError: it does not answer.
    """
    hidden = {name: value for name, value in os.environ.items() if name not in storage.SECRETS}  # Slurm stores the rest
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=text, capture_output=True, text=True, env=hidden, timeout=120, check=False
        )
    except FileNotFoundError:
        raise UserError(
            "--submit: there is no sbatch here; expected a login node of the cluster, or the script without --submit"
        ) from None
    except subprocess.TimeoutExpired:
        raise SearchError("--submit: sbatch does not answer within 120 s") from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"--submit: Slurm does not take the job: {words}")
    return done.stdout.strip().split(";")[0]


def _options(job: Job, search: Search, seconds: int) -> list[str]:
    plain = {"partition": job.partition, "account": job.account, "mem": job.memory}
    return [
        f"--job-name=vqsearch-{search.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={_cpus(job, search.space)}",
        *([f"--gpus-per-node={job.gpus}"] if job.gpus else []),
        f"--time={job.time}",
        *(f"--{name}={value}" for name, value in plain.items() if value),
        f"--signal=B:USR1@{min(NOTICE_S, seconds // 4)}",
        "--requeue",
        "--no-kill",  # a lost node costs what ran on it
        "--open-mode=append",
        f"--output={LOG}",
        *job.options,
    ]


def _check(job: Job, search: Search) -> None:
    for flag, value in (("--partition", job.partition), ("--account", job.account)):
        if not re.fullmatch(r"[\w.,@+-]*", value):
            raise UserError(f"{flag}: must be a name that Slurm knows, but got {value!r}")
    if not re.fullmatch(r"(\d+[KMGT]?)?", job.memory):
        raise UserError(f"--mem: must be megabytes or a number with K, M, G or T, such as 64G, but got {job.memory!r}")
    for option in job.options:
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", option):
            raise UserError(f"--sbatch: must be one option of sbatch, such as --qos=high, but got {option!r}")
    need = search.space.resources
    if need.gpus > job.gpus:
        raise UserError(
            f"--gpus-per-node: a trial asks for {need.gpus:g} GPU (resources.gpus), but a node would have {job.gpus}"
        )
    if job.cpus is not None and need.cpus > job.cpus:
        raise UserError(
            f"--cpus-per-task: a trial asks for {need.cpus:g} cores (resources.cpus), but a node would have {job.cpus}"
        )


def _cpus(job: Job, space: Space) -> int:
    """Cores of a node: those of as many trials as its GPUs take at once."""
    if job.cpus is not None:
        return job.cpus
    need = space.resources
    trials = math.floor(job.gpus / need.gpus + 1e-9) if need.gpus else space.parallel or 1
    return max(1, math.ceil(trials * need.cpus))


def _seconds(time: str) -> int:
    """Seconds of a time limit: MINUTES, M:S, H:M:S, DAYS-H, D-H:M or D-H:M:S.

    Raises:
        UserError: it is none of these, or nothing.
    """
    days, dash, rest = time.rpartition("-")
    fields = rest.split(":")
    if (not dash or days.isdigit()) and all(re.fullmatch(r"\d{1,9}", field) for field in fields) and len(fields) <= 3:
        numbers = [int(field) for field in fields]
        units = (3600, 60, 1) if dash or len(numbers) == 3 else (60, 1)
        seconds = int(days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
        if seconds:
            return seconds
    raise UserError(f"--time: must be a limit as Slurm writes it, such as 24:00:00 or 2-00, but got {time!r}")


def _reachable_storage(search: Search, shared: bool) -> str:
    """The URL of a storage that all nodes reach.

    Raises:
        UserError: they do not, or a password would be shown.
    """
    url, kind = search.url, search.url.partition("://")[0]
    expected = "journal:///FILE on a file system that all nodes share, or postgresql://..."
    if kind == "journal":
        path = Path(url.removeprefix("journal://")).absolute()
        _require_shared(path, "--storage", expected, shared)
        return f"journal://{path}"
    shown = storage.redact(url)
    if kind.startswith("sqlite"):
        raise UserError(
            f"--storage {shown}: SQLite loses writes where several machines share a file; expected {expected}"
        )
    if storage.holds_password(url) and not search.storage_file:
        raise UserError(
            f"--storage {shown}: Slurm keeps scripts, and with them this password; expected --storage-file FILE"
        )
    host = urlsplit(url).hostname
    if host in (None, "localhost", "127.0.0.1", "::1"):
        raise UserError(f"--storage {shown}: every node would look for it on itself; expected the name of its host")
    return url


def _require_shared(path: Path, flag: str, expected: str, shared: bool) -> None:
    if shared or mounts.shared(path):
        return
    kind = mounts.kind(path) or "a file system"
    raise UserError(
        f"{flag} {path}: lies on {kind} of this machine alone; expected {expected} (--shared, if all nodes see it)"
    )


def _python(job: Job, search: Search, root: str, url: str, folder: Path) -> list[str]:
    """The words that run a module of ours on a node."""
    if not job.container:
        return [sys.executable, "-P", "-m"]
    image = Path(job.container).absolute()
    if not image.exists():
        raise UserError(f"--container {job.container}: no such image")
    # It sees the home folder, /tmp and what is bound.
    data = search.space.base.data
    places = {folder, search.file.absolute().parent, *(Path(each.path).parent for each in search.space.plugins)}
    places |= {Path(each).expanduser() for each in (data.cache, root) if each and "://" not in each}
    if data.path and Path(data.path).exists():
        places.add(Path(data.path))
    if url.startswith("journal://"):
        places.add(Path(url.removeprefix("journal://")).parent)
    if search.storage_file:
        places.add(Path(search.storage_file).absolute().parent)
    bound = sorted(str(place.absolute()) for place in places)
    for place in bound:
        if re.search(r"[:,]", place):
            raise UserError(f"--container: {place} can't be bound, since its name holds ':' or ','")
    gpus = ["--nv"] if job.gpus else []
    return ["apptainer", "exec", *gpus, *(f"--bind={place}" for place in bound), str(image), "python3", "-P", "-m"]
