"""A space file: what is searched, on what, under which budget; read, checked and frozen.

`load` reads YAML, `parse` a mapping that is already there (such as the one a study stores); both give a
`Space` or raise `SpaceError` with file, line and key. `suggest` asks a trial for the parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search import code, labels, parameters, schema, trainer, transfer, yaml12
from search.errors import SpaceError
from search.parameters import FIXED, Parameter
from search.schema import Budget, CodeFile, File, Finalists, Keep, Limits, Log, Objective, Pruner, Resources, Sampler
from search.transfer import Transfer
from vqvae import config as vqvae_config
from vqvae import conversion, plugins
from vqvae.config import ConfigError, TrainConfig
from vqvae.plugins import PluginError
from vqvae.trainers import Trainer

PATHS = (("data", "path"), ("data", "cache"), ("loss", "lpips_trunk"), ("evaluation", "lpips_trunk"))
"""Fields under `train` that hold a path."""

OF_OURS = ("bits_per_image", "tokens")
"""Quantities that follow from the config of our own models."""

NO_PATHS = ("", "random")
"""Their values that are none: the default place, and untrained weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A validated space file.

    Attributes:
        study, objective, budget, sampler, pruner, resources, parallel, seed, keep, finalists, log, storage, output: as
            there.
        retries: how often a trial goes on after it lost its worker.
        transfer: to a larger model than the one that is searched, whose base config, budget of steps and rungs are the
            proxy's; None where the model that is searched is the one that is wanted.
        plugins: files of the user's own code that have to run before a trial's model can be built.
        trainer: FILE.py:FUNCTION that trains in the place of ours, its file one of `plugins`; None is ours.
        base: the config of every trial before its parameters; its steps, rungs and seed are the search's.
        parameters: what is searched, parents of conditions before their children.
        constraints: quantity -> limits.
        baselines: stored labels by parameter, tried first.
        source: the checked mapping, paths absolute, JSON types only: what the study stores.
        document: where it came from, for the place of an error.
    """

    study: str
    objective: Objective
    budget: Budget
    sampler: Sampler
    pruner: Pruner
    resources: Resources
    parallel: int | None
    retries: int
    seed: int
    keep: Keep
    log: Log
    finalists: Finalists | None
    transfer: Transfer | None
    storage: str | None
    output: str | None
    plugins: tuple[CodeFile, ...]
    trainer: str | None
    base: TrainConfig
    parameters: tuple[Parameter, ...]
    constraints: Mapping[str, Limits]
    baselines: tuple[Mapping[str, Any], ...]
    source: Mapping[str, Any]
    document: yaml12.Document = dataclasses.field(compare=False, repr=False)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which trials are compared, the last step aside."""
        return self.base.rungs

    def config(self, labels: Mapping[str, Any]) -> TrainConfig:
        """The config of the trial with these stored labels.

        Raises:
            ConfigError: the values contradict one another.
        """
        values = {p.name: p.value(labels[p.name]) for p in self.parameters if p.name in labels}
        return conversion.replace(self.base, values)

    def wanted(self, labels: Mapping[str, Any]) -> TrainConfig:
        """The config of the model that a trial with these labels is a search for: at the target of a transfer.

        Raises:
            ConfigError: the values contradict one another.
        """
        config = self.config(labels)
        return config if self.transfer is None else self.transfer.at_target(config)


def rungs(steps: int, pruner: Pruner) -> tuple[int, ...]:
    """Steps before `steps` at which trials are compared: as given, or counted down by the reduction factor.

    >>> rungs(30000, Pruner(rungs=2, reduction_factor=3))
    (3333, 9999)
    """
    if pruner.kind == "none":
        return ()
    if pruner.at is not None:
        return tuple(pruner.at)
    first = steps // pruner.reduction_factor**pruner.rungs
    return tuple(first * pruner.reduction_factor**rung for rung in range(pruner.rungs)) if first else ()


def quantities() -> tuple[str, ...]:
    """What `constraints` may limit."""
    return (*OF_OURS, *vqvae_config.COSTS, *vqvae_config.METRICS)


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    study: str | None = None,
    trials: int | None = None,
    plugins: Sequence[str] = (),
) -> Space:
    """Read and check a space file, and run the files of code that it names.

    Args:
        path: the YAML file; relative paths in it start at its folder.
        overrides: ``FIELD=VALUE`` with dotted keys of the file and YAML values, such as ``budget.trials=8``.
        study: a name in place of the file's.
        trials: a budget in place of the file's.
        plugins: files of code besides those of the file.

    Raises:
        SpaceError: with file, line and key.
        PluginError: a file of code raises, or what an entry point of an installed package leads to.
    """
    document = read(path, overrides, {"study": study, "budget.trials": trials})
    if "comparison" in document.value:
        raise document.error(("comparison",), f"this is a comparison of several searches: vqsearch compare {path}")
    folder = Path(path).resolve().parent
    named = trainer.of_file(document, folder, code.of_file(document, folder, plugins))
    return check_named(document.value | named, document, folder)


def read(path: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> yaml12.Document:
    """Read a file, with what the command line sets in it; nothing is checked yet.

    Args:
        path: the YAML file.
        overrides: as in `load`.
        flags: dotted key -> value that a flag of its own gives, such as ``--trials``; None where it was not given.

    Raises:
        SpaceError: no such file, no YAML or no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpaceError(str(path), "", "no such space file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(str(path), "", f"can't be read: {error}") from None
    document = yaml12.parse(text, str(path))
    if not isinstance(document.value, dict):
        raise SpaceError(str(path), "", "a space file is a mapping with study, objective, budget and search")
    values = document.value
    said: dict[yaml12.Path, str] = {}
    for override in overrides:
        said[_override(values, override)] = f"--set {override}"
    for key, value in ((key, value) for key, value in (flags or {}).items() if value is not None):
        parent, _, last = key.rpartition(".")
        place = values.setdefault(parent, {}) if parent else values
        if isinstance(place, dict):
            place[last], said[tuple(key.split("."))] = value, f"--{last}"
    return dataclasses.replace(document, flags=said)


def parse(values: Mapping[str, Any], name: str) -> Space:
    """Check a mapping, such as the one a study stores; relative paths start at the current folder, and no code runs.

    Args:
        values: as in a space file.
        name: where it came from, for messages.
    """
    return check(dict(values), yaml12.Document(name=name, value=values), Path.cwd())


def assignment(text: str, flag: str = "--set") -> tuple[str, Any]:
    """``FIELD=VALUE`` of a command line: the dotted key and the value, read as YAML.

    Args:
        text: what was given.
        flag: what stands before it, for messages.

    Raises:
        SpaceError: no such form, or no YAML behind the equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SpaceError(f"{flag} {text}", "", "must be FIELD=VALUE, such as seed=1")
    try:
        return key, yaml12.scalar(value)
    except SpaceError as error:
        raise SpaceError(f"{flag} {text}", "", str(error).partition(": ")[2]) from None


def _override(values: dict[str, Any], text: str) -> yaml12.Path:
    key, value = assignment(text)
    path = _path(key)
    arms = values.get("arms")
    if path[0] == "arms" and len(path) > 1 and isinstance(arms, dict) and path[1] not in arms:
        raise SpaceError(f"--set {text}", "", f"there is no arm {path[1]!r}; there are {', '.join(map(str, arms))}")
    place = values
    for part in path[:-1]:
        if not isinstance(place.setdefault(part, {}), dict):
            raise SpaceError(f"--set {text}", "", f"{part} is no mapping, so nothing can be set in it")
        place = place[part]
    if path[-2:] in PATHS and isinstance(value, str) and value not in NO_PATHS:
        value = str(Path(value).expanduser().absolute())  # A flag starts at the current folder, a file at its own.
    place[path[-1]] = value
    return path


def _path(key: str) -> tuple[str, ...]:
    """The keys of a dotted one; those of `search` and `constraints` hold dots themselves, and those of labels may."""
    first, _, rest = key.partition(".")
    if first in ("search", "constraints") and rest:
        return (first, rest)
    if key.startswith("resources.labels."):
        return ("resources", "labels", key.removeprefix("resources.labels."))
    arm, _, within = rest.partition(".")
    return (first, arm, *_path(within)) if first == "arms" and within else tuple(key.split("."))


def check_named(values: dict[str, Any], document: yaml12.Document, folder: Path) -> Space:
    """As `check`, knowing the parts of installed packages that the space names.

    Raises:
        PluginError: what an entry point leads to raises, or does not register its part.
    """
    found = check(values, document, folder)
    searched = {p.name: [str(value) for _, value in p.choices] for p in found.parameters}
    terms = [name.removeprefix("loss.terms.") for name in searched if name.startswith("loss.terms.")]
    named = {
        "backbone": [found.base.model.backbone, *searched.get("model.backbone", ())],
        "quantizer": [found.base.quantizer.kind, *searched.get("quantizer.kind", ())],
        "loss": [*found.base.loss.terms, *terms],
        "metric": found.base.evaluation.metrics,
        "data": [found.base.data.source],
    }
    wanted = plugins.installed() & {(kind, name) for kind, names in named.items() for name in names}
    entered = [plugins.enter_installed(kind, name) for kind, name in sorted(wanted)]
    return check(values, document, folder) if any(entered) else found


def check(values: dict[str, Any], document: yaml12.Document, folder: Path) -> Space:
    """Check the mapping of a space file, of whose parts some may be unknown here.

    Args:
        values: as in the file; not kept.
        document: where they stand, for the place of an error.
        folder: where relative paths start.

    Raises:
        SpaceError: with file, line and key.
    """
    file = schema.validate(values, document)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.study):
        raise document.error(
            ("study",), f"must be letters, digits, '.', '_' and '-' (it names a folder), but got {file.study!r}"
        )
    train = _absolute(file.train, folder)
    carried, small, budget = None, train, file.budget
    if file.transfer is not None:
        carried, small = transfer.read(file, train, document)
        budget = budget.model_copy(update={"steps": carried.proxy.steps})
    base = _base(file, small, budget.steps, document)
    try:
        known = trainer.of(file.plugins, file.trainer)
    except PluginError as error:
        raise document.error(("trainer",), str(error)) from None
    searched = parameters.parse(file.search, base, document, parameters.Outside(trainer=file.trainer, known=known))
    space = Space(
        study=file.study,
        objective=file.objective,
        budget=budget,
        sampler=file.sampler,
        pruner=file.pruner,
        resources=file.resources,
        parallel=file.parallel,
        retries=file.retries,
        seed=file.seed,
        keep=file.keep,
        log=file.log,
        finalists=file.finalists,
        transfer=carried,
        storage=file.storage,
        output=_absolute_output(file.output, folder),
        plugins=tuple(file.plugins),
        trainer=file.trainer,
        base=base,
        parameters=searched,
        constraints=file.constraints,
        baselines=parameters.parse_baselines(file.baselines, searched, document),
        source=_source(file, train, searched, folder),
        document=document,
    )
    _sensible(space, document, known)
    return space


def _absolute(train: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`train` with the paths of its data made absolute, so that a study means the same anywhere."""
    resolved: dict[str, Any] = json.loads(json.dumps(train))
    for part, key in PATHS:
        section = resolved.get(part)
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key] not in NO_PATHS:
            section[key] = str(folder / Path(section[key]).expanduser())
    return resolved


def _absolute_output(output: str | None, folder: Path) -> str | None:
    return output if output is None or "://" in output else str(folder / Path(output).expanduser())


def _source(file: File, train: Mapping[str, Any], searched: Sequence[Parameter], folder: Path) -> dict[str, Any]:
    silent = set() if file.plugins else {"plugins"}
    values = file.model_dump(mode="json", exclude={"storage", *silent}, exclude_none=True)
    values["train"] = dict(train)
    for each in searched:
        if each.ordered and isinstance(values["search"][each.name]["choice"], list):
            # As the fields hold them: where an option's plug-in is not known, nothing says that 1 is 1.0.
            values["search"][each.name]["choice"] = list(each.labels)
    if file.output is not None:
        values["output"] = _absolute_output(file.output, folder)
    return values


def _base(file: File, train: Mapping[str, Any], steps: int, document: yaml12.Document) -> TrainConfig:
    for key, instead in FIXED.items():
        if key in train:
            raise document.error(("train", key), f"the search sets this itself; {instead}")
    budgeted = "budget.steps" if file.transfer is None else "the steps of a proxy"
    at = file.pruner.at
    if at is not None and not (at and at == sorted(set(at)) and at[0] >= 1 and at[-1] < steps):
        raise document.error(
            ("pruner", "at"), f"must be rising steps from 1 to below {budgeted}, {steps}, but got {at!r}"
        )
    compared = rungs(steps, file.pruner)
    if file.pruner.kind != "none" and not compared:
        raise document.error(
            ("pruner", "rungs"),
            f"{file.pruner.rungs} rungs at a reduction factor of {file.pruner.reduction_factor} need at least "
            f"{file.pruner.reduction_factor**file.pruner.rungs} steps, but {budgeted} is {steps}",
        )
    try:
        config: TrainConfig = conversion.from_dict({**train, "steps": steps, "rungs": compared, "seed": file.seed})
    except ConfigError as error:
        raise document.error(("train", *error.key.split(".")), error.problem) from None
    return config


def _sensible(space: Space, document: yaml12.Document, known: Trainer | None) -> None:
    """Refuse what cannot work, and say why; `known` is a trainer of one's own, where its file has run."""
    if space.resources.gpus > 1:
        raise document.error(
            ("resources", "gpus"), f"a trial runs on at most one GPU, but got {space.resources.gpus:g}"
        )
    kind, asked = space.resources.accelerator_type, space.resources.labels
    if kind and not (space.resources.gpus and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", kind)):
        expected = "must be a name such as A100, and resources.gpus above 0"
        raise document.error(("resources", "accelerator_type"), f"{expected}, but got {kind!r}")
    if asked and (problem := labels.problem(asked)):
        raise document.error(("resources", "labels"), problem)
    metric, direction = space.objective.metric, space.objective.direction
    _require_measured(metric, space, known, ("objective", "metric"), document)
    right = vqvae_config.METRICS.get(metric)  # none of a plug-in's where that is not loaded, as it is for a reader
    if right and right != direction:
        side = "lower" if right == "minimize" else "higher"
        raise document.error(
            ("objective", "direction"),
            f"{metric} is better the {side}, so this must be {right}, but got {direction!r}",
        )
    if space.sampler.kind == "gp" and space.pruner.kind != "none":
        raise document.error(
            ("sampler", "kind"), "gp learns from complete trials only, so it needs pruner: {kind: none}"
        )
    choice = next((p.name for p in space.parameters if p.kind == "choice" and not p.ordered), None)
    if space.sampler.kind == "cmaes" and choice:
        raise document.error(
            ("sampler", "kind"), f"cmaes searches numbers only, and {choice} is a choice without order"
        )
    for name, limits in space.constraints.items():
        path = ("constraints", name)
        if name.startswith("val/"):
            _require_measured(name, space, known, path, document)
        elif space.trainer and name in OF_OURS:
            raise document.error(path, f"is known of vqsearch's own models only, and the trainer is {space.trainer}")
        elif not space.trainer and name not in quantities():
            raise document.error(path, f"unknown quantity; known are {', '.join(quantities())}")
        if limits.min is None and limits.max is None:
            raise document.error(path, "must have min or max or both")
        if any(limit is not None and limit <= 0 for limit in (limits.min, limits.max)):
            raise document.error(
                path, "min and max must be above 0, since a violation is measured by value / limit - 1"
            )
    if not space.trainer:
        _sensible_for_ours(space, document)


def _sensible_for_ours(space: Space, document: yaml12.Document) -> None:
    """The same where our own trainer reads the config; another one need not."""
    if space.base.options:
        raise document.error(("train", "options"), "must be empty, since vqsearch's own trainer has none")
    metric = space.objective.metric
    for field, off, needing in (
        ("lpips", "must be true", ("val/lpips_alex", "val/lpips_perturbed")),
        ("perturbed", "must be above 0", ("val/lpips_perturbed",)),
        ("rfid_weights", "must name a file", ("val/rfid",)),
    ):
        if metric in needing and not getattr(space.base.evaluation, field):
            raise document.error(("train", "evaluation", field), f"{off}, since the objective is {metric}")
    data = space.base.data
    if space.finalists is not None and data.source != "photographs" and not (data.splits or data.test_fraction):
        raise document.error(
            ("finalists",), "are judged on the test split, so train.data.test_fraction must be above 0, but got 0"
        )
    if space.rungs:
        warmup = max([space.base.optimizer.warmup_steps, *_possible(space, "optimizer.warmup_steps")])
        if space.rungs[0] < 2 * warmup:
            raise document.error(
                ("pruner", "rungs"),
                f"the first rung, step {space.rungs[0]}, comes before twice the longest warm-up of {warmup:g} steps: "
                "it would rank learning rates, not models; fewer rungs, a smaller reduction_factor, more steps or a "
                "shorter warm-up mend it",
            )
        start = round(max([space.base.gan.start, *_possible(space, "gan.start")]) * space.budget.steps)
        if (_possible(space, "gan.start") or _possible(space, "gan.weight")) and space.rungs[0] < start:
            raise document.error(
                ("pruner", "rungs"),
                f"the first rung, step {space.rungs[0]}, comes before the discriminator's latest start, step {start}: "
                "it would rank models without what is searched; fewer rungs or an earlier gan.start mend it",
            )


def _require_measured(
    metric: str, space: Space, trained_by: Trainer | None, path: yaml12.Path, document: yaml12.Document
) -> None:
    """Refuse a metric that no evaluation measures: none of ours, and none of a plug-in that trials are to measure."""
    if space.trainer:
        _require_told(metric, space.trainer, trained_by, path, document)
        return
    own = [f"val/{name}" for name in space.base.evaluation.metrics]
    name = metric.removeprefix("val/")
    if metric in own or (metric in vqvae_config.METRICS and not plugins.has("metric", name)):
        return
    known = list(dict.fromkeys([*vqvae_config.METRICS, *own]))
    if metric in known:
        raise document.error(
            path,
            f"{metric} is a plug-in's, so that train.evaluation.metrics must list {name}, for trials to measure it",
        )
    near = difflib.get_close_matches(metric, known, n=1)
    listed = f"known are {', '.join(known)}; one of a plug-in has its name in train.evaluation.metrics"
    raise document.error(path, f"unknown metric {metric!r}; {f'did you mean {near[0]}?' if near else listed}")


def _require_told(
    metric: str, name: str, trained_by: Trainer | None, path: yaml12.Path, document: yaml12.Document
) -> None:
    """Refuse a metric that a trainer of one's own does not measure; where its file has not run, any name goes."""
    if not metric.startswith("val/"):
        raise document.error(path, f"must be a metric of {name}, val/NAME, but got {metric!r}")
    told = trained_by and (list(trained_by.metrics) or list(vqvae_config.METRICS))
    if told and metric not in told:
        near = difflib.get_close_matches(metric, told, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it measures {', '.join(told)}"
        raise document.error(path, f"{name} does not measure {metric!r}; {hint}")


def _possible(space: Space, name: str) -> list[float]:
    """The extremes a searched field can take."""
    for parameter in space.parameters:
        if parameter.name == name:
            return [parameter.low, parameter.high] if parameter.kind != "choice" else [v for _, v in parameter.choices]
    return []


def violations(limits: Mapping[str, Limits], quantities: Mapping[str, float]) -> dict[str, float]:
    """Which limits are broken, and by how much: value / limit - 1 (limit / value - 1 for a minimum), above 0."""
    broken = {}
    for name, limit in limits.items():
        if name not in quantities:
            continue
        value = quantities[name]
        if limit.max is not None and value > limit.max:
            broken[name] = value / limit.max - 1
        elif limit.min is not None and value < limit.min:
            broken[name] = limit.min / max(value, 1e-12) - 1
    return broken


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines that say what differs between two stored spaces: ``budget.trials: 12 -> 24``."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}".strip(".")).items()}
        return {prefix: value}

    before, after = flat(old), flat(new)
    missing = "(absent)"
    return [
        f"{key}: {json.dumps(before[key]) if key in before else missing}"
        f" -> {json.dumps(after[key]) if key in after else missing}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, missing) != after.get(key, missing)
    ]
