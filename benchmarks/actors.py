"""Sixteen real actors beside sixteen simulated ones: does the controller of scale.py ask of a driver what Ray asks?

Both drive the real searcher and scheduler over a study of the same finished trials, on the same storage. The real ones
are trials of a trainer that only reports, on a Ray of this machine, through the driver of every search; what its calls
take is read off by a clock around them. The simulated ones are those of scale.py.

python benchmarks/actors.py              writes benchmarks/results/DATE-actors.md; about five minutes on two cores
python benchmarks/actors.py --quick      four at once over fifty, printed only
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import many
import scale
import small
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from rich.console import Console

from search import capacity, cluster, driver, pruning, storage, study
from search.interleaving import Interleaved
from search.patience import Patient
from search.progress import View
from search.searcher import StudySearcher
from search.storage import open_storage

TRAINER = '''\
"""Trials that only report: a light report and a checkpoint of nothing at each rung, and seconds of sleep between."""

import random
import time

import vqvae
from vqvae.train import Progress

SECONDS = {seconds}


@vqvae.trainer(metrics={{"val/lpips_alex": "minimize"}}, costs=lambda config: {{"parameters": 2e7}})
def train(config, resume, stop):
    """As long as its steps are a part of SECONDS, give or take a third."""
    chance = random.Random(config.optimizer.lr)
    seconds, step = SECONDS * chance.uniform(0.67, 1.33), 0
    if resume is not None:
        step = int((resume / "step").read_text())

    def write(folder):
        (folder / "step").write_text(str(step))

    for rung in (*config.rungs, config.steps):
        if rung <= step:
            continue
        wait, step = seconds * (rung - step) / config.steps, rung - 1
        yield Progress(step=step, metrics={{"train/loss": 1.0}})
        time.sleep(wait)
        step = rung
        value = chance.uniform(0.1, 0.4)
        yield Progress(step=step, metrics={{"val/lpips_alex": value}}, evaluated=True, checkpoint=write)
'''

CALLS = ("ask for a trial", "light report", "report at a rung", "last report", "end a trial")


@contextlib.contextmanager
def timed(costs: scale.Costs, last: int) -> Iterator[None]:
    """A clock around the calls that Ray makes, while the context lasts.

    Args:
        costs: where it writes.
        last: step at which a trial ends.
    """

    def wrap(owner: type, name: str, kind: Callable[[tuple[Any, ...], Any], str]) -> Callable[[], None]:
        ours = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            taken = scale.Costs()
            with taken.of(""):
                answer = ours(*arguments, **named)
            if key := kind(arguments, answer):
                costs.calls[key] += taken.calls[""]
            return answer

        setattr(owner, name, call)
        return lambda: setattr(owner, name, ours)

    def report(arguments: tuple[Any, ...], _answer: Any) -> str:
        result = arguments[-1]
        if result["began"] or result["ended"]:
            return ""
        return "light report" if not result["evaluated"] else "last report" if result["step"] == last else CALLS[2]

    backs = [
        wrap(
            StudySearcher, "suggest", lambda _arguments, answer: "ask for a trial" if isinstance(answer, dict) else ""
        ),
        wrap(StudySearcher, "on_trial_complete", lambda _arguments, _answer: "end a trial"),
        wrap(pruning.StudyScheduler, "on_trial_result", report),
    ]
    try:
        yield
    finally:
        for back in backs:
            back()


def space(folder: Path, actors: int, trials: int, seconds: float) -> str:
    """The space of many.py, with a trainer that only reports."""
    trainer = folder / "reports.py"
    trainer.write_text(TRAINER.format(seconds=seconds))
    text = many.SPACE.format(trials=trials).replace("{gpus: 1, cpus: 8}", f"{{gpus: 0, cpus: {1 / actors}}}")
    return text.replace(", bits_per_image: {max: 14336}", "") + f"trainer: {trainer}:train\n"


def end_all(made: BaseStorage) -> None:
    """Fail the made-up trials that have not ended: no trainer can go on from their made-up checkpoints."""
    (only,) = (each for each in made.get_all_studies() if each.study_name == many.STUDY)
    for trial in made.get_all_trials(only._study_id, deepcopy=False):
        if not trial.state.is_finished():
            made.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def measure(actors: int, finished: int, more: int, seconds: float) -> list[str]:
    """The lines of the table.

    Args:
        actors: trials at once, real or simulated.
        finished: trials of the study before.
        more: trials that end while it is measured.
        seconds: that a real trial sleeps in all, if nothing stops it.
    """
    both: dict[str, scale.Costs] = {}
    for which in ("simulated", "real"):
        folder = Path(tempfile.mkdtemp(prefix="actors"))
        try:
            with small.database(folder, "postgresql") as url:
                made = open_storage(url)
                many.make(made, folder / "output", finished, text=space(folder, actors, finished, seconds))
                end_all(made)
                fresh = Patient(open_storage(url), print)
                opened = study.resume(fresh, many.STUDY, {"budget.trials": finished + more, "parallel": actors})
                costs = both[which] = scale.Costs()
                with contextlib.closing(opened):
                    opened.study.pruner = pruning.build(opened.space)
                    if which == "simulated":
                        searcher = StudySearcher(opened, lambda n=actors: n, driver.measure(opened.space), which)
                        arms = Interleaved([searcher], lambda n=actors: n)
                        # it has no end of its own, and would ask for more than the budget holds
                        ends = more - actors
                        scale.Controller(opened=opened, search=arms, parallel=actors, costs=costs).run(ends)
                    else:
                        room = capacity.Capacity
                        with (
                            storage.secrets_aside(),
                            cluster.connected(None),
                            timed(costs, opened.space.budget.steps),
                        ):
                            view = View(Console(), quiet=True)
                            driver.drive([opened], room(opened.space, local=True), view)
                fresh.remove_session()
                made.remove_session()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    lines = [
        f"## {actors} at once, {finished:,} finished before, PostgreSQL\n",
        "| call of the driver | simulated: times | p50, ms | p99, ms | real: times | p50, ms | p99, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in CALLS:
        lines.append(both["simulated"].row(name) + both["real"].row(name).removeprefix(f"| {name} |"))
    return lines


def main() -> None:
    """Measure, print, and keep the result under its date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--actors", type=int, help="default: 16; 4 with --quick")
    chosen = parser.parse_args()
    actors, finished, more, seconds = (4, 50, 20, 4.0) if chosen.quick else (16, 500, 200, 20.0)
    actors = chosen.actors or actors
    lines = measure(actors, finished, more, seconds)
    text = small.heading("Real actors beside simulated ones", "python benchmarks/actors.py") + "\n" + "\n".join(lines)
    print(text)
    if not chosen.quick:
        small.write("actors", text + "\n")


if __name__ == "__main__":
    main()
