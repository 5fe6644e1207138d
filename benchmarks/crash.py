"""A search under random `kill -9` of its driver, its workers and Ray's raylet, on SQLite and on PostgreSQL.

After each death of a driver the search goes on by `vqsearch resume`, given the storage URL and the study's name alone.
At the end the study is held against what was seen of it on the way, its best model is measured again, and its best
setting is trained again without any kill. Only processes that were started here are killed.

python benchmarks/crash.py                  writes benchmarks/results/DATE-crash.md; needs the dev extra
python benchmarks/crash.py --quick          6 trials, 5 kills, SQLite alone; writes nothing
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import small
from optuna.trial import FrozenTrial, TrialState

from search import catalog, records
from search.errors import VqsearchError
from search.lease import is_lease
from search.space import Space
from search.storage import open_storage

LONGEST_PAUSE_S = 9.0
"""Between two kills, or a start and a kill: some meet a search that is only beginning."""
PATIENCE_S = 180.0
"""After which a search that should have moved or ended counts as hung."""
MORE_TRIALS = 6
"""By which the budget grows where a search ends before the last kill."""


@dataclass(kw_only=True)
class Soak:
    """One search under fire.

    Attributes:
        folder: of everything that it writes.
        url: its storage.
        trials: its budget.
        process: the driver that runs now.
        seen: every process that a driver started.
        snapshots: the trials after each death of a driver.
        starts: how many drivers there were.
        kills: kind of victim -> how many.
        driver_ends: how drivers ended that were not killed -> how many.
        faults: what went wrong on the way.
    """

    folder: Path
    url: str
    trials: int
    process: subprocess.Popen[bytes] | None = None
    seen: set[psutil.Process] = field(default_factory=set)
    snapshots: list[list[FrozenTrial]] = field(default_factory=list)
    starts: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    driver_ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """A vqsearch command; the storage comes from the environment."""
        return [sys.executable, "-m", "search", *arguments]

    def start(self) -> None:
        """Launch the search, or go on with it if the storage has it."""
        known = self.read() is not None
        arguments = ["resume", "--study", "soak", "--trials", str(self.trials)] if known else ["launch", "soak.yaml"]
        self.starts += 1
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=small.environment(self.url, self.folder),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def read(self) -> tuple[list[FrozenTrial], Space] | None:
        """The trials as the storage has them, and their space; None before there is a study."""
        try:
            study, space = catalog.load(open_storage(self.url, create=False), "soak")
        except VqsearchError:
            return None
        return study.get_trials(), space

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind that run now: driver, worker or raylet."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            if kind == "driver":
                return [driver]
            children = driver.children(recursive=True)
            self.seen.update(children)
            # A worker is one that trains a trial now: only its death loses anything. (Where Ray's workers in reserve
            # die while a driver registers, ray 2.60 keeps it waiting for ever.)
            wanted = "raylet$" if kind == "raylet" else r"ray::ImplicitFunc\.train"
            return [child for child in children if re.match(wanted, _name(child))]
        return []

    def bury(self) -> None:
        """After a driver's death the study is looked at; its processes, which should end by themselves, are not."""
        assert self.process is not None
        self.process.wait()
        found = self.read()
        if found:
            self.snapshots.append(found[0])

    def left(self, patience_s: float) -> int:
        """How many processes of dead drivers are still there after some seconds; they are ended."""
        _, alive = psutil.wait_procs(list(self.seen), timeout=patience_s)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(alive)

    def ended(self) -> bool:
        """Whether the search is over; where its driver died of its raylet's death it is started again."""
        assert self.process is not None
        code = self.process.wait(PATIENCE_S)
        self.bury()
        self.driver_ends[f"exit {code}"] += 1
        if code == 0:
            return True
        if code != 1:
            self.faults.append(f"a driver ended with {code}")
        self.start()
        return False


def _name(process: psutil.Process) -> str:
    """The program; "" for one that has died, though its parent has not taken notice."""
    with contextlib.suppress(psutil.Error, IndexError):
        return Path(process.cmdline()[0]).name
    return ""


def run(soak: Soak, plan: list[str], dice: random.Random) -> None:
    """Kill what the plan says, at random times, until the search is over and the plan is done."""
    soak.start()
    assert soak.process is not None
    for kind in plan:
        due = time.monotonic() + dice.uniform(0.5, LONGEST_PAUSE_S)
        while True:
            if time.monotonic() > due + PATIENCE_S:
                raise TimeoutError(f"no {kind} to kill in {PATIENCE_S:g} s")
            if soak.process.poll() is not None:
                if soak.ended():
                    soak.trials += MORE_TRIALS
                    soak.start()
            elif (found := soak.victims(kind)) and time.monotonic() > due:
                break
            time.sleep(0.05)
        victim = dice.choice(sorted(found, key=lambda process: process.pid))
        with contextlib.suppress(psutil.NoSuchProcess):
            what = _name(victim) if kind == "worker" else kind
            soak.victims(kind)  # so that no process of its goes unseen
            victim.send_signal(signal.SIGKILL)
            soak.kills[kind] += 1
            _say(f"{soak.kills.total():3d} of {len(plan)}: killed {what}")
        if kind == "driver":
            soak.bury()
            soak.start()
    while not soak.ended():
        pass


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)


Check = tuple[str, str, bool]
"""What has to hold, what was found, and whether it holds."""


def checks(soak: Soak) -> Iterator[Check]:
    """Hold the finished study against what was seen of it on the way."""
    found = soak.read()
    assert found is not None
    trials, space = found
    boundaries = (*space.rungs, space.budget.steps)
    states = Counter(trial.state.name for trial in trials)
    yield "budget exact", f"{len(trials)} of {soak.trials}", [t.number for t in trials] == list(range(soak.trials))
    told = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
    yield "all COMPLETE or PRUNED, none RUNNING", told, set(states) <= {"COMPLETE", "PRUNED"}
    log = (soak.folder / "log.txt").read_text(errors="replace")
    ends = Counter(re.findall(r"trial (\d+) (?:is complete|is pruned|failed)", log))
    again = sum(_changed(then, now) for shot in soak.snapshots for then, now in zip(shot, trials, strict=False))
    most = max(ends.values(), default=0)
    yield "every trial finished once", f"{again} finished twice; told at most {most} times", not again and most == 1
    broken = [t.number for t in trials if list(t.intermediate_values) != list(boundaries[: len(t.intermediate_values)])]
    broken += [t.number for t in trials if not all(map(math.isfinite, t.intermediate_values.values()))]
    broken += [t.number for t in trials if t.state == TrialState.COMPLETE and t.last_step != boundaries[-1]]
    points = sum(len(t.intermediate_values) for t in trials)
    yield "curves complete, finite, increasing in step", f"{points} points, {len(broken)} wrong", not broken
    lost = sum(_lost(then, now) for shot in soak.snapshots for then, now in zip(shot, trials, strict=False))
    seen = sum(len(shot) for shot in soak.snapshots)
    yield "no point, parameter or trial lost", f"{lost} lost of {seen} looked at", not lost
    wrong = [t.number for t in trials if not _decided(t, space)]
    yield "a decision at every rung, and the state follows it", f"{len(wrong)} wrong", not wrong
    settings = {json.dumps(t.params, sort_keys=True) for t in trials}
    yield "no setting tried twice", f"{len(settings)} settings", len(settings) == len(trials)
    # A raylet takes the workers of every running trial with it, two here; one that had just begun may not count yet.
    lost_workers, most = sum(map(records.retries, trials)), soak.kills["worker"] + 2 * soak.kills["raylet"]
    found_lost = f"{lost_workers} trials lost theirs, of {soak.kills['worker']} killed alone"
    yield "workers were killed while they trained", found_lost, soak.kills["worker"] / 2 <= lost_workers <= most
    leases = [name for name in _names(soak.url) if is_lease(name)]
    yield "lease free", f"{len(leases)} held", not leases
    left = soak.left(60)
    yield "no process left behind", f"{left} of {len(soak.seen)}", not left
    yield "drivers that ended by themselves", _counts(soak.driver_ends), not soak.faults
    yield from _best_again(soak, trials)


def _changed(then: FrozenTrial, now: FrozenTrial) -> bool:
    """Whether a trial that was finished then was touched again."""
    kept = ("state", "params", "intermediate_values", "values", "datetime_complete")
    return then.state.is_finished() and any(getattr(then, name) != getattr(now, name) for name in kept)


def _lost(then: FrozenTrial, now: FrozenTrial) -> bool:
    curve = then.intermediate_values.items() <= now.intermediate_values.items()
    return not (curve and then.params.items() <= now.params.items() and then.number == now.number)


def _decided(trial: FrozenTrial, space: Space) -> bool:
    rungs = [step for step in trial.intermediate_values if step in space.rungs]
    made = [trial.user_attrs.get(f"decision at {step}") for step in rungs]
    last = "prune" if trial.state == TrialState.PRUNED else "continue"
    return made == [*["continue"] * (len(rungs) - 1), last][: len(rungs)]


def _names(url: str) -> list[str]:
    return [summary.study_name for summary in open_storage(url, create=False).get_all_studies()]


def _best_again(soak: Soak, trials: list[FrozenTrial]) -> Iterator[Check]:
    """Export the best model and measure it; train its setting again, undisturbed."""
    import torch

    from vqvae import checkpoint, data, metrics

    torch.set_num_threads(1)
    best = max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or -math.inf)
    for arguments, model in (
        (["export", "--study", "soak", "--to", "model"], soak.folder / "model"),
        (["train", "--study", "soak", "--trial", str(best.number), "--to", "again", "-q"], soak.folder / "again/model"),
    ):
        ran = subprocess.run(
            soak.command(*arguments),
            cwd=soak.folder,
            env=small.environment(soak.url, soak.folder),
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            yield f"vqsearch {arguments[0]}", ran.stderr.strip()[-200:], False
            continue
        config = checkpoint.load_config(model)
        held_out = data.load(config.data).validation
        value = metrics.evaluate(checkpoint.load(model), held_out, config.evaluation, config.batch_size).metrics["psnr"]
        claim = "exported, it measures" if arguments[0] == "export" else "trained again undisturbed, it measures"
        yield f"trial {best.number} is the best; {claim} the same", f"{value!r} dB, {best.value!r}", value == best.value


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counter.items())) or "none"


@contextlib.contextmanager
def storages(kinds: list[str], folder: Path) -> Iterator[dict[str, str]]:
    """An empty storage of each kind: its URL."""
    urls = {}
    with contextlib.ExitStack() as stack:
        if "sqlite" in kinds:
            urls["sqlite"] = f"sqlite:///{folder}/studies.db"
        if "postgresql" in kinds:
            import pgserver

            server = pgserver.get_server(folder / "pg", cleanup_mode="stop")
            stack.callback(server.cleanup)
            urls["postgresql"] = server.get_uri()
        yield urls


def report(soak: Soak, kind: str, seconds: float, found: list[Check]) -> str:
    """A section of the result, in Markdown."""
    finished = f"{soak.kills.total()} kills ({_counts(soak.kills)}), {soak.starts} drivers, {seconds:.0f} s"
    rows = [f"| {claim} | {what} | {'yes' if holds else '**no**'} |" for claim, what, holds in found]
    table = ["| what has to hold | found | holds |", "| --- | --- | --- |", *rows]
    return "\n".join([f"## {kind}", "", finished, "", *table, ""])


def main() -> int:
    """Run the soak; exit 0 when everything holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 trials, 5 kills, SQLite alone, no result file")
    parser.add_argument("--seed", type=int, default=0, help="of victims and times")
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=540, help="optimizer steps of a trial")
    arguments = parser.parse_args()
    kinds = arguments.storage or (["sqlite"] if arguments.quick else ["sqlite", "postgresql"])
    trials, counts = (6, (2, 1, 2)) if arguments.quick else (24, (8, 5, 8))
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    sections, good = [], True
    stop: Callable[..., None] = sys.exit
    signal.signal(signal.SIGTERM, lambda *_: stop(143))
    try:
        with storages(kinds, folder) as urls:
            for kind, url in urls.items():
                _say(f"{kind}: {trials} trials, {sum(counts)} kills")
                dice = random.Random(f"{arguments.seed} {kind}")
                plan = [name for name, n in zip(("driver", "raylet", "worker"), counts, strict=True) for _ in range(n)]
                dice.shuffle(plan)
                place = folder / kind
                place.mkdir()
                text = small.space(
                    "soak", trials=trials, steps=arguments.steps, rest="retries: 100", train="checkpoint_every: 20"
                )
                (place / "soak.yaml").write_text(text)
                soak = Soak(folder=place, url=url, trials=trials)
                started = time.monotonic()
                try:
                    run(soak, plan, dice)
                    found = list(checks(soak))
                except BaseException:
                    log = place / "log.txt"
                    print(log.read_text(errors="replace")[-5000:] if log.exists() else "", file=sys.stderr)
                    raise
                finally:
                    if soak.process is not None and soak.process.poll() is None:
                        soak.victims("worker")
                        soak.process.kill()
                    soak.left(5)
                sections.append(report(soak, kind, time.monotonic() - started, found))
                print(sections[-1], flush=True)
                good = good and all(holds for *_, holds in found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not arguments.quick:
        flags = " ".join(sys.argv[1:])
        command = f"python benchmarks/crash.py {flags}".strip()
        small.write("crash", "\n".join([small.heading("A search under random `kill -9`", command), *sections]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
