"""What runs on a Ray worker: iterate the trainer, report each step it tells of."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from search import code, output, trainer
from search.errors import OutputError, UserError
from search.searcher import Assignment
from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.plugins import Plugin


def run(config: dict[str, Any], plugins: Iterable[Plugin] = ()) -> None:
    """One trial.

    Args:
        config: the fields of an `Assignment`.
        plugins: code that has to run before it.

    Reports:
        step, metrics, evaluated; checkpoint (its folder below the output root, or None), pictures (names of those
        that lie in it), device (model of the GPU or CPU) and sizes (images of each split) with an evaluation;
        began (the first one, which says nothing else), node (identity of the one that it runs on), and
        ended ("", stopped, diverged, out of memory, error, or unusable where no trial could run here) and reason.
    """
    from vqvae import conversion
    from vqvae.contract import follow
    from vqvae.train import Diverged, OutOfMemory, train

    assignment = Assignment(**config)
    report = Reporter()
    saved = assignment.checkpoint
    try:
        report(began=True)
        _share_the_gpu(assignment.gpus)
        code.run(plugins)
        stop = _stop_flag(assignment.control)
        with _start_from(assignment) as resume:
            settings = conversion.from_dict(json.loads(assignment.config))
            device = _device(settings)
            saved_pictures = sorted(path.stem for path in resume.glob(f"*{output.PICTURES}")) if resume else []
            trains = functools.partial(follow, trainer.on_worker(assignment.trainer)) if assignment.trainer else train
            for progress in trains(settings, resume, stop):
                folder = output.folder_of(assignment.study, assignment.number, progress.step)
                if progress.checkpoint and folder != saved:
                    _save(assignment, folder, progress)
                    saved, saved_pictures = folder, sorted(progress.pictures)
                report(
                    step=progress.step,
                    metrics=dict(progress.metrics),
                    evaluated=progress.evaluated,
                    checkpoint=folder if progress.checkpoint else None,
                    pictures=saved_pictures if progress.evaluated and progress.checkpoint else [],
                    device=device if progress.evaluated else "",
                    sizes=progress.sizes if progress.evaluated else {},
                    ended="stopped" if progress.stopped else "",
                )
    except Diverged as error:
        report(ended="diverged", reason=str(error))
    except OutOfMemory as error:
        report(ended="out of memory", reason=str(error))
    except ConfigError as error:  # of ours no other trial could run either; another trainer may refuse some settings
        report(ended="error" if assignment.trainer else "unusable", reason=str(error))
    except (VqvaeError, UserError, OSError) as error:
        report(ended="unusable", reason=str(error))
    except Exception:  # noqa: BLE001 - the edge of a trial: whatever it was becomes a FAIL with its traceback
        report(ended="error", reason=traceback.format_exc())


class Reporter:
    """Sends the reports of one trial to the driver, in order.

    `tune.report` comes back when the driver has taken the report, and while its storage is away it takes none. So a
    light report, which only says how far the trial is, waits in a thread, and those that come meanwhile are left out.
    """

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._sending: threading.Thread | None = None
        self._ended: BaseException | None = None

    def __call__(
        self,
        *,
        step: int = 0,
        metrics: dict[str, float] | None = None,
        evaluated: bool = False,
        checkpoint: str | None = None,
        pictures: Sequence[str] = (),
        device: str = "",
        sizes: Mapping[str, int] | None = None,
        ended: str = "",
        reason: str = "",
        began: bool = False,
    ) -> None:
        """Send one report, with every key that `search.pruning.take` reads."""
        light = not (evaluated or checkpoint or ended)
        if light and self._sending is not None and self._sending.is_alive():
            return
        self._wait()
        fields = {
            "step": step,
            "metrics": list((metrics or {}).items()),  # Ray would flatten a dictionary.
            "sizes": list((sizes or {}).items()),
            "evaluated": evaluated,
            "checkpoint": checkpoint,
            "pictures": list(pictures),
            "device": device,
            "ended": ended,
            "reason": reason,
            "began": began,
            "node": self._node,
        }
        if light:
            self._sending = threading.Thread(target=self._send, args=(fields,), name="report", daemon=True)
            self._sending.start()
        else:
            tune.report(fields)

    def _send(self, fields: dict[str, Any]) -> None:
        try:
            tune.report(fields)
        except BaseException as error:  # noqa: BLE001 - Ray ends a stopped trial by SystemExit, where it reports
            self._ended = error

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.join()
        if self._ended is not None:
            raise self._ended


def _start_from(assignment: Assignment) -> contextlib.AbstractContextManager[Path | None]:
    if assignment.checkpoint is None:
        return contextlib.nullcontext()
    return output.fetched(assignment.root, assignment.checkpoint)


def _save(assignment: Assignment, folder: str, progress: Any) -> None:
    output.require(assignment.root, assignment.study)
    try:
        output.save(assignment.root, folder, _writer(progress))
    except (OSError, VqvaeError) as error:
        output.require(assignment.root, assignment.study)  # it may have vanished in the middle of the writing
        if isinstance(error, VqvaeError):
            raise
        raise OutputError(f"{assignment.root}: the output root can't be written: {error}") from None


def _writer(progress: Any) -> Callable[[Path], None]:
    from PIL import Image

    def write(folder: Path) -> None:
        progress.checkpoint(folder)
        for name, picture in progress.pictures.items():
            Image.fromarray(picture).save(folder / f"{name}{output.PICTURES}")

    return write


def _device(config: TrainConfig) -> str:
    """Model of what trains a config."""
    import torch

    if config.device != "cpu" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError):  # Linux alone has it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _share_the_gpu(gpus: float) -> None:
    """Ray's fractions are bookkeeping: without this, one trial's hunger is another one's out-of-memory."""
    import torch

    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def _stop_flag(control: str) -> Callable[[], bool]:
    """True once the driver drains, or is gone; asked between steps, so it costs microseconds."""
    actor: Any = ray.get_actor(control)
    drained = actor.drained.remote()
    return lambda: bool(ray.wait([drained], timeout=0)[0])
