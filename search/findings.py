"""What a study found, for whoever reports it: read once from the storage, with nothing that needs it any more.

Page, paper and Markdown are made of these; they add words and pictures, never numbers.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import code, gap, ranking, records, retention, verdict, yaml12
from search.errors import UserError
from search.gap import Gap
from search.ranking import Arm, Ranking
from search.sampling import Searched
from search.space import Space
from search.standing import is_metric
from search.storage import redact
from search.verdict import Verdict
from vqvae import conversion
from vqvae.config import METRICS, VqvaeError
from vqvae.model import bits_per_image

LEAST_FOR_IMPORTANCES = 8
"""Complete trials below which a parameter's importance says nothing."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, as it ended or stands.

    Attributes:
        number: in its study.
        state: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        origin: suggested, baseline, by hand, copied from another study, or finalist.
        value: the objective at the last step; None where it did not get there.
        step: optimizer steps to its last point; 0 before the first.
        curve: (step, objective) at each rung and at the last step.
        settings: dotted field -> label, as searched.
        metrics: as last measured: val/..., costs, and what is known before training.
        seconds: wall time of training, over all its workers.
        began, ended: wall clock; None where it did not.
        cause: why it ended, in a word or two, to group by; "" for COMPLETE.
        reason: the same in full: a line, or a traceback.
        broken: limit -> by how much it is broken, above 0.
        device: model of its GPU or CPU; "" where unknown.
        pictures: what lies below the output root.
    """

    number: int
    state: str
    origin: str
    value: float | None
    step: int
    curve: tuple[tuple[int, float], ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    began: datetime | None
    ended: datetime | None
    cause: str
    reason: str
    broken: Mapping[str, float]
    device: str
    pictures: tuple[records.Picture, ...]

    @property
    def keeps_limits(self) -> bool:
        """Whether it broke no limit; only such trials are ranked."""
        return not self.broken

    def picture(self, name: str) -> records.Picture | None:
        """Its last picture of a name; None where there is none."""
        return max((p for p in self.pictures if p.name == name), key=lambda p: p.step, default=None)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What a study cost, and what pruning saved.

    Attributes:
        trial_hours: wall hours of training, over all trials, finalists among them.
        finalist_hours: those of the finalists alone.
        gpu_hours: the same times the GPUs of a trial.
        driver_hours: wall hours of all drivers; 0 where none has ended yet.
        saved_hours: what stopped trials would have trained on to their last step, each at its own speed.
        images: training images seen, over all trials; 0 where a trainer of one's own has its own batches.
        devices: model of GPU or CPU -> trials on it.
    """

    trial_hours: float
    finalist_hours: float
    gpu_hours: float
    driver_hours: float
    saved_hours: float
    images: int
    devices: Mapping[str, int]

    @property
    def saved_share(self) -> float:
        """Of what training every trial of the search to its last step would have cost, in [0, 1)."""
        return self.saved_hours / whole if (whole := self.search_hours + self.saved_hours) else 0.0

    @property
    def search_hours(self) -> float:
        """Wall hours of training, over the trials of the search."""
        return self.trial_hours - self.finalist_hours


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A study, read once.

    Attributes:
        study: its name.
        space: what was searched.
        yaml: the space file as stored: paths absolute, no storage.
        startup: quasi-random trials before the sampler takes over.
        storage: its URL without a password.
        root: output root of the pictures.
        roots: the same of studies from which trials were copied, by their names, which pictures' folders begin with.
        sizes: images per split; empty where unknown.
        versions: package -> version, with the first trial that they hold for (from_trial).
        trials: all, copies and those refused before training among them, by number.
        ranking: numbers of complete trials that keep the limits, the best first.
        compute: what it cost.
        importances: parameter -> share of the objective's variance, the largest first; see `why_no_importances`.
        why_no_importances: "" where there are some.
        over: the budget is spent and nothing runs.
        verdict: what its finalists came to; None where there are none.
        gap: what its transfer came to; None where it is none.
        tie: which arm of which comparison it is; None where it stands alone.
        arm: the same as it is ranked among the others.
        codes: the user's own code, in words -> numbers of the trials that it last made; empty where it is one for all.
    """

    study: str
    space: Space
    yaml: str
    startup: int
    storage: str
    root: str
    roots: Mapping[str, str]
    sizes: Mapping[str, int]
    versions: Sequence[Mapping[str, Any]]
    trials: Sequence[Trial]
    ranking: Sequence[int]
    compute: Compute
    importances: Mapping[str, float]
    why_no_importances: str
    over: bool
    verdict: Verdict | None = None
    gap: Gap | None = None
    tie: records.Tie | None = None
    arm: Arm | None = None
    codes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def packages(self) -> list[dict[str, Any]]:
        """The versions, without the user's own code where `codes` says it by trials."""
        found: list[dict[str, Any]] = []
        for held in self.versions:
            plain = {k: v for k, v in held.items() if not (self.codes and k.startswith(code.VERSION))}
            if not found or plain | {"from_trial": 0} != found[-1] | {"from_trial": 0}:
                found.append(plain)
        return found

    @property
    def metric(self) -> str:
        """Name of the objective."""
        return self.space.objective.metric

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return 1 if self.space.objective.direction == "minimize" else -1

    @property
    def best(self) -> Trial | None:
        """The best complete trial that keeps the limits."""
        return self.trials[self.ranking[0]] if self.ranking else None

    @property
    def runner_up(self) -> Trial | None:
        """The one after it."""
        return self.trials[self.ranking[1]] if len(self.ranking) > 1 else None

    @property
    def baselines(self) -> list[Trial]:
        """Trials of the settings that were to be beaten."""
        return [trial for trial in self.trials if trial.origin == "baseline"]

    @property
    def own(self) -> list[Trial]:
        """Trials of this study that count towards its budget, or will."""
        return [t for t in self.trials if not t.origin.startswith(ELSEWHERE) and t.cause != BEFORE_TRAINING]

    def ended(self, state: str) -> list[Trial]:
        """Own trials in a state."""
        return [trial for trial in self.own if trial.state == state]

    def causes(self) -> Counter[tuple[str, str]]:
        """(state, cause) of all trials that did not complete -> how many, copies aside."""
        return Counter((t.state, t.cause) for t in self.trials if t.cause and not t.origin.startswith(ELSEWHERE))

    def gain(self, over: Trial) -> float | None:
        """By how much the best trial is better than another one; positive is better, None where either has no value."""
        if self.best is None or self.best.value is None or over.value is None:
            return None
        return self.sign * (over.value - self.best.value)


ELSEWHERE = ("copied", "finalist")
"""How the origins of trials begin that are none of the search itself."""

BEFORE_TRAINING = "over a limit before training"
AT_A_RUNG = "not among the best at a rung"


def read(study: optuna.Study, space: Space, url: str) -> Findings:
    """All that a report says of a study.

    Args:
        study: as loaded.
        space: its space.
        url: of its storage; a password in it is left out.
    """
    frozen = study.get_trials(deepcopy=False)
    trials = [_trial(each, space) for each in frozen]
    found, why = importances(study, space)
    counted = sum(records.counts(each) for each in frozen)
    judged, tie = verdict.judge(study, space), records.tie(study)
    return Findings(
        study=study.study_name,
        space=space,
        yaml=_yaml(space),
        startup=records.startup(study),
        storage=redact(url),
        root=records.output(study),
        roots={original.study: original.output for original in map(records.copied, frozen) if original is not None},
        sizes=records.sizes(study),
        versions=records.versions(study),
        trials=trials,
        ranking=[each.number for each in retention.ranked(frozen, study.direction)],
        compute=_compute(trials, space, records.hours(study)),
        importances=found,
        why_no_importances=why,
        over=counted >= space.budget.trials and all(each.state != TrialState.RUNNING for each in frozen),
        verdict=judged,
        gap=gap.read(study, space, study._storage),
        tie=tie,
        arm=ranking.arm(study, space, judged) if tie else None,
        codes=_codes(frozen),
    )


def _codes(trials: Sequence[FrozenTrial]) -> dict[str, list[int]]:
    words: dict[tuple[str, ...], str] = {}
    found: dict[str, list[int]] = {}
    for trial in trials:
        if held := records.code(trial):
            alike = words.setdefault(tuple(code.hashes_of(held)), code.words(held))  # wherever its files lay
            found.setdefault(alike, []).append(trial.number)
    return found if len(found) > 1 else {}


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: ``0 to 3, 5``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, each)) for each in found)


def comparable(findings: Sequence[Findings]) -> None:
    """Refuse studies that can't stand side by side; in what else they differ `differences` says.

    Raises:
        UserError: their objectives differ, or one is given twice.
    """
    first = findings[0]
    for other in findings[1:]:
        if other.study == first.study:
            raise UserError(f"--study {other.study}: given twice; expected different studies")
        if (other.metric, other.sign) != (first.metric, first.sign):
            raise UserError(
                f"--study {other.study}: its objective is {other.space.objective.direction} {other.metric}, that of "
                f"{first.study} is {first.space.objective.direction} {first.metric}; expected studies of one objective"
            )


def ranked(found: Sequence[Findings]) -> Ranking | None:
    """What the arms of a comparison came to; None where studies are not all arms of one, or there is but one."""
    tie = ranking.same([each.tie for each in found])
    return ranking.among(tie, [each.arm for each in found if each.arm]) if tie and len(found) > 1 else None


def differences(findings: Sequence[Findings]) -> dict[str, list[Any]]:
    """Fixed fields of training in which several studies differ -> the value of each; whoever compares must know them.

    Fields that any of them searches, and those that change nothing that is measured, are left out.
    """
    silent = {p.name for each in findings for p in each.space.parameters} | {
        "rungs", "device", "compile", "checkpoint_every", "micro_batch", "data.cache", "loss.lpips_trunk",
        "evaluation.lpips_trunk",
    }  # fmt: skip
    found: dict[str, list[Any]] = {}
    if len({each.space.trainer for each in findings}) > 1:
        found["trainer"] = [each.space.trainer for each in findings]
    for key in conversion.fields():
        values = []
        for each in findings:
            value: Any = each.space.base
            for part in key.split("."):
                value = getattr(value, part)
            values.append(value)
        if key not in silent and any(value != values[0] for value in values):
            found[key] = values
    return found


def front(trials: Sequence[Trial], first: tuple[str, int], second: tuple[str, int]) -> list[int]:
    """Numbers of the trials that no other one beats in two quantities at once (the Pareto front), by the first.

    Args:
        trials: to choose from.
        first, second: quantity (a metric, or "value" for the objective) and sign: 1 where less is better, else -1.
    """

    def of(trial: Trial, quantity: tuple[str, int]) -> float:
        name, sign = quantity
        value = trial.value if name == "value" else trial.metrics.get(name)
        return math.inf if value is None or not math.isfinite(value) else sign * value

    points = sorted((of(t, first), of(t, second), t.number) for t in trials)
    chosen, least = [], math.inf
    for x, y, number in points:
        if x < math.inf and y < least:
            chosen.append(number)
            least = y
    return chosen


def direction(metric: str) -> int:
    """1 where less of a metric is better, -1 where more is, 0 where neither."""
    return {"minimize": 1, "maximize": -1}.get(METRICS.get(metric, ""), 0)


def importances(study: optuna.Study, space: Space) -> tuple[dict[str, float], str]:
    """How much of the objective's variance each parameter explains (fANOVA, Hutter et al. 2014).

    Returns:
        Parameter -> share, the largest first; and why there are none, "" where there are some. Parameters that only
        some trials have are left out.
    """
    study = Searched(study)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCES:
        return {}, f"{len(complete)} complete trials are too few; from {LEAST_FOR_IMPORTANCES} on they say something"
    always = set.intersection(*(set(trial.params) for trial in complete))
    varied = [p.name for p in space.parameters if p.name in always and len({t.params[p.name] for t in complete}) > 1]
    if not varied or len({trial.value for trial in complete}) < 2:
        return {}, "the complete trials do not differ"
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name: float(share) for name, share in shares.items()}, ""


def _trial(trial: FrozenTrial, space: Space) -> Trial:
    curve = tuple(sorted(trial.intermediate_values.items()))
    reason = records.reason(trial)
    broken = {name: value for name, value in trial.constraints.items() if value > 0}
    return Trial(
        number=trial.number,
        state=trial.state.name,
        origin=_origin(trial, space),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        step=curve[-1][0] if curve else 0,
        curve=curve,
        settings=dict(trial.params),
        metrics=_metrics(trial, space),
        seconds=records.seconds(trial),
        began=trial.datetime_start,
        ended=trial.datetime_complete,
        cause=_cause(trial, reason, broken),
        reason=reason,
        broken=broken,
        device=records.device(trial),
        pictures=tuple(records.pictures(trial)),
    )


def _origin(trial: FrozenTrial, space: Space) -> str:
    original = records.copied(trial)
    if original is not None:
        return f"copied from trial {original.number} of {original.study}"
    what = records.finalist(trial)
    if what is not None:
        return f"finalist: trial {what.of} {'at the target' if what.at_target else f'with seed {what.seed}'}"
    if records.ENQUEUED in trial.user_attrs:
        return "by hand"
    asked = trial.system_attrs.get("fixed_params")
    return "baseline" if asked and any(dict(each) == asked for each in space.baselines) else "suggested"


def _metrics(trial: FrozenTrial, space: Space) -> dict[str, float]:
    """What was measured; bits before any entropy coding, which follow from the setting, beside it."""
    found = {
        name: float(value)
        for name, value in trial.user_attrs.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and is_metric(name)
    }
    if trial.params and space.trainer is None:
        try:
            config = space.config(trial.params)
            found["tokens"] = float(config.tokens)
            return found | {"bits_per_image": bits_per_image(config)}
        except (VqvaeError, KeyError):  # a part of a plug-in, or a value of a storage that others write to
            return found
    return found


def _cause(trial: FrozenTrial, reason: str, broken: Mapping[str, float]) -> str:
    if trial.state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING):
        return ""
    if records.is_invalid(trial):
        return BEFORE_TRAINING
    if trial.state == TrialState.FAIL:
        # A traceback ends with its exception; whatever else fails says so in a line.
        return reason.strip().rpartition("\n")[2].partition(":")[0] or "unknown"
    if "diverged" in broken:
        return "diverged"
    if "memory" in broken:
        return "out of memory"
    if broken:
        return f"over its limit: {', '.join(sorted(broken))}"
    return records.BY_HAND if reason == records.BY_HAND else AT_A_RUNG


def _compute(trials: Sequence[Trial], space: Space, driver_hours: float) -> Compute:
    own = [trial for trial in trials if not trial.origin.startswith("copied")]
    spent = sum(trial.seconds for trial in own) / 3600
    stopped = [
        t
        for t in own
        if not t.origin.startswith("finalist") and t.state == "PRUNED" and t.cause == AT_A_RUNG and t.step
    ]
    saved = sum(t.seconds * (space.budget.steps - t.step) / t.step for t in stopped) / 3600
    return Compute(
        trial_hours=spent,
        finalist_hours=sum(trial.seconds for trial in own if trial.origin.startswith("finalist")) / 3600,
        gpu_hours=spent * space.resources.gpus,
        driver_hours=driver_hours,
        saved_hours=saved,
        images=0 if space.trainer else sum(trial.step for trial in own) * space.base.batch_size,
        devices=Counter(trial.device or "unknown" for trial in own if trial.step),
    )


def _yaml(space: Space) -> str:
    values = {key: value for key, value in json.loads(json.dumps(space.source)).items() if key != "storage"}
    return yaml12.dump(values)
