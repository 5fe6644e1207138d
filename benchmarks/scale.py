"""A search of a thousand trials at once over a study of ten thousand: what the driver's own work costs.

A simulated controller takes the place of Ray: it asks the real searcher for trials, hands the real scheduler what
workers would report, and tells the searcher when a trial ends, all against the real storage, the lease and the files of
checkpoints included. Its clock is simulated: an hour of a thousand trials takes as long as the driver works in it, and
the part of the hour in which it works is its share of a core. Beside it a reader asks the dashboard for the study, over
and over, in a process of its own.

python benchmarks/scale.py              writes benchmarks/results/DATE-scale.md; about half an hour on two cores
python benchmarks/scale.py --quick      a hundred at once over five hundred, printed only
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import many
import small

from search import driver, output, pruning, study
from search.interleaving import Interleaved
from search.patience import Patient
from search.searcher import StudySearcher
from search.storage import open_storage
from search.study import OpenStudy

TRIAL_S = 3600.0
"""Wall seconds that a simulated trial trains if nothing stops it, give or take a third."""

LIGHT_S = 2.0
"""Simulated wall seconds between two light reports of a trial, as `vqvae.train` sends them."""


@dataclass(kw_only=True)
class Costs:
    """How long each call of the driver took, in wall seconds."""

    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure one call."""
        began = time.perf_counter()
        yield
        self.calls[name].append(time.perf_counter() - began)

    def row(self, name: str) -> str:
        """A line of the table: how many, median, 99th percentile."""
        taken = sorted(self.calls[name])
        if not taken:
            return f"| {name} | 0 | | |"
        p99 = taken[min(len(taken) - 1, math.ceil(0.99 * len(taken)) - 1)]
        return f"| {name} | {len(taken):,} | {1000 * statistics.median(taken):.1f} | {1000 * p99:.1f} |"


@dataclass(kw_only=True)
class Controller:
    """What Ray's controller does, with trials that only report.

    Args:
        opened: the study.
        search: hands out its trials.
        parallel: trials at once.
        seed: of what trials report.
    """

    opened: OpenStudy
    search: Interleaved
    parallel: int
    seed: int = 0
    costs: Costs = field(default_factory=Costs)
    clock: float = 0.0
    """Simulated wall seconds."""
    events: list[tuple[float, str, int, str]] = field(default_factory=list)
    """What trials will report: when, Ray's id of the trial, step, kind; a heap."""

    def run(self, trials: int) -> None:
        """Go on until so many more trials have ended, with `parallel` of them in flight."""
        scheduler = pruning.StudyScheduler([self.opened])
        chance = random.Random(self.seed)
        events, ended = self.events, 0
        while ended < trials:
            while len(self.opened.flights) < self.parallel:
                ray_trial = uuid.uuid4().hex
                with self.costs.of("ask for a trial"):
                    answer = self.search.suggest(ray_trial)
                assert isinstance(answer, dict), answer
                self._depart(ray_trial, chance)
            self.clock, ray_trial, step, kind = heapq.heappop(events)
            flight = self.opened.flights[ray_trial]
            report = self._report(flight.trial.number, step, kind, chance)
            with self.costs.of(kind):
                decision = scheduler.on_trial_result(None, SimpleNamespace(trial_id=ray_trial), report)
            if decision == "STOP":
                with self.costs.of("end a trial"):
                    self.search.on_trial_complete(ray_trial, report)
                events[:] = [event for event in events if event[1] != ray_trial]
                heapq.heapify(events)
                ended += 1
            if self.opened.failure is not None:
                raise self.opened.failure

    def _depart(self, ray_trial: str, chance: random.Random) -> None:
        """All that a trial will report: its evaluations, and one light report of the many before each."""
        space = self.opened.space
        seconds = TRIAL_S * chance.uniform(0.67, 1.33) / space.budget.steps
        for step in (*space.rungs, space.budget.steps):
            heapq.heappush(self.events, (self.clock + seconds * (step - 1), ray_trial, step - 1, "light report"))
            kind = "report at a rung" if step < space.budget.steps else "last report"
            heapq.heappush(self.events, (self.clock + seconds * step, ray_trial, step, kind))

    def _report(self, number: int, step: int, kind: str, chance: random.Random) -> dict[str, Any]:
        evaluated = kind != "light report"
        folder = output.folder_of(self.opened.study.study_name, number, step)
        if evaluated:
            place = Path(self.opened.output) / folder
            place.mkdir(parents=True, exist_ok=True)  # of one that goes on
            (place / "weights.safetensors").write_bytes(b"")
        metrics = {"train/loss": 1.0, "images_per_s": 1000.0}
        if evaluated:
            metrics |= {"val/lpips_alex": chance.uniform(0.1, 0.4), "val/psnr": 25.0, "parameters": 2e7}
        return {
            "step": step,
            "metrics": list(metrics.items()),
            "sizes": [],
            "evaluated": evaluated,
            "checkpoint": folder if evaluated else None,
            "pictures": [],
            "device": "simulated" if evaluated else "",
            "ended": "",
            "began": False,
            "node": "",
            "reason": "",
        }


def read(address: str, study_id: int, stop: Event, seconds: Any) -> None:
    """Ask the dashboard for the study until told to stop, and hand over how long each answer took."""
    taken = []
    while not stop.is_set():
        began = time.perf_counter()
        with urllib.request.urlopen(f"{address}/api/studies/{study_id}?after=0", timeout=600) as answer:
            json.load(answer)
        taken.append(time.perf_counter() - began)
        stop.wait(5.0)  # as often as the page of a study asks
    seconds.put(taken)


@contextlib.contextmanager
def reading(url: str, study_id: int, readings: list[float]) -> Iterator[None]:
    """A dashboard with a reader, while the context lasts."""
    context = multiprocessing.get_context("spawn")
    stop, queue = context.Event(), context.Queue()
    with small.serving(url, many.STUDY) as (address, _):
        reader = context.Process(target=read, args=(address, study_id, stop, queue))
        reader.start()
        try:
            yield
        finally:
            stop.set()
            readings += queue.get(timeout=600)
            reader.join()


def measure(kind: str, finished: int, parallel: int, more: int) -> list[str]:
    """The lines of one storage's table.

    Args:
        kind: of storage.
        finished: trials of the study before.
        parallel: trials at once.
        more: trials that end while it is measured.
    """
    lines: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="scale"))
    try:
        with small.database(folder, kind) as url:
            storage = open_storage(url)
            made = many.make(storage, folder / "output", finished)
            costs, readings = Costs(), list[float]()
            fresh = Patient(open_storage(url), print)  # as a driver opens it, with nothing in its cache
            with costs.of("open and resume"):
                opened = study.resume(fresh, many.STUDY, {"budget.trials": finished + 100 * (more + parallel)})
            with contextlib.closing(opened):
                opened.study.pruner = pruning.build(opened.space)
                searcher = StudySearcher(opened, lambda: parallel, driver.measure(opened.space), "simulated")
                controller = Controller(
                    opened=opened, search=Interleaved([searcher], lambda: parallel), parallel=parallel, costs=costs
                )
                controller.run(min(parallel // 4, more))  # until trials come and go
                costs.calls = defaultdict(list, {"open and resume": costs.calls["open and resume"]})
                began, clock = time.perf_counter(), controller.clock
                with reading(url, made._study_id, readings):
                    controller.run(more)
                    wall = time.perf_counter() - began
                simulated = controller.clock - clock
            lights = parallel / LIGHT_S * simulated
            light = statistics.mean(costs.calls["light report"])
            work = sum(map(sum, costs.calls.values())) - costs.calls["open and resume"][0]
            share = (work + light * (lights - len(costs.calls["light report"]))) / simulated
            lines += [
                f"## {kind}: {parallel:,} trials at once, {finished:,} finished before\n",
                "| call of the driver | times | p50, ms | p99, ms |",
                "| --- | ---: | ---: | ---: |",
                *(costs.row(name) for name in sorted(costs.calls)),
                "",
                f"{more:,} trials ended in {simulated / 60:.1f} simulated minutes ({wall:.0f} s here).",
                f"With a light report of each trial every {LIGHT_S:g} s the driver would work {100 * share:.1f} %",
                f"of the time. A dashboard's reader, asking every 5 s, waited "
                f"{statistics.median(readings):.2f} s (median of {len(readings)}).\n",
            ]
            fresh.remove_session()
            storage.remove_session()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return lines


def main() -> None:
    """Measure, print, and keep the result under its date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--storage", choices=("postgresql", "sqlite", "journal"), default="postgresql")
    parser.add_argument("--finished", type=int)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--trials", type=int, help="that end while it is measured")
    chosen = parser.parse_args()
    finished = chosen.finished or (500 if chosen.quick else 10_000)
    parallel = chosen.parallel or (100 if chosen.quick else 1_000)
    lines = measure(chosen.storage, finished, parallel, chosen.trials or (50 if chosen.quick else 1_000))
    text = small.heading("The driver at scale", "python benchmarks/scale.py") + "\n" + "\n".join(lines)
    print(text)
    if not chosen.quick:
        small.write("scale", text)


if __name__ == "__main__":
    main()
