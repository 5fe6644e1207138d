"""What a search will cost, before it is paid for: hours, from probes of its smallest and its largest model.

Hours are of training alone; evaluations, checkpoints and the decoding of pictures come on top.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from search import corners, units
from search import probe as probing
from search.corners import Corner
from search.probe import Machine, Probe
from search.space import Space

MOST_TRIALS = 2000
"""Of which the share that asha leaves is computed; with more of them it hardly changes."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Images that a search trains on."""

    one: int
    """In a trial that is not stopped."""
    search: int
    """In all its trials, were none of them stopped."""
    share: float
    """Part of that which is expected to be left where trials are stopped at rungs."""
    finalists: int
    """In the settings that are trained again when the search is over."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Of a GPU, or of a core of a CPU."""

    least: float
    """Were all trials like the fastest corner."""
    mean: float
    """Were they half and half."""
    most: float
    """Were all like the slowest one."""

    def __add__(self, other: Hours) -> Hours:
        return Hours(least=self.least + other.least, mean=self.mean + other.mean, most=self.most + other.most)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one search, or of one arm of a comparison."""

    space: Space
    machine: Machine
    load: Load
    probes: tuple[Probe, ...]
    """The smallest and the largest model within the limits, or the only one."""
    outside: tuple[Corner, ...]
    """Models that no trial trains, since they break a limit."""
    problem: str = ""
    """Why nothing was probed."""

    def hours(self, images: float) -> Hours | None:
        """Of training on so many images; None where no corner could be trained."""
        each = [images / p.speed.images_per_s / 3600 * self.machine.cores for p in self.probes if p.speed]
        return Hours(least=min(each), mean=statistics.mean(each), most=max(each)) if each else None

    @property
    def parts(self) -> dict[str, Hours] | None:
        """Of the search where no trial is stopped, of the search with its pruner, and of the finalists."""
        load = self.load
        counts = {"search": load.search, "pruned": load.search * load.share, "finalists": load.finalists}
        found = {name: hours for name, count in counts.items() if (hours := self.hours(count))}
        return found or None


def cost_of(searched: Space, tell: Callable[[str], None]) -> Cost:
    """Find the corners of a space and probe them.

    Args:
        searched: whose models can be built (`search.launch.check_trainable`).
        tell: hears of each probe before it starts.
    """
    machine = probing.here(searched)
    found = corners.find(searched)
    probes = []
    for corner in found.within:
        tell(f"{searched.study}: probing {_model(corner)}, {corner.parameters:,} parameters, on {machine.name}")
        probes.append(probing.probe(searched, corner, machine))
    return Cost(
        space=searched,
        machine=machine,
        load=load_of(searched),
        probes=tuple(probes),
        outside=found.outside,
        problem=found.problem,
    )


def load_of(searched: Space) -> Load:
    """What a search trains on; each of its baselines is taken for a finalist beside the best."""
    one = searched.budget.steps * searched.base.batch_size
    wanted, pruner, budget = searched.finalists, searched.pruner, searched.budget
    finalists = 0
    if wanted:
        beside = len(searched.baselines) if wanted.include == "baselines" else 0
        finalists = wanted.seeds * (min(wanted.top, budget.trials) + beside)
    left = 1.0
    if pruner.kind == "asha":
        left = share(budget.trials, (*searched.rungs, budget.steps), pruner.reduction_factor)
    return Load(one=one, search=budget.trials * one, share=left, finalists=finalists * one)


def share(trials: int, ends: Sequence[int], reduction_factor: int) -> float:
    """Part of the steps of all trials that asha is expected to leave, were the order of the trials a matter of chance.

    Of the n-th value at a rung it lets max(1, n // reduction_factor) of n ranks go on (`search.pruning.RungPruner`).
    The distribution of how many come to a rung gives that of how many leave it.

    Args:
        trials: of the search.
        ends: steps at which trials are compared, and the last one.
        reduction_factor: one trial in so many goes on.
    """
    trials = min(trials, MOST_TRIALS)
    ranks = np.arange(1, trials + 1)
    chances = np.maximum(1, ranks // reduction_factor) / ranks
    come = np.zeros(trials + 1)  # come[n]: the chance that n trials come here
    come[trials] = 1.0
    steps, before = 0.0, 0
    for end in ends:
        steps += (end - before) * float(come @ np.arange(trials + 1))
        before = end
        leave, gone = np.zeros(trials + 1), np.zeros(trials + 1)
        gone[0] = 1.0  # gone[k]: the chance that k of the first n went on
        leave += come[0] * gone
        for n, chance in enumerate(chances, 1):
            gone[1:] = gone[1:] * (1 - chance) + gone[:-1] * chance
            gone[0] *= 1 - chance
            leave += come[n] * gone
        come = leave
    return steps / (trials * ends[-1])


def table(costs: Mapping[str, Cost]) -> Table:
    """What was probed: the corners of every arm.

    Args:
        costs: by arm; under "" that of a single search.
    """
    several, gpu = len(costs) > 1, next(iter(costs.values())).machine.device.type == "cuda"
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ["arm", "model"] if several else ["model"]:
        made.add_column(heading, no_wrap=True)
    for heading in ["parameters", *(["at once", "memory"] if gpu else []), "images/s", "one trial"]:
        made.add_column(heading, justify="right", no_wrap=True)
    for arm, cost in costs.items():
        for each in cost.probes:
            speed = each.speed
            cells = ["-"] * (4 if gpu else 2)
            if speed:
                memory = units.text("peak_memory_gib", speed.peak_memory_gib)
                cells = [f"{speed.micro_batch:,} images", memory] if gpu else []
                cells += [units.figure("images_per_s", speed.images_per_s), units.duration(trial_s(cost, each))]
            row = [arm, each.corner.name] if several else [each.corner.name]
            made.add_row(*map(Text, [*row, f"{each.corner.parameters:,}", *cells]))
    return made


def trial_s(cost: Cost, each: Probe) -> float | None:
    """Seconds of a trial that is not stopped; trials that share a GPU share its speed."""
    return cost.load.one / each.speed.images_per_s / cost.machine.gpu_share if each.speed else None


def lines(costs: Mapping[str, Cost]) -> list[str]:
    """What the probes come to: hours of all arms together, with pruning and without, and what will not fit."""
    first = next(iter(costs.values()))
    found = total(costs)
    said = [] if found is None else _budget(costs, first, found)
    return [*said, *_misfits(costs), *_uncounted(first)]


def _uncounted(cost: Cost) -> list[str]:
    """What is trained after a search at another size, and so at another speed."""
    carried = cost.space.transfer
    if carried is None:
        return []
    beside = len(cost.space.baselines) if carried.include == "baselines" else 0
    return [f"not counted: {carried.top + beside} trials at the target, whose models are larger"]


def _budget(costs: Mapping[str, Cost], first: Cost, found: Mapping[str, Hours]) -> list[str]:
    budget, machine, pruner = first.space.budget, first.machine, first.space.pruner.kind
    unit = unit_of(machine)
    arms = f"{len(costs)} arms of " if len(costs) > 1 else ""
    said = [
        f"search, no trial stopped: {_words(found['search'], unit)} for {arms}{budget.trials:,} trials of "
        f"{budget.steps:,} steps of {first.space.base.batch_size:,} images"
    ]
    if pruner == "asha":
        part = f"{100 * first.load.share:.0f} %"
        said.append(
            f"search under asha: {_words(found['pruned'], unit)}, since about {part} of the steps "
            "are left where trials come in an order of chance; a sampler that learns lets more of them go on"
        )
    elif pruner == "median":
        said.append("what the median pruner stops can't be known before: it makes the search cheaper than that")
    trials = sum(cost.load.finalists // cost.load.one for cost in costs.values())
    if trials:
        said.append(f"finalists: {_words(found['finalists'], unit)} for {trials:,} trials, the baselines among them")
    everything = found["pruned"] + found["finalists"]
    clock, without = (clock_s(first, hours.mean) for hours in (everything, found["search"] + found["finalists"]))
    saved = f", or {units.duration(without)} were no trial stopped" if pruner == "asha" else ""
    said.append(
        f"all: {_words(everything, unit)}; by the clock {units.duration(clock)} with {machine.at_once:,} at once{saved}"
    )
    if budget.hours and clock > budget.hours * 3600:
        said.append(f"budget.hours ends it before: no trial starts after {budget.hours:g} h")
    images = {each.speed.images for cost in costs.values() for each in cost.probes if each.speed}
    reduced = machine.device.type == "cpu" and max(images) < first.space.base.batch_size
    said.append(
        f"training alone, on images of noise{_reduced(images) if reduced else ''}; evaluations, checkpoints and the "
        "decoding of pictures come on top; in brackets: were all trials like one of the models above"
    )
    if first.space.resources.gpus and machine.device.type == "cpu":
        said.append("trials ask for a GPU, and there is none here: on one they take a small part of these hours")
    return said


def _reduced(images: set[int]) -> str:
    few = f"{min(images)} to {max(images)}" if len(images) > 1 else f"{max(images)}"
    return f" and in steps of {few} of them, so that the optimizer counts for more than it will"


def _misfits(costs: Mapping[str, Cost]) -> list[str]:
    said = []
    for arm, cost in costs.items():
        named = f"{arm}: " if len(costs) > 1 else ""
        if cost.problem:
            said.append(f"{named}nothing to probe: {cost.problem}")
        for corner in cost.outside:
            why = "; ".join(probing.broken(cost.space, corner.quantities))
            said.append(f"{named}{_model(corner)} of all lies outside: {why}; its trials are refused before they train")
        for each in cost.probes:
            if each.problem:
                said.append(f"{named}{_model(each.corner)} will not fit: {each.problem}")
    return said


def total(costs: Mapping[str, Cost]) -> dict[str, Hours] | None:
    """The parts of all arms together; None where an arm has none."""
    found = [cost.parts for cost in costs.values()]
    known = [parts for parts in found if parts is not None]
    if len(known) < len(found):
        return None
    zero = Hours(least=0.0, mean=0.0, most=0.0)
    return {name: sum((parts[name] for parts in known), zero) for name in known[0]}


def clock_s(cost: Cost, hours: float) -> float:
    """Seconds by the clock of so many hours of a GPU or a core, with as many trials at once as there are."""
    machine = cost.machine
    return hours * 3600 / (machine.at_once * machine.cores * machine.gpu_share)


def unit_of(machine: Machine) -> str:
    """What hours are of."""
    return "GPU-hours" if machine.device.type == "cuda" else "core-hours"


def as_json(costs: Mapping[str, Cost]) -> dict[str, Any]:
    """The cost for programs; what is unknown is null."""
    first = next(iter(costs.values()))
    found = total(costs)
    everything = found and found["pruned"] + found["finalists"]
    return {
        "device": first.machine.name,
        "torch": torch.__version__,
        "unit": unit_of(first.machine),
        "at_once": first.machine.at_once,
        "hours": found and {name: vars(hours) for name, hours in found.items()},
        "clock_hours": everything and clock_s(first, everything.mean) / 3600,
        "searches": [
            {
                "study": cost.space.study,
                "arm": arm or None,
                "share": cost.load.share,
                "corners": [_corner(cost, each) for each in cost.probes],
                "outside": [
                    {
                        "corner": corner.name,
                        **corner.quantities,
                        "breaks": probing.broken(cost.space, corner.quantities),
                    }
                    for corner in cost.outside
                ],
                "problem": cost.problem or None,
            }
            for arm, cost in costs.items()
        ],
    }


def _corner(cost: Cost, each: Probe) -> dict[str, Any]:
    seconds = trial_s(cost, each)
    return {
        "corner": each.corner.name,
        **each.corner.quantities,
        "images_a_step": each.speed and each.speed.images,
        "micro_batch": each.speed and each.speed.micro_batch,
        "images_per_s": each.speed and each.speed.images_per_s,
        "peak_memory_gib": each.speed and each.speed.peak_memory_gib,
        "trial_hours": None if seconds is None else seconds / 3600,
        "problem": each.problem or None,
    }


def _model(corner: Corner) -> str:
    return "the model" if corner.name == "only" else f"the {corner.name} model"


def _words(hours: Hours, unit: str) -> str:
    mean, least, most = (figure(value) for value in (hours.mean, hours.least, hours.most))
    return f"{mean} {unit}" + ("" if least == most else f" ({least} to {most})")


def figure(value: float) -> str:
    """With three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
