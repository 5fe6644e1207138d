"""Checks of one's own parts: what ours are held to, for a backbone, quantizer, metric, term of the loss, source or
trainer.

    import pytest
    from vqvae import testing

    @pytest.mark.parametrize("check", testing.checks("backbone", "grid", {"model.options.kernel": 3}), ids=str)
    def test_my_backbone(check):
        check()

Each check is one promise, and says what was expected and what came where it is not kept. Without pytest:

    print(testing.report("backbone", "grid"))

Nothing here needs pytest. A part of a file is loaded first, by `vqvae.plugins.load`; that of an installed package is
found by its entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vqvae import checks_backbone, checks_data, checks_images, checks_quantizer, checks_trainer
from vqvae.checks import Check, CheckFailed, Outcome, Subject, subject
from vqvae.checks_backbone import reached
from vqvae.checks_quantizer import require_codes
from vqvae.config import VqvaeError

__all__ = ["PROMISES", "Check", "CheckFailed", "Outcome", "Report", "checks", "reached", "report", "require_codes"]

_Trials = tuple[Callable[[Subject], None], ...]

_CHECKS: dict[str, _Trials] = {
    "backbone": checks_backbone.CHECKS,
    "quantizer": checks_quantizer.CHECKS,
    "loss": checks_images.LOSS_CHECKS,
    "metric": checks_images.METRIC_CHECKS,
    "data": checks_data.CHECKS,
    "trainer": checks_trainer.CHECKS,
}

_PROMISES: dict[str, _Trials] = {
    "backbone": checks_backbone.PROMISES,
    "quantizer": checks_quantizer.PROMISES,
    "loss": checks_images.LOSS_PROMISES,
}

PROMISES: dict[str, tuple[str, ...]] = {
    kind: tuple(trial.__name__ for trial in trials) for kind, trials in _PROMISES.items()
}
"""Checks of each kind that not every part has to pass: only those that are named are made."""


def checks(
    kind: str, name: str, settings: Mapping[str, Any] | None = None, *, promises: Collection[str] = ()
) -> list[Check]:
    """The checks of a part, each to be called; `str` gives its name.

    The part is looked for when a check runs, so the list can be made before it is loaded. A check takes milliseconds
    on small models, draws the same random numbers every time, and leaves torch's generator as it was.

    Args:
        kind: backbone, quantizer, loss, metric, data or trainer.
        name: by which it is registered; of a trainer FILE.py:FUNCTION.
        settings: dotted fields of `TrainConfig` for the small run in which it is checked, such as
            {"model.options.kernel": 3, "model.width": 32}; the model is 16 wide, one block deep, of 32 pixels.
        promises: what it promises besides; see `PROMISES`.

    Raises:
        PluginError: another kind.
        ConfigError: settings that are none.
        VqvaeError: a promise that there is not.
    """
    part = subject(kind, name, dict(settings or {}))
    besides = {trial.__name__: trial for trial in _PROMISES.get(kind, ())}
    unknown = [promise for promise in promises if promise not in besides]
    if unknown:
        known = ("one of " if len(besides) > 1 else "") + ", ".join(besides) or "left out"
        raise VqvaeError(f"promises: of a {kind} must be {known}, but got {unknown[0]!r}")
    trials = (*_CHECKS[kind], *(besides[promise] for promise in promises))
    return [Check(subject=part, trial=trial) for trial in trials]


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the checks of a part ended; `str` gives a line for each."""

    outcomes: tuple[Outcome, ...]
    """In the order of `checks`."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that went wrong."""
        return tuple(outcome for outcome in self.outcomes if outcome.problem)

    def __str__(self) -> str:
        lines = []
        for outcome in self.outcomes:
            lines.append(f"{'FAILED' if outcome.problem else 'ok':8}{outcome.check.name}")
            lines += [f"{'':8}{outcome.problem}"] if outcome.problem else []
        count = len(self.outcomes)
        return "\n".join([*lines, f"{count - len(self.failed)} of {count} checks passed"])


def report(
    kind: str, name: str, settings: Mapping[str, Any] | None = None, *, promises: Collection[str] = ()
) -> Report:
    """Makes all checks of a part, whatever each of them gives.

    Args:
        kind: as in `checks`.
        name: as there.
        settings: as there.
        promises: as there.

    Raises:
        VqvaeError: as there.
    """
    made = checks(kind, name, settings, promises=promises)
    return Report(outcomes=tuple(check.outcome() for check in made))
