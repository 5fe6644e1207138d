"""The keys of a space file and their types, for pydantic; nothing here knows what a field means to the trainer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from search import yaml12
from search.errors import SpaceError


class _Part(BaseModel):
    """A part of a space file: frozen, no unknown keys, no silent conversions of text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Objective(_Part):
    """What is optimized: one metric on held-out images."""

    metric: str
    """What trials are compared by."""
    direction: Literal["minimize", "maximize"]
    """Which way is better; it must be the metric's own where that has one."""


class Budget(_Part):
    """When the search ends."""

    trials: int = Field(ge=1, le=10**6)
    """Trials of the study in total: complete, pruned and failed ones."""
    steps: int = Field(ge=1, le=10**9)
    """Optimizer steps of one trial that is not stopped."""
    hours: float | None = Field(default=None, gt=0)
    """Wall hours of all drivers together after which no trial starts."""


class Sampler(_Part):
    """How parameters are chosen."""

    kind: Literal["tpe", "random", "qmc", "gp", "cmaes"] = "tpe"
    """Optuna's sampler of that name. tpe, gp and cmaes begin with points of a scrambled Sobol sequence, from which qmc
    takes all; gp goes with no pruner, cmaes with no choice among words."""


class Pruner(_Part):
    """How trials are stopped early."""

    kind: Literal["asha", "median", "none"] = "asha"
    """asha (at a rung the best go on), median (who is not behind the median of those before) or none."""
    rungs: int = Field(default=2, ge=1, le=6)
    """Steps before the last at which trials are compared, counted down from it: of 900 steps and a factor of 3 those at
    100 and 300. The first has to come after twice the warm-up (`optimizer.warmup_steps`), or it
    ranks learning rates."""
    reduction_factor: int = Field(default=3, ge=2)
    """Ratio of one rung to the one before; asha lets one trial in so many go on."""
    at: list[int] | None = None
    """The steps of the rungs themselves, in place of those counted down from the last step."""


class Resources(_Part):
    """What one trial asks the cluster for."""

    gpus: float = Field(default=1.0, ge=0)
    """GPUs, at most 1; a fraction lets as many trials share one as it holds."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU cores."""
    accelerator_type: str | None = Field(default=None, min_length=1, max_length=63)
    """Kind of GPU, as Ray names those that it finds: A100, H100, L4, ...; none is any. Of a cluster only."""
    labels: dict[str, str] | None = None
    """Labels of the nodes that may run a trial, as nodes got them from ``ray start --labels``: ``{zone: b}``. A value
    may be ``!b``, ``in(a, b)`` or ``!in(a, b)`` too. Of a cluster only."""


class Keep(_Part):
    """What stays on the disk."""

    best: int = Field(default=3, ge=1)
    """Complete trials that keep their checkpoints; of all others only pictures stay."""


class Log(_Part):
    """Where curves go besides the study; may change when a study goes on."""

    tensorboard: bool = False
    """Event files in OUTPUT/STUDY/tensorboard, for ``tensorboard --logdir``."""
    wandb: str | None = Field(default=None, min_length=1, max_length=128)
    """Project of Weights & Biases; a run for each trial."""


class Finalists(_Part):
    """What is judged on the test split when the search is over: the best settings, trained again on fresh seeds."""

    top: int = Field(default=3, ge=1)
    """Settings of the ranking, the best first, that are trained again from scratch."""
    seeds: int = Field(default=3, ge=1)
    """Fresh seeds of each; one shows no interval."""
    include: Literal["baselines", "nothing"] = "baselines"
    """Settings that are judged beside them, wherever pruning stopped them."""


class Size(_Part):
    """What may differ between the proxy of a transfer and its target; what is silent is equal."""

    width: int | None = Field(default=None, ge=1)
    """Channels, `model.width`."""
    depth: int | None = Field(default=None, ge=1)
    """Blocks on each side, `model.depth`."""
    steps: int | None = Field(default=None, ge=1, le=10**9)
    """Optimizer steps of a trial; a warm-up keeps its part of them."""
    images: int | None = Field(default=None, ge=0)
    """Training images, at most, `data.images`; 0 is all."""


class Transfer(_Part):
    """Search a smaller model than the one that is wanted, and train what was found at its size; see transfer.md."""

    proxy: Size
    """What the search trains."""
    target: Size = Size()
    """What is wanted; it is what `train` and `budget` say, where this is silent."""
    top: int = Field(default=3, ge=1)
    """Settings of the ranking, the best first, that are trained at the target."""
    include: Literal["baselines", "nothing"] = "baselines"
    """Settings that are trained there beside them, wherever pruning stopped them."""


class Limits(_Part):
    """Bounds of a quantity; a trial outside them is infeasible."""

    min: float | None = None
    """The least that is allowed."""
    max: float | None = None
    """The most that is allowed."""


class CodeFile(_Part):
    """A file of the user's own code, as a study keeps it: where it was and what it held, never the code itself."""

    path: str = Field(min_length=1)
    """Absolute."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of its content."""


class File(_Part):
    """The keys of a space file."""

    study: str
    """Name of the study: letters, digits, '.', '_' and '-'."""
    objective: Objective
    budget: Budget
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    resources: Resources = Resources()
    parallel: int | None = Field(default=None, ge=1, le=10**5)
    """Trials at once; none is what the cluster holds at the moment."""
    retries: int = Field(default=2, ge=0)
    """How often a trial goes on after it lost its worker."""
    seed: int = Field(default=0, ge=0)
    """Of the sampler and of every trial."""
    keep: Keep = Keep()
    log: Log = Log()
    finalists: Finalists | None = None
    transfer: Transfer | None = None
    storage: str | None = None
    """URL of the storage; none is $VQSEARCH_STORAGE, else sqlite:///vqsearch.db."""
    output: str | None = None
    """Folder or bucket URL of checkpoints and pictures; none is ./vqsearch-output."""
    plugins: list[CodeFile] = []
    """Python files with parts of your own, which run on this machine and on its workers; see plugins.md."""
    trainer: str | None = None
    """FILE.py:FUNCTION, which trains in the place of ours; see plugins.md."""
    train: dict[str, Any] = {}
    """Fields of the training config, the same for all trials."""
    search: dict[str, Any]
    """Fields of the training config that are searched, with their distributions."""
    constraints: dict[str, Limits] = {}
    """Limits of quantities."""
    baselines: list[dict[str, Any]] = []
    """Settings that are tried first."""


def validate(values: Mapping[str, Any], document: yaml12.Document) -> File:
    """The keys of a space file, each of its type.

    Raises:
        SpaceError: an unknown or missing key, a wrong type or a number out of range, with its place.
    """
    try:
        return File.model_validate(values)
    except pydantic.ValidationError as error:
        raise _explain(error, document) from None


def _explain(error: pydantic.ValidationError, document: yaml12.Document) -> SpaceError:
    """The first mistake that pydantic found, in our words; a misspelled key before what is missing for it."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = tuple(first["loc"])
    if first["type"] == "missing":
        return document.error(path, "this key is missing")
    if first["type"] == "extra_forbidden" and path[0] == "transfer" and path[1] in ("proxy", "target"):
        return document.error(
            path,
            f"must be equal at proxy and target, so it stands under train; {', '.join(Size.model_fields)} may differ",
        )
    if first["type"] == "extra_forbidden":
        known: Any = File
        for part in path[:-1]:
            annotation = known.model_fields[part].annotation if part in known.model_fields else Limits
            models = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
            known = next((each for each in models if issubclass(each, BaseModel)), Limits)
        near = difflib.get_close_matches(str(path[-1]), list(known.model_fields), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known.model_fields)}"
        return document.error(path, f"unknown key; {hint}")
    wanted = {
        "string_type": "must be text",
        "string_too_short": "must not be empty",
        "string_too_long": "must have at most {max_length} characters",
        "bool_type": "must be true or false",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "dict_type": "must be a mapping",
        "list_type": "must be a list",
        "model_type": "must be a mapping",
        "model_attributes_type": "must be a mapping",
        "literal_error": "must be one of {expected}",
        "string_pattern_mismatch": "must be the sha256 of a file, 64 hexadecimal digits",
        "greater_than_equal": "must be at least {ge:g}",
        "greater_than": "must be above {gt:g}",
        "finite_number": "must be a finite number",
        "less_than_equal": "must be at most {le:g}",
    }.get(first["type"], first["msg"])
    words = wanted.format_map({**first.get("ctx", {})}).replace("'", "")
    if first["type"] == "literal_error":
        words = words.replace(" or ", ", ")
    return document.error(path, f"{words}, but got {first['input']!r}")
