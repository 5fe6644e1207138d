"""A command of vqsearch as a job of a Ray cluster, submitted from a machine outside of it.

The job's driver runs on the head with the same command line. What travels is the space file and the files of plug-ins;
the storage's URL does not: the head has it in a file or in $VQSEARCH_STORAGE.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search import comparison, credentials, space
from search.errors import ResourceError, SpaceError, UserError
from search.text import one_line
from vqvae import plugins, trainers

if TYPE_CHECKING:
    from search import yaml12

HEADS = "--storage-file FILE, or $VQSEARCH_STORAGE, which are on the cluster's head"
"""Where the driver of a job finds the URL of its storage, for messages."""

SHARED = "a bucket's URL, or the absolute path of a folder that all nodes of the cluster share"

INNER = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""A variable that Ray sets for the driver of a job."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What travels with a job.

    Attributes:
        file: space file or comparison; None for a command that takes none.
        plugins: files of code, in their order.
        overrides: what `--set` gives.
        output: what `--output` gives.
        name: of the study or the comparison, which the list of jobs shows; "" where the storage alone knows it.
    """

    file: str | None = None
    plugins: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    output: str | None = None
    name: str = ""

    def names(self) -> list[str]:
        """The names of the plug-ins within the job's folder; two may be called alike."""
        return [f"plugins/{index}/{Path(path).name}" for index, path in enumerate(self.plugins)]


def refuse_a_file(url: str) -> None:
    """Refuse a storage that is a file of one machine, for the driver of a job.

    Raises:
        UserError: it is one.
    """
    if INNER in os.environ and url.startswith(("sqlite", "journal")):
        kind = url.partition(":")[0]
        raise UserError(
            f"the storage is {kind}, a file, but a job of a Ray cluster runs in a folder that goes with it; expected "
            f"the URL of a PostgreSQL server in {HEADS}"
        )


def named(parcel: Parcel, trials: int | None = None) -> Parcel:
    """Check a space file or a comparison as its own command would, and that nothing in it lies on this machine alone.

    Args:
        parcel: with a file or without; its plug-ins are those of the command line.
        trials: a budget in place of the file's.

    Returns:
        The same with the plug-ins of the file too, and its trainer where it will lie.

    Raises:
        UserError: with file, line and key.
    """
    given = [_assigned(text) for text in parcel.overrides]
    if parcel.file is None:
        _require_shared(parcel.output, "--output", needed=False)
        return parcel
    document = space.read(parcel.file)
    if "storage" in document.value or any(path == ("storage",) for path, _ in given):
        raise document.error(("storage",), f"a job takes its storage from the head alone; expected {HEADS}")
    for path, value in _leaves(document.value):
        if _is_here(path, value):
            raise document.error(path, _here(value))
    for text, (path, value) in zip(parcel.overrides, given, strict=True):
        if _is_here(path, value):
            raise SpaceError(f"--set {text}", "", _here(value))
    if "comparison" in document.value:
        compared = comparison.load(parcel.file, parcel.overrides, trials=trials, plugins=parcel.plugins)
        loaded, name = compared.common, compared.name
    else:
        loaded = space.load(parcel.file, parcel.overrides, trials=trials, plugins=parcel.plugins)
        name = parcel.name or loaded.study
    set_to = [value for path, value in given if path == ("output",)]
    _require_shared(parcel.output or (set_to or [document.value.get("output")])[-1], "--output", needed=True)
    sent = dataclasses.replace(parcel, plugins=tuple(file.path for file in loaded.plugins), name=name)
    if loaded.trainer is None:
        return sent
    file, function = trainers.parts(loaded.trainer)
    inside = sent.names()[sent.plugins.index(file)]
    return dataclasses.replace(sent, overrides=(*sent.overrides, f"trainer={inside}:{function}"))


def pack(parcel: Parcel, folder: Path) -> None:
    """Write what travels into a folder, which is where the job's driver starts.

    Raises:
        PluginError: a file of code can't be read.
    """
    if parcel.file is not None:
        shutil.copyfile(parcel.file, folder / Path(parcel.file).name)
    for path, inside in zip(parcel.plugins, parcel.names(), strict=True):
        (folder / inside).parent.mkdir(parents=True)
        (folder / inside).write_bytes(plugins.read(path).content)


def _assigned(text: str) -> tuple[yaml12.Path, Any]:
    key, value = space.assignment(text)
    return tuple(key.split(".")), value


def _leaves(value: Any, path: yaml12.Path = ()) -> Iterator[tuple[yaml12.Path, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value


def _is_here(path: yaml12.Path, value: Any) -> bool:
    """Whether a value is a path that starts at this machine's current folder or at the space file's."""
    if path[-2:] not in space.PATHS or not isinstance(value, str) or value in space.NO_PATHS:
        return False
    return not (value.startswith("~") or "://" in value or PurePosixPath(value).is_absolute())


def _here(value: str) -> str:
    return f"must be an absolute path, which the cluster's nodes have, but got {value!r}, which starts on this machine"


def _require_shared(root: Any, where: str, needed: bool) -> None:
    if root is None and not needed:
        return
    if not isinstance(root, str) or not ("://" in root or root.startswith("/")):
        got = "none was given" if root is None else f"got {root}, which lies on this machine"
        raise UserError(f"{where}: must be {SHARED}, but {got}")


def submit(address: str, words: Sequence[str], parcel: Parcel) -> str:
    """Hand a command to a cluster.

    Args:
        address: ``http://HOST:8265``, of its job server.
        words: the command line as it runs on the head, without the program.
        parcel: what it reads.

    Returns:
        The job's id.

    Raises:
        ResourceError: nothing answers there, or it does not take us in.
        PluginError: a file of code can't be read.
    """
    with tempfile.TemporaryDirectory(prefix="vqsearch-job-") as folder:
        pack(parcel, Path(folder))
        entrypoint = shlex.join(["vqsearch", *words])
        return _handed_over(address.rstrip("/"), entrypoint, folder, parcel.name)


def _handed_over(address: str, entrypoint: str, folder: str, name: str) -> str:
    _require_an_answer(address)
    # Ray's own client lets these variables overrule an address that was given.
    aside = {key: os.environ.pop(key) for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if key in os.environ}
    try:
        with credentials.presented(credentials.found()):
            from ray.exceptions import AuthenticationError
            from ray.job_submission import JobSubmissionClient

            try:
                client = JobSubmissionClient(address)
                return str(
                    client.submit_job(
                        entrypoint=entrypoint, runtime_env={"working_dir": folder}, metadata={"vqsearch": name}
                    )
                )
            except AuthenticationError:
                raise ResourceError(
                    f"--address {address}: the cluster refuses the token here, or there is none; expected the "
                    f"cluster's in {credentials.PLACES}"
                ) from None
            except (RuntimeError, OSError) as error:
                if "ray[default]" in str(error):
                    words = "submitting a job needs Ray's job client: pip install 'vqsearch[cluster]'"
                else:
                    words = one_line(" ".join(str(error).split()))
                raise ResourceError(f"--address {address}: {words}") from None
    finally:
        os.environ.update(aside)


def _require_an_answer(address: str) -> None:
    """Ray's client has no time-out."""
    try:
        split = urlsplit(address)
        port = split.port or (443 if split.scheme == "https" else 80)
        socket.create_connection((split.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise ResourceError(f"--address {address}: no Ray cluster takes jobs there: {words}") from None
