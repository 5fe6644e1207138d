"""How the parameters of a trial are chosen: a sampler built afresh for every trial from (seed, number).

Optuna's samplers keep a random state that a new process starts again, so that a reopened study repeats its
first suggestions. Here the suggestion depends on the study's seed, the trial's number and the history in the
storage, and on nothing else: a resumed study suggests what an uninterrupted one would.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from optuna import Study, samplers
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from search import records
from search.parameters import Parameter, snap
from search.space import Space


class Searched(Study):
    """A study as its sampler sees it: without finalists, whose values are of other seeds and come after the choice."""

    def __init__(self, study: Study) -> None:
        self.__dict__.update(study.__dict__)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, states, use_cache)
        return [trial for trial in trials if records.finalist(trial) is None]


class PerTrialSampler(samplers.BaseSampler):
    """Hands each trial to a sampler made for its number, and puts ordered choices on one of their labels.

    A parameter that is sampled alone gets a sampler of its own: of two that shared one, the second would get another
    value in a trial that goes on after its driver died between them.

    Args:
        build: trial number, and 0 or 1 + the place of a parameter that is sampled alone -> sampler.
        parameters: what is searched.
    """

    def __init__(self, build: Callable[[int, int], samplers.BaseSampler], parameters: Sequence[Parameter]) -> None:
        self._build = build
        self._ordered = {p.name: p for p in parameters if p.ordered}
        self._places = {p.name: 1 + place for place, p in enumerate(parameters)}
        self._made: tuple[int, samplers.BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> samplers.BaseSampler:
        if self._made is None or self._made[0] != trial.number:
            self._made = (trial.number, self._build(trial.number, 0))
        return self._made[1]

    def _snapped(self, name: str, value: Any) -> Any:
        return snap(self._ordered[name], value) if name in self._ordered else value

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As in BaseSampler."""
        return self._of(trial).infer_relative_search_space(Searched(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As in BaseSampler."""
        drawn = self._of(trial).sample_relative(Searched(study), trial, search_space)
        return {name: self._snapped(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As in BaseSampler."""
        alone = self._build(trial.number, self._places[param_name])
        drawn = alone.sample_independent(Searched(study), trial, param_name, param_distribution)
        return self._snapped(param_name, drawn)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As in BaseSampler."""
        self._of(trial).before_trial(Searched(study), trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As in BaseSampler."""
        self._of(trial).after_trial(Searched(study), trial, state, values)


class QuasiRandomSampler(samplers.BaseSampler):
    """A scrambled Sobol sequence (Owen 1998), one point for each trial number.

    Optuna's QMCSampler counts its points in the storage, so a trial that was begun twice would get two of
    them; and it leaves conditional parameters to chance. Here every parameter has its own dimension.
    """

    def __init__(self, parameters: Sequence[Parameter], seed: int, number: int) -> None:
        engine = qmc.Sobol(d=len(parameters), scramble=True, rng=np.random.default_rng(seed))
        if number:
            engine.fast_forward(number)
        with warnings.catch_warnings():
            # One point at a time is no power of two; the sequence as a whole stays balanced.
            warnings.simplefilter("ignore", UserWarning)
            point = engine.random(1)[0]
        self._values = {p.name: _at(p, float(u)) for p, u in zip(parameters, point, strict=True)}

    def infer_relative_search_space(self, _study: Study, _trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly: the sequence itself fills the joint space."""
        return {}

    def sample_relative(
        self, _study: Study, _trial: FrozenTrial, _search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(
        self, _study: Study, _trial: FrozenTrial, param_name: str, _param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's coordinate of the trial's point."""
        return self._values[param_name]


def _at(parameter: Parameter, u: float) -> Any:
    """The label or number at a fraction `u` of the way, 0 <= u < 1."""
    if parameter.kind == "choice":
        return parameter.labels[int(u * len(parameter.labels))]
    low, high = parameter.low, parameter.high
    if parameter.kind == "float" and parameter.step is None:
        value = (
            math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if parameter.log else low + u * (high - low)
        )
        return min(max(value, low), high)
    if parameter.log:
        # Every whole number owns the span from half below to half above it.
        bottom, top = math.log(low - 0.5), math.log(high + 0.5)
        return min(max(round(math.exp(bottom + u * (top - bottom))), int(low)), int(high))
    step = parameter.step or 1
    value = low + step * int(u * (int((high - low) / step + 1e-9) + 1))
    return int(value) if parameter.kind == "int" else value


def startup_trials(space: Space, parallel: int) -> int:
    """Number of quasi-random trials before a model-based sampler takes over."""
    return max(10, 2 * len(space.parameters), parallel)


def build(space: Space, startup: int) -> PerTrialSampler:
    """The sampler of a study.

    Args:
        space: its space.
        startup: number of quasi-random trials before tpe, gp or cmaes take over.
    """

    def of(number: int, place: int) -> samplers.BaseSampler:
        if space.sampler.kind == "qmc" or (space.sampler.kind != "random" and number < startup):
            return QuasiRandomSampler(space.parameters, space.seed, number)
        seed = int(np.random.SeedSequence([space.seed, number, place]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna marks most of these arguments as experimental.
            return _sampler(space, seed)

    return PerTrialSampler(of, space.parameters)


def _sampler(space: Space, seed: int) -> samplers.BaseSampler:
    if space.sampler.kind == "random":
        return samplers.RandomSampler(seed=seed)
    if space.sampler.kind == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=1)
    if space.sampler.kind == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
    # Without `group`, conditional parameters would never be sampled jointly.
    return samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True, group=True)
