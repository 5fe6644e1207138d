"""Each trial's curves for TensorBoard and for Weights & Biases, where a space file asks for them.

They are copies for people who have those pages open; the study in the storage knows nothing of them and loses nothing
without them. So they are written in a thread of their own: what goes wrong there (a full disk, a network that is away)
is said once and ends the copies, never the search.

A trial that goes on comes again with steps that may have been written already, by a driver that is gone. Readers of
event files drop what a file before wrote from the first step of the new one on (`SessionLog.START`); Weights & Biases
goes on with the run of the same id, and takes no step twice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import TrialState
from pyarrow import fs

from search import output, records
from search.errors import UserError
from search.space import Space
from search.study import Flight, OpenStudy, Outcome

FOLDER = "tensorboard"
"""Folder of event files below that of a study."""

LONGEST = 10_000
"""Reports that may wait to be written; more of them mean that nobody writes."""

CLOSE_S = 60.0
"""Wall seconds that the last reports may take at the end of a search."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A report of a trial, or its end.

    Attributes:
        number: of the trial.
        labels: its parameters as stored.
        step: optimizer steps done.
        metrics: what was reported; at the end all that was measured last.
        time: seconds since the epoch.
        state: how the trial ended; None for a report.
    """

    number: int
    labels: Mapping[str, Any]
    step: int
    metrics: Mapping[str, float]
    time: float
    state: TrialState | None = None


class Sink(Protocol):
    """Where curves go; used by one thread, and any exception ends it."""

    def write(self, point: Point) -> None:
        """Take a report of a trial, or its end."""

    def close(self) -> None:
        """End what is open; the trials may go on later."""


def check(space: Space, root: str) -> None:
    """Refuse, before anything runs, what could write no curve.

    Args:
        space: what is searched.
        root: output root; "" where it is not known yet.

    Raises:
        UserError: a missing package, nobody logged in, or a bucket where a folder is needed.
    """
    if space.log.tensorboard and root and not isinstance(output.filesystem(root)[0], fs.LocalFileSystem):
        raise UserError(
            f"log.tensorboard: event files need a folder, but the output root is {root}; expected --output DIR, or "
            "--set log.tensorboard=false"
        )
    if space.log.wandb is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError("log.wandb: the package wandb is not installed; pip install 'vqsearch[wandb]'")
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
        raise UserError(
            "log.wandb: nobody is logged in to Weights & Biases; wandb login, $WANDB_API_KEY or WANDB_MODE=offline"
        )


@contextlib.contextmanager
def written(opened: OpenStudy) -> Iterator[None]:
    """Write the curves of all trials that report while the context lasts, where the space asks for it."""
    log, study = opened.space.log, opened.study.study_name
    sinks: dict[str, Sink] = {}
    system, base = output.filesystem(opened.output)
    local = Path(base, study) if isinstance(system, fs.LocalFileSystem) else None
    if log.tensorboard and local is not None:
        sinks["TensorBoard"] = EventFiles(local / FOLDER)
    if log.wandb is not None:
        sinks["Weights & Biases"] = Runs(log.wandb, study, records.identity(opened.study), local)
    if not sinks:
        yield
        return
    copies = _Copies(sinks, opened.notify)
    opened.reported, opened.ended = copies.report, copies.end
    try:
        yield
    finally:
        copies.close()


class _Copies:
    """Hands points to the sinks, in a thread of its own."""

    def __init__(self, sinks: dict[str, Sink], notify: Callable[[str], None]) -> None:
        self._sinks, self._notify = sinks, notify
        self._points: queue.Queue[Point | None] = queue.Queue(LONGEST)
        self._off = False
        self._thread = threading.Thread(target=self._run, name="curves", daemon=True)
        self._thread.start()

    def report(self, flight: Flight, metrics: Mapping[str, float]) -> None:
        """Take what a trial reported."""
        self._put(_point(flight, metrics))

    def end(self, flight: Flight, outcome: Outcome) -> None:
        """Take how a trial ended, or that it is handed back."""
        self._put(_point(flight, flight.metrics, outcome.state))

    def close(self) -> None:
        """Wait until all is written, for a while."""
        self._put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._notify(f"curves: the last ones are not written after {CLOSE_S:g} s, and nobody waits any more")

    def _put(self, point: Point | None) -> None:
        if self._off:
            return
        try:
            self._points.put_nowait(point)
        except queue.Full:
            self._off = True
            self._notify(f"curves: {LONGEST:,} reports wait to be written, so no more are taken; the search goes on")

    def _run(self) -> None:
        while (point := self._points.get()) is not None:
            for name, sink in list(self._sinks.items()):
                self._guarded(name, functools.partial(sink.write, point))
        for name, sink in list(self._sinks.items()):
            self._guarded(name, sink.close)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the search goes on without these copies
            del self._sinks[name]
            words = str(error).strip().splitlines() or [type(error).__name__]
            self._notify(f"curves for {name} are not written any more, and the search goes on: {words[0]}")


def _point(flight: Flight, metrics: Mapping[str, float], state: TrialState | None = None) -> Point:
    return Point(
        number=flight.trial.number,
        labels=dict(flight.labels),
        step=flight.step,
        metrics=dict(metrics),
        time=time.time(),
        state=state,
    )


class EventFiles:
    """TensorBoard's event files, a folder a trial: FOLDER/00007/events.out.tfevents...

    Args:
        folder: of the study's event files.

    The writer of tensorboardX itself has a queue and a process-wide hook for each trial, and hides errors; what is
    below it writes at once and raises.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, Any] = {}

    def write(self, point: Point) -> None:
        """Write a report, or settings and metrics at a trial's end."""
        from tensorboardX import summary

        if point.state is not None:
            self._end(point)
            return
        writer = self._writer(point)
        for name, value in point.metrics.items():
            writer.write_event(_event(point, summary=summary.scalar(name, value)))
        writer.flush()

    def close(self) -> None:
        """Close all files."""
        for number in list(self._open):
            self._open.pop(number).close()

    def _writer(self, point: Point) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        if point.number not in self._open:
            folder = self._folder / f"{point.number:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            # The name of a file is that of the second in which it was made; two drivers may follow one another quickly.
            writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            writer.write_event(_event(point, session_log=SessionLog(status=SessionLog.START)))
            self._open[point.number] = writer
        return self._open[point.number]

    def _end(self, point: Point) -> None:
        from tensorboardX import summary

        writer = self._open.pop(point.number, None)
        if writer is None:  # it ended before it reported anything
            return
        if point.state != TrialState.WAITING:
            plain = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in point.labels.items()}
            measured = {name: value for name, value in point.metrics.items() if not name.startswith("train/")}
            for part in summary.hparams(plain, measured):
                writer.write_event(_event(point, summary=part))
        writer.close()


def _event(point: Point, **content: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=point.time, step=point.step, **content)


class Runs:
    """Runs of Weights & Biases, one a trial, grouped by study.

    Args:
        project: of Weights & Biases.
        study: name of the study.
        identity: of the study, which the ids of its runs begin with.
        folder: where its files lie until they are sent; None where there is no local one.
    """

    def __init__(self, project: str, study: str, identity: str, folder: Path | None) -> None:
        self._project, self._study, self._identity = project, study, identity
        self._folder = folder
        self._open: dict[int, Any] = {}

    def write(self, point: Point) -> None:
        """Log a report, or end a run."""
        if point.state is not None:
            self._end(point)
        elif point.metrics:
            self._run(point).log(dict(point.metrics), step=point.step)

    def close(self) -> None:
        """End all runs; those of trials that go on are resumed."""
        for number in list(self._open):
            self._open.pop(number).finish()

    def _run(self, point: Point) -> Any:
        import wandb

        if point.number not in self._open:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="vqsearch-wandb-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open[point.number] = wandb.init(
                project=self._project,
                id=f"{self._identity[:16]}-{point.number:05d}",
                name=f"{self._study}-{point.number:05d}",
                group=self._study,
                config=dict(point.labels),
                dir=str(self._folder),
                resume="allow",
                reinit="create_new",  # trials run side by side
                settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
            )
        return self._open[point.number]

    def _end(self, point: Point) -> None:
        run = self._open.pop(point.number, None)
        if run is None:
            return
        if point.state is not None and point.state != TrialState.WAITING:
            run.summary["state"] = point.state.name
        run.finish(exit_code=int(point.state == TrialState.FAIL))
