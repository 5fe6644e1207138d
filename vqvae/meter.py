"""What happens between two reports: the terms of the loss and the time, read from the device only when asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Meter:
    """Means of the terms, and the rate of training alone, both since the last `reset`."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        """Sum of each term, and the number of steps that had it."""
        self._pending: list[dict[str, Tensor]] = []
        self._started: float | None = None
        self._stretches = 0
        self._timed_steps, self._seconds = 0, 0.0

    def start(self) -> None:
        """A step begins; time runs until the next `read`."""
        if self._started is None:
            self._started = time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        """The terms of one step, scalars that may still be under way on the device."""
        self._pending.append(terms)

    def read(self) -> list[dict[str, float]]:
        """The terms of each step since the last call; waits for the device and stops the clock."""
        if not self._pending:
            return []
        values = iter(torch.stack([value for terms in self._pending for value in terms.values()]).tolist())
        rows = [{name: next(values) for name in terms} for terms in self._pending]
        self._pending.clear()
        for row in rows:  # one by one, so that the sums do not depend on when they were read
            for name, value in row.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)
        assert self._started is not None
        if self._stretches == 1:  # the first one of a process compiles and allocates: it counts while there is no other
            self._timed_steps, self._seconds = 0, 0.0
        self._stretches += 1
        self._timed_steps += len(rows)
        self._seconds += time.perf_counter() - self._started
        self._started = None
        return rows

    def means(self) -> dict[str, float]:
        """Mean of each term over the steps that were read and had it."""
        return {name: total / count for name, (total, count) in self.sums.items()}

    def steps_per_s(self) -> float:
        """Steps a second, without evaluations and reports; 0 before the first step was read."""
        return self._timed_steps / self._seconds if self._seconds else 0.0

    def reset(self) -> None:
        """Forgets what was read."""
        self.sums = {}
        self._timed_steps, self._seconds = 0, 0.0
