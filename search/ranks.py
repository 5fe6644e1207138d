"""One run on several devices of this machine: a process each, of which the first does what one alone would do.

This process is none of them. So it can end all when one is gone, whatever the others wait for, and show the run
meanwhile.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import fitting
from search.errors import SearchError, UserError, VqsearchError
from vqvae import plugins
from vqvae.config import TrainConfig, VqvaeError
from vqvae.plugins import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess

    from vqvae.data import Decoding
    from vqvae.processes import Processes
    from vqvae.train import Progress

POLL_S = 0.2
"""Between two looks at whether to stop."""

SETTLING_S = 1.0
"""After a process is gone: those that waited for it fail too, and what was first is to be told from what followed."""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What each process is told; it travels to a new interpreter."""

    config: TrainConfig
    target: Path
    size: int
    meeting: Path
    """A file through which they find each other."""
    stop: Any
    """Event: drain."""
    plugins: tuple[Plugin, ...]
    parent: int
    """Number of the process that started them."""


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """How a process ended."""

    rank: int
    kind: str
    """user: what a user can mend; search: other errors of ours; code: anything else; gone: it said nothing."""
    text: str


def fit(
    config: TrainConfig,
    target: Path,
    size: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    decoding: Callable[[Decoding], None],
) -> bool:
    """Train one model in several processes; arguments, besides their number, and result as in `search.fitting.fit`.

    Raises:
        UserError: what a user can mend, in any of them.
        SearchError: one of them died; the same call goes on from the last checkpoint.
        RuntimeError: an error in code, with its traceback.
    """
    import torch.multiprocessing

    context = torch.multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
    with tempfile.TemporaryDirectory(prefix="vqsearch-ranks-") as folder:
        work = _Work(
            config=config,
            target=target,
            size=size,
            meeting=Path(folder) / "meeting",
            stop=context.Event(),
            plugins=plugins.loaded(),
            parent=os.getpid(),
        )
        here, members = [], []
        try:
            for rank in range(size):
                ours, theirs = context.Pipe(duplex=False)
                member = context.Process(target=_member, args=(rank, work, theirs), name=f"rank {rank}")
                with _deaf():
                    member.start()
                theirs.close()
                here.append(ours)
                members.append(member)
            return _relay(members, here, work, stop, {"say": say, "show": show, "decoding": decoding})
        finally:
            for member in members:
                member.kill()
            for member in members:
                member.join()


def _relay(
    members: Sequence[BaseProcess],
    pipes: Sequence[Connection],
    work: _Work,
    stop: Callable[[], bool],
    takers: dict[str, Callable[[Any], None]],
) -> bool:
    """Hands on what the processes tell until all have ended."""
    ranks = {pipe: rank for rank, pipe in enumerate(pipes)}
    failures: list[_Failure] = []
    stopped, until = False, math.inf
    while ranks and time.monotonic() < until:
        if stop():
            work.stop.set()
        for pipe in [pipe for pipe in wait(list(ranks), POLL_S) if isinstance(pipe, Connection)]:
            try:
                kind, content = pipe.recv()
            except EOFError:
                rank = ranks.pop(pipe)
                members[rank].join()
                code = members[rank].exitcode
                if code:
                    failures.append(_Failure(rank=rank, kind="gone", text=_ending(code)))
                continue
            if kind in takers:
                takers[kind](content)
            elif kind == "stopped":
                stopped = content
            else:
                failures.append(_Failure(rank=ranks[pipe], kind=kind, text=content))
        if failures:
            until = min(until, time.monotonic() + SETTLING_S)
    if failures:
        raise _worst(failures, work)
    return stopped


def _worst(failures: list[_Failure], work: _Work) -> Exception:
    """What the others followed from: an error that says what to mend, else a process that died, else a traceback."""
    order = ("user", "search", "gone", "code")
    spoken = {failure.rank for failure in failures if failure.kind != "gone"}
    told = [failure for failure in failures if failure.kind != "gone" or failure.rank not in spoken]
    first = min(told, key=lambda failure: order.index(failure.kind))
    if first.kind == "user":
        return UserError(first.text)
    if first.kind == "search":
        return SearchError(first.text)
    if first.kind == "gone":
        last = fitting.latest(work.target)
        again = f"goes on from {last}" if last else "begins anew"
        return SearchError(f"process {first.rank} of {work.size} {first.text}; the same command {again}")
    return RuntimeError(f"in process {first.rank} of {work.size}:\n{first.text}")


def _ending(exitcode: int) -> str:
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _member(rank: int, work: _Work, pipe: Connection) -> None:
    """What each process runs."""
    _silence()

    def tell(kind: str, content: object) -> None:
        with suppress(BrokenPipeError):  # nobody is left to be told; the run ends with a checkpoint
            pipe.send((kind, content))

    code = 1
    try:
        tell("stopped", _fit(rank, work, tell))
        code = 0
    except (UserError, VqvaeError) as error:
        tell("user", str(error))
    except VqsearchError as error:
        tell("search", str(error))
    except Exception:  # noqa: BLE001 - the edge of a process: whatever it was reaches the one that started it
        tell("code", traceback.format_exc())
    finally:
        pipe.close()
        os._exit(code)  # what hangs in a collective keeps no process alive


def _fit(rank: int, work: _Work, tell: Callable[[str, object], None]) -> bool:
    import torch

    from vqvae.processes import joined

    for plugin in work.plugins:
        plugins.run(plugin)
    if torch.cuda.is_available() and work.config.device != "cpu":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(max(1, torch.get_num_threads() // work.size))
    with joined(rank, work.size, device, work.meeting) as processes:
        if rank:
            return _follow(work, processes)
        return fitting.fit(
            work.config,
            work.target,
            lambda: work.stop.is_set() or os.getppid() != work.parent,
            lambda line: tell("say", line),
            lambda report: tell("show", replace(report, checkpoint=None)),
            lambda how_far: tell("decoding", how_far),
            processes,
        )


def _follow(work: _Work, processes: Processes) -> bool:
    from vqvae import train as training

    stopped = False
    for report in training.train(work.config, fitting.latest(work.target), processes=processes):
        stopped = report.stopped
    return stopped


@contextmanager
def _deaf() -> Iterator[None]:
    """What starts meanwhile hears neither Ctrl-C nor SIGTERM, which reach the whole group; this one hands them on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _silence() -> None:
    """gloo greets on the standard output, which belongs to the command."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
