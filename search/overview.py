"""What the report's page lists: key numbers, facts, searched settings, the best trials, all trials, failures, studies.

Cells are text, numbers beside it where a table sorts by them.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search import answer, charts, findings, units
from search.findings import AT_A_RUNG, Findings, Trial
from search.parameters import Parameter
from search.standing import STATES, shown
from search.text import printable
from vqvae.config import METRICS

TOP = 10
"""Trials in the table of the best."""

REASON = 4000
"""Letters of a reason that are shown, from its end, where a traceback says what happened."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell: what it says, the number it is sorted by (None: it has none), and whether its column is of numbers."""

    text: str
    value: float | None = None
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A searched field: its range, and its value in each trial that the report speaks of."""

    name: str
    range: str
    values: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Trials that ended alike without completing.

    Attributes:
        what: state and cause, in words.
        numbers: of the trials.
        reason: of the first of them, in full; "" where the cause says it all.
    """

    what: str
    numbers: Sequence[int]
    reason: str


def state(of: Findings) -> str:
    """How far a study is: ``16 of 16 trials, over``."""
    running = len(of.ended("RUNNING"))
    now = "over" if of.over else f"{running} running" if running else "not over, nothing runs"
    return f"{_done(of):,} of {of.space.budget.trials:,} trials, {now}"


def headline(of: Findings) -> list[tuple[str, str, str]]:
    """The few numbers that come first: term, value, unit."""
    found = []
    baseline = [("baseline", trial) for trial in of.baselines[:1]]
    if of.best is not None:
        label, unit = units.label(of.metric), units.unit(of.metric)
        found.append((f"best {label} (trial {of.best.number})", units.figure(of.metric, of.best.value), unit))
        others = {trial.number: (word, trial) for word, trial in (("runner-up", of.runner_up), *baseline) if trial}
        for word, other in list(others.values())[::-1]:
            if other.number != of.best.number and (gain := of.gain(other)) is not None:
                better = "better" if gain >= 0 else "worse"
                found.append((f"{better} than the {word}", _at_least(of.metric, abs(gain)), unit))
    found.append(("trials of the budget", f"{_done(of):,} / {of.space.budget.trials:,}", ""))
    found.append(("training time of all trials", *_time(of.compute.trial_hours)))
    if of.space.resources.gpus not in (0, 1):
        found.append(("GPU time", *_time(of.compute.gpu_hours)))
    return [*found, ("saved by pruning", f"{100 * of.compute.saved_share:.0f}", "%")]


def facts(of: Findings) -> list[tuple[str, str]]:
    """What was searched, on what, how, with what: term and text."""
    space, budget, resources = of.space, of.space.budget, of.space.resources
    hours = f", {budget.hours:g} wall hours" if budget.hours else ""
    held_out = "" if space.trainer else " on held-out images"
    batches = "" if space.trainer else f" of {space.base.batch_size} images"
    found = [
        ("Objective", f"{units.label(of.metric)}{held_out}, the {answer.WINS[space.objective.direction]} wins"),
        ("Trainer", space.trainer or ""),
        ("Data", answer.data(of)),
        *([] if space.trainer else _of_ours(of)),
        ("Limits", _limits(of)),
        ("Budget", f"{budget.trials:,} trials of {budget.steps:,} steps{batches}{hours}"),
        ("Sampler", f"{space.sampler.kind} (Optuna), seed {space.seed}"),
        ("Pruner", _pruner(of)),
        ("Resources of a trial", f"{resources.gpus:g} GPU, {resources.cpus:g} CPU"),
        ("Device", ", ".join(of.compute.devices) or "unknown"),
    ]
    for each in of.packages:
        since = f" (from trial {each['from_trial']})" if each.get("from_trial") else ""
        words = [f"{name} {version}" for name, version in each.items() if name != "from_trial"]
        found.append((f"Versions{since}", ", ".join(words)))
    found += [(f"Own code (trial {findings.spans(numbers)})", words) for words, numbers in of.codes.items()]
    found += [("Storage", of.storage), ("Pictures and checkpoints", of.root)]
    return [(term, text) for term, text in found if text]


def _of_ours(of: Findings) -> list[tuple[str, str]]:
    """What is known of our models without training them."""
    config, patch = of.space.base, of.space.base.model.patch
    side = config.data.resolution // patch
    return [
        ("Tokens", f"{config.tokens:,} an image ({side} x {side}, patches of {patch} px)"),
        ("Bits before coding", _bits(of)),
    ]


def versions(of: Findings) -> str:
    """The versions that the last trials were made with: ``torch 2.15.0, optuna 5.0.0``."""
    held = of.versions[-1] if of.versions else {}
    return (
        ", ".join(f"{name} {version}" for name, version in held.items() if name != "from_trial") or "unknown versions"
    )


def spoken_of(of: Findings) -> list[tuple[str, Trial]]:
    """The trials that the report speaks of: best, runner-up and baselines, each with what it is."""
    found = [
        ("best", of.best),
        ("runner-up", of.runner_up),
        *(("baseline", trial) for trial in of.baselines[: charts.BASELINES]),
    ]
    words: dict[int, list[str]] = {}
    for word, trial in found:
        if trial is not None:
            words.setdefault(trial.number, []).append(word)
    return [(f"{answer.listed(said)}, trial {number}", of.trials[number]) for number, said in words.items()]


def settings(of: Findings, trials: Sequence[Trial]) -> list[Setting]:
    """Every searched field: its range, and its value in some trials."""
    return [
        Setting(name=p.name, range=_range(p), values=[_setting(trial, p.name) for trial in trials])
        for p in of.space.parameters
    ]


def columns(of: Findings, trials: Sequence[Trial]) -> list[str]:
    """The measured quantities that the trials have: what is better or worse first, then what it costs."""
    wanted = [
        *(name for name, direction in METRICS.items() if direction and name != of.metric),
        "val/entropy_bits_per_image",
        "val/codebook_usage",
        "parameters",
        "images_per_s",
        "decode_images_per_s",
        "peak_memory_gib",
    ]
    return [name for name in wanted if any(name in trial.metrics for trial in trials)]


def best(of: Findings) -> tuple[list[tuple[str, str]], list[tuple[Trial, list[Cell]]]]:
    """The best trials: headings (label, unit), and each trial with its cells."""
    trials = [of.trials[number] for number in of.ranking[:TOP]]
    measured = columns(of, trials)
    names = [p.name for p in of.space.parameters if any(p.name in trial.settings for trial in trials)]
    numeric = {name: all(_number(t.settings[name]) is not None for t in trials if name in t.settings) for name in names}
    headings = [(units.label(name), units.unit(name)) for name in (of.metric, *measured)]
    headings += [("training time", ""), *((name, "") for name in names)]
    rows = []
    for trial in trials:
        cells = [_figure(of.metric, trial.value), *(_figure(name, trial.metrics.get(name)) for name in measured)]
        cells.append(Cell(text=units.duration(trial.seconds), value=trial.seconds))
        for name in names:
            value = _number(trial.settings.get(name)) if numeric[name] else None
            cells.append(Cell(text=_setting(trial, name), value=value, number=numeric[name]))
        rows.append((trial, cells))
    return headings, rows


def everything(of: Findings) -> dict[str, Any]:
    """All trials, for the script of the page: columns (label, unit, class), rows of text or of [text, number]."""
    names = [p.name for p in of.space.parameters]
    head = [
        ["trial", "", "number"], ["state", "", ""], [units.label(of.metric), units.unit(of.metric), "number"],
        ["step", "", "number"], *([printable(name), "", ""] for name in names), ["training time", "", "number"],
        ["origin and end", "", "wrap"],
    ]  # fmt: skip
    rows = []
    for trial in of.trials:
        last = trial.value if trial.value is not None else dict(trial.curve).get(trial.step)
        origin = [trial.origin] if trial.origin != "suggested" else []
        rows.append(
            [
                [str(trial.number), trial.number],
                STATES.get(trial.state, trial.state),
                [units.figure(of.metric, last), _number(last)],
                [f"{trial.step:,}", trial.step],
                *([printable(_setting(trial, name)), _number(trial.settings.get(name))] for name in names),
                [units.duration(trial.seconds), trial.seconds],
                printable("; ".join([*origin, *([_end(trial)] if trial.cause else [])])),
            ]
        )
    return {"columns": head, "rows": rows}


def states(of: Findings) -> list[str]:
    """The states that trials have, in words."""
    return list(dict.fromkeys(STATES.get(trial.state, trial.state) for trial in of.trials))


def about_slices(of: Findings, drawn: int) -> str:
    """How to read the slices, and what is left out of them."""
    _, outside = charts.focus(of, charts.ranked(of))
    several = f" The {drawn} most important of {len(of.space.parameters)}." if drawn < len(of.space.parameters) else ""
    return (
        f"{units.label(of.metric)} of the complete trials over one setting, the others as they happened to be. "
        f"The large marks are the best trial, the runner-up and the baseline.{several}{outside}"
    )


def failures(of: Findings) -> list[Failure]:
    """Why trials did not complete, besides having been pruned at a rung; the most frequent first."""
    found = []
    for (ended, cause), _ in of.causes().most_common():
        if cause == AT_A_RUNG:
            continue
        alike = [
            t for t in of.trials if (t.state, t.cause) == (ended, cause) and not t.origin.startswith(findings.ELSEWHERE)
        ]
        reason = _ANSI.sub("", alike[0].reason).strip()
        cut = f"... {reason[-REASON:]}" if len(reason) > REASON else reason
        found.append(
            Failure(
                what=f"{STATES.get(ended, ended)}: {cause}",
                numbers=[trial.number for trial in alike],
                reason="" if cut == cause else cut,
            )
        )
    return found


def stopped(of: Findings) -> str:
    """How many trials were stopped at which rung; "" where none was."""
    at = Counter(trial.step for trial in of.own if trial.cause == AT_A_RUNG)
    words = [f"{number:,} at step {step:,}" for step, number in sorted(at.items())]
    return f"Stopped at a rung, not being among the best there: {answer.listed(words)}." if words else ""


def commands(of: Findings) -> list[tuple[str, str]]:
    """What is to be done with a study further: what for, and the command line."""
    resume = f"vqsearch resume --storage {shlex.quote(of.storage)} --study {shlex.quote(of.study)}"
    first, *others = answer.commands(of)
    return [first, ("Go on with this very study, where its storage can be reached", resume), *others]


def comparison(found: Sequence[Findings]) -> list[tuple[str, list[str]]]:
    """Several studies side by side: what is compared, and the value of each."""
    pairs = [(of, of.best) for of in found]
    metric = found[0].metric
    rows = [
        ("state", [state(of) for of in found]),
        (f"best {units.label(metric)}", [units.text(metric, best.value if best else None) for _, best in pairs]),
        ("of trial", [str(best.number) if best else "-" for _, best in pairs]),
        ("better than its baseline by", [_over_baseline(of) for of in found]),
    ]
    for name in columns(found[0], [best for _, best in pairs if best]):
        values = [units.text(name, best.metrics.get(name) if best else None) for _, best in pairs]
        rows.append((f"{units.label(name)} of that trial", values))
    return [
        *rows,
        ("training time of all trials", [answer.hours(of.compute.trial_hours) for of in found]),
        ("saved by pruning", [f"{100 * of.compute.saved_share:.0f} %" for of in found]),
        ("images to train / validate on", [_sizes(of) for of in found]),
    ]


def differing(found: Sequence[Findings]) -> list[tuple[str, list[str]]]:
    """Fixed fields in which studies differ, and the value of each."""
    return [(name, [shown(value) for value in values]) for name, values in findings.differences(found).items()]


def _done(of: Findings) -> int:
    return sum(len(of.ended(name)) for name in ("COMPLETE", "PRUNED", "FAIL"))


def _over_baseline(of: Findings) -> str:
    gains = [gain for trial in of.baselines if (gain := of.gain(trial)) is not None]
    return units.text(of.metric, min(gains)) if gains else "-"


def _sizes(of: Findings) -> str:
    return " / ".join(f"{of.sizes[name]:,}" for name in ("train", "validation") if name in of.sizes) or "unknown"


def _at_least(metric: str, difference: float) -> str:
    """A difference that does not read as none where there is one."""
    figure = units.figure(metric, difference)
    none = units.figure(metric, 0.0)
    return f"< {none[:-1]}1" if difference and figure == none else figure


def _time(hours: float) -> tuple[str, str]:
    """A time as one number and its unit."""
    for factor, unit in ((1, "h"), (60, "min")):
        if hours * factor >= 1:
            return f"{hours * factor:,.1f}", unit
    return f"{hours * 3600:.0f}", "s"


def _limits(of: Findings) -> str:
    words = []
    for name, limits in of.space.constraints.items():
        bounds = (("at least", limits.min), ("at most", limits.max))
        said = [f"{word} {units.text(name, bound)}" for word, bound in bounds if bound is not None]
        words.append(f"{units.label(name)} {' and '.join(said)}")
    return "; ".join(words)


def _pruner(of: Findings) -> str:
    pruner = of.space.pruner
    if not of.space.rungs:
        return "none: every trial trains to its last step"
    steps = answer.listed([f"{step:,}" for step in of.space.rungs])
    rule = f"the best one in {pruner.reduction_factor} goes on" if pruner.kind == "asha" else "the better half goes on"
    return f"{pruner.kind}: after {steps} steps {rule}"


def _bits(of: Findings) -> str:
    """Bits of an image's indices, all codes being as likely: from the fewest to the most among the trials."""
    found = [trial.metrics["bits_per_image"] for trial in of.trials if "bits_per_image" in trial.metrics]
    if not found:
        return ""
    low, high = (units.figure("bits_per_image", bits) for bits in (min(found), max(found)))
    return f"{low} an image" if low == high else f"{low} to {high} an image, by the size of the codebook"


def _range(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        words = ", ".join(shown(label) for label in parameter.labels)
    else:
        step = f" in steps of {parameter.step:g}" if parameter.step not in (None, 1) else ""
        words = f"{parameter.low:g} to {parameter.high:g}{', logarithmic' if parameter.log else ''}{step}"
    for parent, labels in parameter.when:
        words += f"; only with {parent} {answer.listed([shown(label) for label in labels])}"
    return words


def _setting(trial: Trial, name: str) -> str:
    return shown(trial.settings[name]) if name in trial.settings else "-"


def _number(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None


def _figure(name: str, value: float | None) -> Cell:
    return Cell(text=units.figure(name, value), value=_number(value))


def _end(trial: Trial) -> str:
    """Why a trial ended, in a line."""
    last = _ANSI.sub("", trial.reason).strip().rpartition("\n")[2]
    return last[:200] if trial.state == "FAIL" and last else trial.cause
