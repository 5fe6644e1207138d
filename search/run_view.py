"""What people see of one run in training: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from search.progress import PLAIN_EVERY_S, decoding
from search.screen import Screen, bar, quietly, wrapped
from search.units import duration
from vqvae.config import COSTS, TrainConfig

if TYPE_CHECKING:
    from vqvae.data import Decoding
    from vqvae.train import Progress


class RunView:
    """What the user sees of a run: each evaluation as a line that stays, below it where the run is.

    Args:
        console: where it is shown.
        config: the run.
        quiet: nothing.
    """

    def __init__(self, console: Console, config: TrainConfig, quiet: bool = False) -> None:
        self.console = console
        self._config = config
        self._quiet = quiet
        self._screen: Screen | None = None
        self._preparing = "reading the images and building the model"
        self._report: Progress | None = None
        self._rate = 0.0
        self._printed = -math.inf

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show the run for as long as the context lasts."""
        if self._quiet or not self.console.is_terminal:
            yield
            return
        with Screen(self.console, self.render) as self._screen:
            yield
        self._screen = None

    def say(self, line: str) -> None:
        """A line of its own."""
        if not self._quiet:
            shown = wrapped(line, self.console.width) if self.console.is_terminal else [Text(line)]
            with quietly():  # The terminal may be gone; the run goes on.
                (self._screen or self.console).print(Text("\n").join(shown), soft_wrap=True)

    def decoding(self, how_far: Decoding) -> None:
        """How far the pictures are, which are decoded once; a line every half minute where there is no terminal."""
        self._preparing = decoding(how_far)
        if not self.console.is_terminal and time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self.say(self._preparing)

    def show(self, report: Progress) -> None:
        """What the trainer reports; between evaluations a line every half minute where there is no terminal."""
        self._report = report
        self._rate = report.metrics.get("images_per_s", self._rate)
        due = not self.console.is_terminal and time.monotonic() - self._printed > PLAIN_EVERY_S
        if report.evaluated or due:
            self._printed = time.monotonic()
            left = f"  {self._left(report.step)}" if self._rate and report.step < self._config.steps else ""
            metrics = report.metrics
            if self.console.is_terminal:  # the rest is in the live line, or in the checkpoint
                metrics = {name: value for name, value in metrics.items() if name.startswith("val/")}
            self.say(line(report.step, self._config.steps, metrics) + left)

    def render(self) -> RenderableType:
        """Where the run is."""
        report, steps = self._report, self._config.steps
        if report is None:
            return Text(self._preparing, style="dim")
        width = max(min(self.console.width - 70, 40), 10)
        words = [f"{report.step}/{steps} steps"]
        if self._rate:
            words += [f"{self._rate:.4g} images/s", self._left(report.step)]
        if "train/loss" in report.metrics:
            words.append(f"loss {report.metrics['train/loss']:.4g}")
        plain = self.console.options.ascii_only
        done = bar(report.step / steps, width, plain)
        return Text.assemble(done, " ", "  ".join(words), no_wrap=True, overflow="crop" if plain else "ellipsis")

    def _left(self, step: int) -> str:
        seconds = (self._config.steps - step) * self._config.batch_size / self._rate
        return f"about {duration(seconds)} left"


def line(step: int, steps: int, metrics: dict[str, float]) -> str:
    """One report in a line: what is measured on held-out images, then what it costs, then the terms of the loss."""
    names = sorted(metrics, key=lambda name: (not name.startswith("val/"), name not in COSTS, name))
    return f"step {step}/{steps}  " + "  ".join(f"{name} {metrics[name]:.5g}" for name in names)
