"""What a study came to, in sentences: every report says the same, and escapes it in its own way.

Plain text without markup. What a storage holds and others may have written is made printable, no more.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from search import gap, units, verdict
from search.findings import AT_A_RUNG, Findings, Trial, differences
from search.standing import STATES, shown
from search.text import printable

SPLITS = {"train": "training"}
"""Splits whose images are called otherwise."""

PLUMBING = "A few bundled photographs show that everything works together; they rank nothing."

WINS = {"minimize": "lowest", "maximize": "highest"}


def searched(findings: Findings) -> str:
    """What was searched, on what, for what, in one sentence."""
    space = findings.space
    names = [parameter.name for parameter in space.parameters]
    if space.trainer:
        return (
            f"{printable(findings.study)} searched {count(len(names), 'setting')} of what {trainer(findings)} trains "
            f"({listed(names)}) for the {WINS[space.objective.direction]} {printable(units.label(findings.metric))}, "
            f"in up to {count(space.budget.trials, 'trial')} of {count(space.budget.steps, 'step')}."
        )
    return (
        f"{printable(findings.study)} searched {count(len(names), 'setting')} of an image tokenizer "
        f"({listed(names)}) for the {WINS[space.objective.direction]} {units.label(findings.metric)} on held-out "
        f"images, in up to {count(space.budget.trials, 'trial')} of {count(space.budget.steps, 'optimizer step')} in "
        f"batches of {count(space.base.batch_size, 'image')}, on {data(findings)}."
    )


def trainer(findings: Findings) -> str:
    """The trainer that stands in the place of ours: ``my_train.py:train``."""
    assert findings.space.trainer is not None, "asked of a study that has one"
    return printable(PurePosixPath(findings.space.trainer).name)


def data(findings: Findings) -> str:
    """The pictures: where from, how large, how many in each split."""
    if findings.space.trainer:
        return f"what {trainer(findings)} reads{_sizes(findings)}"
    config = findings.space.base.data
    where = {
        "photographs": "crops of the photographs that scikit-image and scikit-learn bring along",
        "folder": f"the pictures of the folder {PurePosixPath(config.path).name}",
        "huggingface": f"the Hugging Face data set {_short(config.path)} ({config.subset})",
        "webdataset": f"the WebDataset {PurePosixPath(config.path).name}",
    }[config.source]
    return printable(f"{where} at {config.resolution} x {config.resolution} px{_sizes(findings)}")


def _sizes(findings: Findings) -> str:
    sizes = [f"{size:,} {SPLITS.get(name, name)}" for name, size in findings.sizes.items() if size]
    return printable(f": {listed(sizes)} images") if sizes else ""


def won(findings: Findings) -> list[str]:
    """What won, with which settings, by how much over the baselines and the next best; and what that does not show."""
    best = findings.best
    if best is None:
        return [_nothing_won(findings)]
    judged = _judged(findings)
    landed = [] if findings.gap is None else [f"{line[:1].upper()}{line[1:]}." for line in gap.lines(findings.gap)]
    where = "the search " if judged else "among the proxies " if landed else ""
    lines = [
        *landed,
        *judged,
        f"{_name(best, 'Trial')} won {where}with {value(findings, best)}: {settings(best)}.",
        *_over_baselines(findings, best),
    ]
    if (second := findings.runner_up) is not None:
        lines.append(
            f"The winner is {_by(findings, second)} than the runner-up, {_name(second)} with "
            f"{value(findings, second)}, which has {settings(second, best)}."
        )
    if not findings.over:
        lines.append("The search is not over: what won may change.")
    once = f"trained once, with seed {findings.space.base.seed}: how much of a difference is chance was not measured"
    if judged:
        lines.append(f"In the search every trial was {once} there.")
    else:
        of = "those" if findings.space.trainer else "of the validation images"
        chosen = f"The values are {of} by which trials were chosen: the winner's is optimistic."
        lines.append(f"Every trial was {once}. {chosen}")
    if findings.space.base.data.source == "photographs" and not findings.space.trainer:
        lines.append(PLUMBING)
    return lines


def _judged(findings: Findings) -> list[str]:
    """What the finalists came to, on images that no trial of the search has seen."""
    if findings.verdict is None:
        return []
    return [f"{line[0].upper()}{line[1:]}." for line in map(printable, verdict.lines(findings.verdict))]


def cost(findings: Findings) -> list[str]:
    """How the trials ended, what they cost, and what pruning saved."""
    spent, space = findings.compute, findings.space
    ended = [f"{len(n)} {word}" for state, word in STATES.items() if (n := findings.ended(state))]
    lines = [f"Of {count(space.budget.trials, 'trial')} in the budget: {listed(ended or ['none yet'])}."]
    if spent.trial_hours:
        known = {printable(model): number for model, number in spent.devices.items() if model != "unknown"}
        on = listed([f"{model} ({count(number, 'trial')})" for model, number in known.items()])
        gpus = space.resources.gpus
        share = f" at {gpus:g} GPU each" if gpus != 1 else ""
        gpu = f", {spent.gpu_hours:,.3g} GPU-hours{share}" if gpus else ", without a GPU"
        after = "finalists" if findings.gap is None else "targets"
        both = f" ({hours(spent.search_hours)} the search and {hours(spent.finalist_hours)} the {after})"
        who = f"Search and {after}{both}" if spent.finalist_hours else "They"
        line = f"{who} trained for {hours(spent.trial_hours)} in all{gpu}{f', on {on}' if on else ''}"
        lines.append(f"{line}, and saw {spent.images:,} training images." if spent.images else f"{line}.")
    if spent.driver_hours:
        lines.append(f"By the clock its drivers ran for {hours(spent.driver_hours)}.")
    stopped = [trial for trial in findings.own if trial.cause == AT_A_RUNG]
    of_search = " of the search" if spent.finalist_hours else ""
    if spent.saved_hours:
        lines.append(
            f"Pruning stopped {count(len(stopped), 'trial')} at a rung and saved about {hours(spent.saved_hours)} of "
            f"training: {100 * spent.saved_share:.0f} % of what all trials{of_search} would have cost to their "
            "last step, each at its own speed."
        )
    elif space.pruner.kind != "none" and findings.own:
        lines.append("No trial was stopped at a rung so far, so pruning saved nothing.")
    return lines


def compared(found: Sequence[Findings]) -> list[str]:
    """Which of several studies won, by how much, and in which fixed settings they differ; nothing for one alone."""
    if len(found) < 2:
        return []
    ranked = sorted((f for f in found if f.best), key=_of_best)
    lines = []
    if ranked:
        leader, *others = ranked
        assert leader.best is not None
        lines.append(
            f"{printable(leader.study)} has the best trial, {leader.best.number}: {value(leader, leader.best)}."
        )
        for each in others:
            assert each.best is not None
            lines.append(
                f"That is {_by(leader, each.best)} than the best of {printable(each.study)}, trial {each.best.number} "
                f"with {value(each, each.best)}."
            )
    for name, values in differences(found).items():
        words = [f"{shown(one)} in {f.study}" for one, f in zip(values, found, strict=True)]
        lines.append(printable(f"They differ in {name}, which none of them searched: {listed(words)}."))
    return lines


def failures(findings: Findings) -> list[tuple[str, list[int]]]:
    """Why trials did not complete, besides having been pruned at a rung.

    Returns:
        What happened, and the numbers of the trials; the most frequent first.
    """
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in findings.trials:
        if trial.cause not in ("", AT_A_RUNG) and not trial.origin.startswith("copied"):
            groups.setdefault((trial.state, trial.cause), []).append(trial)
    found = [(_failed(*group, trials), [each.number for each in trials]) for group, trials in groups.items()]
    return sorted(found, key=lambda each: (-len(each[1]), each[1]))


def commands(findings: Findings) -> list[tuple[str, str]]:
    """What is to be done with a study further: what for, and the command line.

    The space file is expected under the study's name.
    """
    study = shlex.quote(findings.study)
    of = f"--storage {shlex.quote(findings.storage)} --study {study}"
    lines = [
        (
            "Search the same again, in a storage of its own",
            f"vqsearch launch {study}.yaml --storage sqlite:///{study}-again.db",
        )
    ]
    if findings.best is not None:
        number = findings.best.number
        lines.append(("Take the winner away", f"vqsearch export {of} --trial {number} --to {study}-{number}"))
        again = ("Train its setting from scratch", f"vqsearch train {of} --trial {number} --to runs/{study}-{number}")
        lines += [] if findings.space.trainer else [again]
    return [*lines, ("Watch the study", f"vqsearch dashboard --storage {shlex.quote(findings.storage)}")]


def settings(trial: Trial, other: Trial | None = None) -> str:
    """A trial's settings; those alone in which it differs, where another one is given."""
    different = {
        name: label for name, label in trial.settings.items() if other is None or other.settings.get(name) != label
    }
    words = [f"{name} {shown(label)}" for name, label in different.items()]
    return printable(listed(words)) if words else "the same settings"


def value(findings: Findings, trial: Trial) -> str:
    """The objective of a trial with its name and unit."""
    return (
        "no value"
        if trial.value is None
        else f"{units.label(findings.metric)} {units.text(findings.metric, trial.value)}"
    )


def hours(number: float) -> str:
    """Hours as people say them: of less than two, the minutes and seconds."""
    return units.duration(number * 3600) if number < 2 else f"{number:,.1f} h"


def count(number: int, what: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _short(path: str) -> str:
    """A folder by its last part; a name of the Hub, which has at most one slash, whole."""
    return PurePosixPath(path).name if path.startswith(("/", "~", ".")) else path


def _name(trial: Trial, word: str = "trial") -> str:
    kinds = {"baseline": " (the baseline)", "by hand": " (asked for by hand)", "suggested": ""}
    return printable(f"{word} {trial.number}{kinds.get(trial.origin, f' ({trial.origin})')}")


def _by(findings: Findings, other: Trial) -> str:
    """By how much the best trial is better: as a difference, and in percent where less is better from 0 on."""
    gain = findings.gain(other)
    assert gain is not None
    assert other.value is not None
    if gain < 0:
        return f"worse by {_at_least(findings.metric, -gain)}"
    if not gain:
        return "no better"
    share = f" ({100 * gain / other.value:.1f} %)" if findings.sign == 1 and other.value > 0 else ""
    return f"better by {_at_least(findings.metric, gain)}{share}"


def _at_least(metric: str, difference: float) -> str:
    """A difference above 0, however small, with its unit."""
    figure = units.figure(metric, difference)
    if not figure.strip("0."):
        return f"less than {figure[:-1]}1 {units.unit(metric)}".strip()
    return units.text(metric, difference)


def _of_best(findings: Findings) -> float:
    """The objective of the best trial, less being better; infinite without one."""
    best = findings.best
    return math.inf if best is None or best.value is None else findings.sign * best.value


def _over_baselines(findings: Findings, best: Trial) -> list[str]:
    baselines = [trial for trial in findings.baselines if trial.number != best.number]
    measured = sorted((t for t in baselines if t.value is not None), key=lambda t: findings.gain(t) or 0.0)
    if best.origin == "baseline":
        return ["The winner is a baseline: nothing that the search suggested was better."]
    if not findings.baselines:
        return ["No baseline was among the trials, so there is nothing known to compare with."]
    lines = [
        f"That is {_by(findings, each)} than {_name(each)} with {value(findings, each)}"
        f"{'' if each.keeps_limits else ', which broke a limit'}."
        for each in measured
    ]
    return lines + [_short_of_the_end(findings, best, each) for each in baselines if each.value is None]


def _short_of_the_end(findings: Findings, best: Trial, other: Trial) -> str:
    """What is known of a baseline that has no final value: both curves at its last step."""
    line = f"The baseline, trial {other.number}, has no final value: {_word(other)}"
    here, there = dict(best.curve).get(other.step), dict(other.curve).get(other.step)
    if here is None or there is None:
        return f"{line}."
    metric = findings.metric
    return (
        f"{line} at step {other.step:,} with {units.text(metric, there)}, where the winner had "
        f"{units.text(metric, here)}."
    )


def _word(trial: Trial) -> str:
    word = {"PRUNED": "it was pruned", "FAIL": "it failed", "RUNNING": "it runs", "WAITING": "it waits"}[trial.state]
    return printable(f"{word} ({trial.cause})" if trial.cause else word)


def _nothing_won(findings: Findings) -> str:
    step = max((trial.step for trial in findings.own), default=0)
    if not step:
        return "Nothing won yet: no trial has been measured."
    there = [(findings.sign * dict(t.curve)[step], t) for t in findings.own if step in dict(t.curve) and t.keeps_limits]
    if not there:
        return "Nothing won yet: no trial that keeps the limits is complete."
    _, leader = min(there, key=lambda each: (each[0], each[1].number))
    return (
        f"Nothing won yet: no trial that keeps the limits is complete. At step {step:,} {_name(leader)} leads with "
        f"{units.label(findings.metric)} {units.text(findings.metric, dict(leader.curve)[step])}: {settings(leader)}."
    )


def _failed(state: str, cause: str, trials: Sequence[Trial]) -> str:
    """A group of trials that ended alike, with the last line of the first one's reason."""
    words = cause if state == "PRUNED" else f"failed: {cause}"
    last = trials[0].reason.strip().rpartition("\n")[2]
    more = f"; trial {trials[0].number}: {last}" if last and last != cause else ""
    return printable(words + more)
