"""What a search keeps when its driver is killed half way: Ray's stock OptunaSearch and ASHAScheduler, and ours.

Both search the same space with the same trainer, 2 trials at a time. Each driver is killed (-9) once, when half of the
trials are finished; the stock search goes on by `Tuner.restore`, as Ray documents it, ours by `vqsearch resume`. Then
both studies are read through Optuna, and the trainers' own records of what they measured beside them.

python benchmarks/stock.py        writes benchmarks/results/DATE-stock.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import small
from optuna.trial import TrialState

from search import records
from search import space as spaces
from search.errors import VqsearchError
from search.storage import open_storage

TRIALS, STEPS, RUNGS, FACTOR = 12, 180, (20, 60), 3
SPACE = small.space(
    "tiny", trials=TRIALS, steps=STEPS, rest=f"pruner: {{kind: asha, rungs: 2, reduction_factor: {FACTOR}}}"
)


def stock(folder: Path, restore: bool) -> None:
    """Ray's search, in a process of its own: started, or restored."""
    import ray
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    base = spaces.load(folder / "tiny.yaml")

    def trainable(labels: dict[str, Any]) -> None:
        from vqvae.train import train

        name = tune.get_context().get_trial_id()
        with contextlib.ExitStack() as stack:
            found = tune.get_checkpoint()
            resume = Path(stack.enter_context(found.as_directory())) if found else None
            for progress in train(base.config(labels), resume):
                if progress.evaluated:
                    assert progress.checkpoint is not None
                    value = progress.metrics["val/psnr"]
                    with (folder / "measured.jsonl").open("a") as log:
                        log.write(json.dumps({"trial": name, "step": progress.step, "value": value, **labels}) + "\n")
                    with tempfile.TemporaryDirectory() as place:
                        progress.checkpoint(Path(place))
                        tune.report(
                            {"psnr": value, "step": progress.step}, checkpoint=tune.Checkpoint.from_directory(place)
                        )

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    able = tune.with_resources(trainable, {"cpu": 1})
    if restore:
        tuner = tune.Tuner.restore(str(folder / "ray-results" / "stock"), able, resume_unfinished=True)
        scheduler = tuner._local_tuner._tune_config.scheduler  # type: ignore[union-attr]
        kept = sum(len(recorded) for bracket in scheduler._brackets for _, recorded in bracket._rungs)
        (folder / "rungs-kept").write_text(str(kept))
    else:
        distributions = {
            "optimizer.lr": FloatDistribution(5e-4, 5e-3, log=True),
            "quantizer.codebook_size": CategoricalDistribution([16, 64, 256]),
        }
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/studies.db")
        searcher = OptunaSearch(space=distributions, study_name="tiny", storage=storage, metric="psnr", mode="max",
                                seed=0)  # fmt: skip
        scheduler = ASHAScheduler(time_attr="step", metric="psnr", mode="max", max_t=STEPS, grace_period=RUNGS[0],
                                  reduction_factor=FACTOR)  # fmt: skip
        tuner = tune.Tuner(
            able,
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=TRIALS, max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(name="stock", storage_path=str(folder / "ray-results"), verbose=0),
        )
    tuner.fit()


def finished(folder: Path) -> int:
    """Trials that are finished in the study, 0 before there is one."""
    with contextlib.suppress(VqsearchError, KeyError):
        return sum(trial.state.is_finished() for trial in trials(folder))
    return 0


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The study's trials."""
    storage = open_storage(f"sqlite:///{folder}/studies.db", create=False)
    return optuna.load_study(study_name="tiny", storage=storage).get_trials()


def killed_once(folder: Path, start: list[str], again: list[str]) -> list[optuna.trial.FrozenTrial]:
    """Run a search, kill its driver half way, go on to its end; returns the trials as they were at the kill."""
    environment = small.environment(f"sqlite:///{folder}/studies.db", folder) | {"RAY_AIR_NEW_OUTPUT": "0"}
    with (folder / "log.txt").open("ab") as log:
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": log, "stderr": log}
        with subprocess.Popen(start, **options) as driver:
            while finished(folder) < TRIALS // 2:
                if driver.poll() is not None:
                    raise RuntimeError(f"the search ended early: {(folder / 'log.txt').read_text()[-2000:]}")
                time.sleep(0.2)
            children = psutil.Process(driver.pid).children(recursive=True)
            driver.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=60)
        for process in alive:
            process.kill()
        before = trials(folder)
        subprocess.run(again, timeout=240, **options)
    return before


def measured(folder: Path) -> dict[str, dict[int, float]]:
    """Setting -> step -> value, as the stock search's trainers wrote it down."""
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "measured.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(_setting(row), {})[row["step"]] = row["value"]
    return found


def _setting(values: dict[str, Any]) -> str:
    return f"{values['optimizer.lr']:.12g} {values['quantizer.codebook_size']}"


def _end(trial: optuna.trial.FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.values, trial.datetime_complete


def facts(
    before: list[optuna.trial.FrozenTrial], after: list[optuna.trial.FrozenTrial], known: dict[str, dict[int, float]]
) -> dict[str, str]:
    """What a study says at its end, beside what was measured."""
    settings = [_setting(t.params) for t in after if len(t.params) == 2]
    early = [t for t in after if t.state.is_finished() and max(known.get(_setting(t.params), {0: 0})) < STEPS]
    complete = [t for t in early if t.state == TrialState.COMPLETE]
    # Ray counts reports, not steps: one point is expected for each rung that was reached.
    pointless = [t for t in early if len(t.intermediate_values) < len(known.get(_setting(t.params), ()))]
    touched = [t for t, u in zip(before, after, strict=False) if t.state.is_finished() and _end(t) != _end(u)]
    running = sum(t.state == TrialState.RUNNING for t in after)
    return {
        f"trials finished, of {TRIALS}": str(sum(t.state.is_finished() for t in after)),
        "rows in the study": str(len(after)),
        "rows left RUNNING (or WAITING) for ever": f"{running} ({sum(t.state == TrialState.WAITING for t in after)})",
        "finished trials that were finished again": str(len(touched)),
        "settings suggested twice": str(len(settings) - len(set(settings))),
        "settings that were trained, but have no finished row": str(
            len(set(known) - {_setting(t.params) for t in after if t.state.is_finished() and len(t.params) == 2})
        ),
        "trials stopped early": str(len(early)),
        "of these, told COMPLETE with their early value": str(len(complete)),
        "of these, without the point at which they were stopped": str(len(pointless)),
    }


def main() -> int:
    """Run both searches and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", metavar="DIR", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stock:
        stock(arguments.stock, arguments.restore)
        return 0
    root = Path(tempfile.mkdtemp(prefix="stock"))
    try:
        for name in ("stock", "ours"):
            (root / name).mkdir()
            (root / name / "tiny.yaml").write_text(SPACE)
        run = [sys.executable, str(Path(__file__).resolve()), "--stock", str(root / "stock")]
        before = killed_once(root / "stock", run, [*run, "--restore"])
        known = measured(root / "stock")
        theirs = facts(before, trials(root / "stock"), known)
        rungs_before = sum(step in RUNGS for t in before for step in known.get(_setting(t.params), ()))
        theirs["values at rungs at the kill -> those the scheduler has after it went on"] = (
            f"{rungs_before} -> {(root / 'stock' / 'rungs-kept').read_text()}"
        )
        vqsearch = [sys.executable, "-m", "search"]
        before = killed_once(root / "ours", [*vqsearch, "launch", "tiny.yaml"], [*vqsearch, "resume"])
        after = trials(root / "ours")
        known = {}
        for trial in after:
            saved = records.checkpoint(trial)  # what its worker reached, whatever its curve says
            known[_setting(trial.params)] = {**trial.intermediate_values, **({saved.step: 0.0} if saved else {})}
        ours = facts(before, after, known)
        rungs = [(t.number, step) for t in before for step in t.intermediate_values if step in RUNGS]
        kept = sum(step in after[number].intermediate_values for number, step in rungs)
        ours["values at rungs at the kill -> those the scheduler has after it went on"] = f"{len(rungs)} -> {kept}"
        rows = [f"| {name} | {value} | {ours[name]} |" for name, value in theirs.items()]
        text = "\n".join([
            small.heading("One kill -9 half way", "python benchmarks/stock.py"),
            "| | OptunaSearch + ASHAScheduler, Tuner.restore | vqsearch resume |", "| --- | --- | --- |", *rows, "",
        ])  # fmt: skip
        print(text)
        small.write("stock", text)
    finally:
        for name in ("stock", "ours"):
            log = root / name / "log.txt"
            if sys.exc_info()[0] and log.exists():
                print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
