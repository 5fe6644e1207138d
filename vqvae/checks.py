"""What a check of a part is: a promise that it keeps, tried on a small model of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.conversion import replace
from vqvae.plugins import KINDS, PluginError

SMALL: dict[str, Any] = {
    "model.backbone": "attention",
    "model.width": 16,
    "model.depth": 1,
    "model.head_size": 8,
    "model.state_size": 4,
    "model.patch": 8,
    "quantizer.codebook_size": 32,
    "quantizer.code_dim": 4,
    "loss.perceptual": 0.0,
    "optimizer.warmup_steps": 1,
    "data.resolution": 32,
    "evaluation.lpips": False,
    "evaluation.images": 4,
    "steps": 4,
    "batch_size": 4,
    "micro_batch": 2,
    "checkpoint_every": 0,
    "device": "cpu",
    "precision": "float32",
    "compile": "never",
}
"""Fields of the runs that checks make: models that are built and trained in milliseconds."""


class CheckFailed(VqvaeError, AssertionError):  # noqa: N818
    """A part does not keep a promise; the message says which one, what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A part, and the run in which it is checked."""

    kind: str
    """Of `vqvae.plugins.KINDS`."""
    name: str
    """By which it is registered."""
    config: TrainConfig
    """A run that has it."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def changed(self, **fields: Any) -> TrainConfig:
        """The run with other fields; `__` stands for the dot in their names."""
        return replace(self.config, {name.replace("__", "."): value for name, value in fields.items()})


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise of one part; called, it tries it."""

    subject: Subject
    """Whose promise it is."""
    trial: Callable[[Subject], None]
    """Tries it."""

    @property
    def name(self) -> str:
        """A word for it, such as images_never_mix."""
        return self.trial.__name__

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return (self.trial.__doc__ or "").split("\n")[0]

    def __str__(self) -> str:
        return self.name

    def outcome(self) -> Outcome:
        """Tries it, and says in a line what went wrong, whatever the part raises."""
        try:
            self()
        except CheckFailed as failure:
            return Outcome(check=self, problem=str(failure).removeprefix(f"{self.subject}: {self.name}: "))
        except Exception as error:  # noqa: BLE001 - whatever the part raises is its outcome
            return Outcome(check=self, problem=_line(error))
        return Outcome(check=self)

    def __call__(self) -> None:
        """Tries it, always with the same random numbers, and leaves torch's generator as it was.

        Raises:
            CheckFailed: the part does not keep it.
            Exception: whatever the part raises, with a note that says which check called it.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small models gain nothing from more, and lose much where the cores are busy
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                self.trial(self.subject)
        except CheckFailed as failure:
            raise CheckFailed(f"{self.subject}: {self.name}: {failure}") from failure.__cause__
        except Exception as error:
            error.add_note(f"{self.subject}: {self.name}: {self.promise}")
            if isinstance(error, ConfigError):
                error.add_note("The checks make small models; give them sizes that this part takes, as settings.")
            raise
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a check ended."""

    check: Check
    """Which one."""
    problem: str = ""
    """What went wrong, in a line; "" is nothing."""


def _line(error: Exception) -> str:
    """What a part raised, where, and what the check says of it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = str(error).strip().splitlines()
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("(")]
    kind = "" if isinstance(error, VqvaeError) else f"{type(error).__name__}: "
    return " ".join([f"{kind}{words[0] if words else 'no message'} [{last.filename}:{last.lineno}]", *notes])


def subject(kind: str, name: str, settings: dict[str, Any]) -> Subject:
    """A part in a small run of its own.

    Args:
        kind: of `KINDS`, or trainer.
        name: of the part, which need not be loaded yet; of a trainer FILE.py:FUNCTION.
        settings: fields of the run by their dotted names, over `SMALL`.

    Raises:
        PluginError: another kind.
        ConfigError: settings that are none.
    """
    if kind not in (*KINDS, "trainer"):
        raise PluginError(f"kind: must be one of {', '.join(KINDS)}, trainer, but got {kind!r}")
    chosen: dict[str, Any] = {} if kind == "trainer" else {KINDS[kind].key: name}
    if kind == "loss":
        chosen = {f"loss.{name}" if name in ("l1", "l2") else f"loss.terms.{name}": 1.0}
    elif kind == "metric":
        chosen = {"evaluation.metrics": [name]}
    return Subject(kind=kind, name=name, config=replace(TrainConfig(), SMALL | chosen | settings))


def expect(holds: bool, expected: str, got: str) -> None:
    """Raises CheckFailed unless `holds`: ``expected EXPECTED, but GOT``."""
    if not holds:
        raise CheckFailed(f"expected {expected}, but {got}")


def listed(names: list[str], most: int = 4) -> str:
    """The first few names, and how many there are besides."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


@contextmanager
def during(what: str) -> Iterator[None]:
    """Adds to an exception at which size, or with which value, it was raised."""
    try:
        yield
    except CheckFailed as failure:
        raise CheckFailed(f"{failure} ({what})") from failure.__cause__
    except Exception as error:
        error.add_note(f"({what})")
        raise


def odd_values(value: Any) -> list[Any]:
    """Values near one of an option, and beyond its likely range."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 0, -1]
    if isinstance(value, float):
        return [0.0, -1.0]
    return ["no such choice"] if isinstance(value, str) else [()]
