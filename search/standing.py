"""Where a study stands, from its storage, with what its driver has in memory; and how that is said in a line."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import records, remaining, retention
from search.parameters import settings
from search.remaining import Work
from search.space import Space
from search.text import one_line, printable
from search.units import duration
from vqvae.config import COSTS

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""The states of trials, as people say them."""

AT_A_RUNG = "at a rung"
BEFORE_TRAINING = "before training"


@dataclass(frozen=True, kw_only=True)
class News:
    """What a driver has in memory of a running trial.

    Attributes:
        step: optimizer steps done.
        metrics: as last reported.
        spent_s: wall seconds for which it has been trained.
    """

    step: int
    metrics: Mapping[str, float]
    spent_s: float


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial that runs now.

    Attributes:
        number: in its study.
        backbone: of its model; "" for what a trainer of one's own trains.
        labels: its parameters as stored.
        step: optimizer steps done; as of the last checkpoint where nobody knows better.
        value, value_at: the objective as last evaluated, and at which step; None before the first rung.
        images_per_s: of training; None before it is known.
        memory_gib: peak of the GPU memory; None on a CPU.
        heard: seconds since the epoch at which the storage last heard of it; None where the driver knows better.
    """

    number: int
    backbone: str
    labels: Mapping[str, Any]
    step: int
    value: float | None
    value_at: int | None
    images_per_s: float | None
    memory_gib: float | None
    heard: float | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands.

    Attributes:
        counts: state -> number of trials, those refused before training aside.
        causes: PRUNED or FAIL -> why, in a word or two -> number of trials.
        invalid: trials refused before training.
        total: trials of the budget.
        hours, total_hours: wall hours of drivers, and those of the budget; None where it has none.
        running: what runs now, by number.
        best: the best complete trial that keeps the limits.
        history: value of the best so far, after each trial that finished since there is one.
        trained_s: wall seconds of training of all trials together.
        left_s: estimated wall seconds until the budget is spent; None while nothing is known, or nothing runs.
        at_most: the estimate is an upper bound, since nothing was pruned yet.
        work: what is left to train, finalists to come included; None where nothing does it.
        finalists, judged: trials that judge settings again, and those of them that have ended.
        at_target: they do so at the target of a transfer.
    """

    counts: Mapping[str, int]
    causes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    invalid: int = 0
    total: int
    hours: float = 0.0
    total_hours: float | None = None
    running: Sequence[Running] = ()
    best: FrozenTrial | None = None
    history: Sequence[float] = ()
    trained_s: float = 0.0
    left_s: float | None = None
    at_most: bool = False
    work: Work | None = None
    finalists: int = 0
    judged: int = 0
    at_target: bool = False

    @property
    def done(self) -> int:
        """Trials that used up the budget."""
        return sum(self.counts.get(state, 0) for state in ("COMPLETE", "PRUNED", "FAIL"))

    @property
    def share(self) -> float:
        """How much of the budget is used up, of trials or of hours, whichever ends it first; in [0, 1]."""
        hours = self.hours / self.total_hours if self.total_hours else 0.0
        return min(max(self.done / self.total, hours), 1.0)

    def with_news(self, news: Mapping[int, News]) -> Standing:
        """The same with newer news of the running trials; those of which there is none run no more."""
        known = [_told(each, news[each.number]) for each in self.running if each.number in news]
        return replace(self, running=known)


def standing(
    study: optuna.Study, space: Space, news: Mapping[int, News] | None = None, hours: float | None = None
) -> Standing:
    """Where a study stands, from its storage.

    Args:
        study: what is asked.
        space: its space.
        news: what its driver knows of the running trials, by number; None for someone who only looks.
        hours: wall hours of drivers up to now; None for what the storage says.
    """
    trials = study.get_trials(deepcopy=False)
    own = [trial for trial in trials if records.searched(trial)]
    valid = [trial for trial in own if not records.is_invalid(trial)]
    finished = [trial for trial in valid if trial.state.is_finished()]
    judges = [trial for trial in trials if records.finalist(trial) is not None]
    judged = [trial for trial in judges if trial.state.is_finished()]
    now = [t for t in (*valid, *judges) if (t.state == TrialState.RUNNING if news is None else t.number in news)]
    running = [_running(trial, space, (news or {}).get(trial.number)) for trial in now]
    spent_s = [news[t.number].spent_s if news else _since(t) for t in now]
    hours = records.hours(study) if hours is None else hours
    ranked = ranking(study)
    if len(judges) > len(judged):
        like = [] if space.transfer else ranked  # trials at a target take longer than those of the search
        now_left = work = remaining.judging(len(judges), judged, like, spent_s)
    else:
        now_left = remaining.searching(
            finished, [(each.step, each.images_per_s) for each in running], spent_s, space, hours
        )
        work = remaining.with_finalists(now_left, study, space, trials)
    causes: dict[str, Counter[str]] = {"PRUNED": Counter(), "FAIL": Counter()}
    for trial in finished:
        if trial.state != TrialState.COMPLETE:
            causes[trial.state.name][cause(trial)] += 1
    return Standing(
        counts=dict(Counter(trial.state.name for trial in valid)),
        causes=causes,
        invalid=len(own) - len(valid),
        total=space.budget.trials,
        hours=hours,
        total_hours=space.budget.hours,
        running=running,
        best=ranked[0] if ranked else None,
        history=_history(finished, ranked),
        trained_s=sum(records.seconds(trial) for trial in trials),
        left_s=remaining.left_s([now_left]),
        at_most=not finished,
        work=work,
        finalists=len(judges),
        judged=len(judged),
        at_target=space.transfer is not None,
    )


def _running(trial: FrozenTrial, space: Space, news: News | None) -> Running:
    checkpoint = records.checkpoint(trial)
    value_at = trial.last_step
    metrics = checkpoint.metrics if checkpoint else {}
    value = None if value_at is None else trial.intermediate_values[value_at]
    heard = checkpoint.time if checkpoint and checkpoint.time else time.time() - _since(trial)
    stored = Running(
        number=trial.number,
        backbone="" if space.trainer else str(trial.params.get("model.backbone", space.base.model.backbone)),
        labels=trial.params,
        step=max(value_at or 0, checkpoint.step if checkpoint else 0),
        value=value,
        value_at=value_at,
        images_per_s=metrics.get("images_per_s"),
        memory_gib=metrics.get("peak_memory_gib"),
        heard=heard if news is None else None,
    )
    return stored if news is None else _told(stored, news)


def _told(running: Running, news: News) -> Running:
    return replace(
        running,
        step=news.step,
        images_per_s=news.metrics.get("images_per_s", running.images_per_s),
        memory_gib=news.metrics.get("peak_memory_gib", running.memory_gib),
    )


def _since(trial: FrozenTrial) -> float:
    """Seconds since a trial began, by the clock of the machine that began it."""
    return max(time.time() - trial.datetime_start.timestamp(), 0.0) if trial.datetime_start else 0.0


def _history(finished: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial]) -> list[float]:
    place = {trial.number: at for at, trial in enumerate(ranked)}
    values = {trial.number: float(trial.value or 0.0) for trial in ranked}
    best: int | None = None
    history = []
    for trial in sorted(finished, key=lambda t: t.datetime_complete.timestamp() if t.datetime_complete else 0.0):
        if trial.number in place and (best is None or place[trial.number] < place[best]):
            best = trial.number
        if best is not None:
            history.append(values[best])
    return history


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that keep the limits, the best first."""
    return retention.ranked(study.get_trials(deepcopy=False), study.direction)


def ranking_of_models(study: optuna.Study) -> list[FrozenTrial]:
    """The same of what a study was made for: of a transfer those at the target, as soon as there are any."""
    trials = study.get_trials(deepcopy=False)
    return retention.ranked_at_target(trials, study.direction) or retention.ranked(trials, study.direction)


def cause(trial: FrozenTrial) -> str:
    """Why a trial was pruned or failed, in a word or two to group by."""
    reason = records.reason(trial).strip()
    if trial.state == TrialState.FAIL:
        last = reason.rpartition("\n")[2]  # A traceback ends with its exception; whatever else fails says so in a line.
        if re.fullmatch(r"lost its worker \d+ times", last):
            return "lost its worker"
        name = re.match(r"[\w.]+(?=:|$)", last)
        return name[0].rpartition(".")[2] if name else "unknown"
    if records.is_invalid(trial):
        return BEFORE_TRAINING
    broken = [name for name, value in trial.constraints.items() if value > 0]
    if "diverged" in broken:
        return "diverged"
    if "memory" in broken:
        return "out of memory"
    if broken:
        return f"outside {', '.join(sorted(broken))}"
    return "by hand" if reason == records.BY_HAND else AT_A_RUNG


def states(now: Standing, *names: str) -> str:
    """How many trials are in which state, and why: 8 complete, 11 pruned (9 at a rung, 2 diverged)."""
    words = []
    for state in names or STATES:
        if count := now.counts.get(state, 0):
            why = Counter(now.causes.get(state, {})).most_common()
            reasons = ", ".join(f"{number} {word}" if len(why) > 1 else word for word, number in why)
            words.append(f"{count} {STATES[state]}{reasons and f' ({reasons})'}")
    return printable(", ".join(words))


def refused(now: Standing) -> str:
    """How many trials broke a limit before any training; "" for none."""
    trials = "trial" if now.invalid == 1 else "trials"
    return f"{now.invalid} {trials} broke a limit before training" if now.invalid else ""


def finalists(now: Standing) -> str:
    """How many settings are judged; "" where none is."""
    what = "settings trained at the target" if now.at_target else "finalists judged"
    return f"{now.judged} of {now.finalists} {what}" if now.finalists else ""


def left(now: Standing) -> str:
    """The time left in words; "" where nothing is known."""
    if now.left_s is None:
        return ""
    return f"{'at most' if now.at_most else 'about'} {duration(now.left_s)} left"


def budget(now: Standing) -> str:
    """What of the budget is used up: 12 of 64 trials, 2 h 5 min of 8 h."""
    hours = "" if now.total_hours is None else f", {duration(now.hours * 3600)} of {now.total_hours:g} h"
    return f"{now.done} of {now.total} trials{hours}"


def named(trial: FrozenTrial) -> str:
    """Its number, and of a copy what it is a copy of: 3, a copy of trial 7 of demo."""
    original = records.copied(trial)
    copy = f", a copy of trial {original.number} of {one_line(original.study)}" if original else ""
    return f"{trial.number}{copy}"


def summary(study: optuna.Study, space: Space) -> list[str]:
    """What a study came to, in lines."""
    now = standing(study, space)
    lines = [f"{study.study_name}: {budget(now)}: {states(now) or 'none yet'}"]
    if now.invalid:
        lines.append(refused(now))
    if now.finalists:
        lines.append(finalists(now))
    if now.best:
        lines.append(f"best: trial {named(now.best)}, {space.objective.metric} {now.best.value:.5g}")
        lines.append(f"      {settings(now.best.params)}")
    return [printable(line) for line in lines]


def shown(value: Any) -> str:
    """A parameter for people: four significant digits of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_metric(name: str) -> bool:
    """Whether an attribute of a trial is something that an evaluation measured."""
    return name.startswith("val/") or name in COSTS


def as_json(trial: FrozenTrial) -> dict[str, Any]:
    """One trial for programs."""
    checkpoint, original = records.checkpoint(trial), records.copied(trial)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "metrics": {name: value for name, value in trial.user_attrs.items() if is_metric(name)},
        "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "constraints": trial.constraints,
        "reason": records.reason(trial),
        "checkpoint": None if checkpoint is None else {"step": checkpoint.step, "folder": checkpoint.folder},
        "seconds": records.seconds(trial),
        "copy_of": None if original is None else {"study": original.study, "number": original.number},
    }
