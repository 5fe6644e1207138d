"""What a space file searches: fields of TrainConfig with their ranges, and the baselines within them."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vqvae import conversion, plugins, trainers
from vqvae.config import ConfigError, TrainConfig

if TYPE_CHECKING:
    import optuna

    from search import yaml12

FIXED = {
    "steps": "set budget.steps instead",
    "rungs": "set pruner.rungs instead",
    "seed": "set seed instead",
}
"""Fields of TrainConfig that the search itself sets."""

UNSEARCHABLE = (
    FIXED
    | {
        "batch_size": "rungs compare trials at equal images seen, so it stays the same for all",
        "device": "all trials are measured on the same kind of device",
        "precision": "it is a property of the machine; set it under train",
        "compile": "it is a property of the machine; set it under train",
        "checkpoint_every": "it changes nothing that is measured",
        "micro_batch": "it changes nothing that is measured",
        "loss.lpips_trunk": "it is the place of a file; set it under train",
        "options": "search one of them, as options.NAME",
        "loss.terms": "search one of them, as loss.terms.NAME",
        "model.options": "search one of them, as model.options.NAME",
        "quantizer.options": "search one of them, as quantizer.options.NAME",
    }
    | dict.fromkeys(
        (
            "data.source",
            "data.path",
            "data.subset",
            "data.column",
            "data.cache",
            "data.resolution",
            "data.fit",
            "data.small",
            "data.group_by",
            "data.splits",
            "data.validation_fraction",
            "data.test_fraction",
            "data.options",
            "evaluation.images",
            "evaluation.lpips",
            "evaluation.lpips_trunk",
            "evaluation.perturbed",
            "evaluation.rfid_weights",
            "evaluation.test",
            "evaluation.metrics",
        ),
        "trials are compared on the same held-out images, measured alike",
    )
)
"""Fields that no search may vary -> why."""

OPTIONS = {"model.options": "backbone", "quantizer.options": "quantizer"}
"""Fields with the options of plug-ins -> kind of the plug-in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside:
    """Who trains in the place of ours.

    Attributes:
        trainer: its name; None is ours.
        known: what its file says of it, where that has run.
    """

    trainer: str | None = None
    known: trainers.Trainer | None = None


OURS = Outside()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched field.

    Attributes:
        name: dotted field of TrainConfig.
        kind: float, int or choice.
        low, high, log, step: of a float or int; `step` is None for a continuous float.
        choices: label -> value of a choice; the label is what the study stores, and equals the value
            where that is a number, text, boolean or null.
        when: other searched field -> labels under which this one is active.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[tuple[Any, Any], ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def labels(self) -> tuple[Any, ...]:
        """The labels of a choice."""
        return tuple(label for label, _ in self.choices)

    @property
    def ordered(self) -> bool:
        """Whether this is a choice among numbers, whose order means something."""
        return self.kind == "choice" and all(
            isinstance(label, (int, float)) and not isinstance(label, bool) for label in self.labels
        )

    def value(self, label: Any) -> Any:
        """What a stored label or number stands for."""
        return dict(self.choices)[label] if self.kind == "choice" else label

    def holds(self, label: Any) -> bool:
        """Whether the study could store this label or number for the parameter."""
        if self.kind == "choice":
            return any(label == known and type(label) is type(known) for known in self.labels)
        number = isinstance(label, (int, float)) and not isinstance(label, bool)
        whole = self.kind == "float" or (number and math.isfinite(label) and label == int(label))
        if not (number and whole and self.low <= label <= self.high):
            return False
        steps = 0.0 if self.step is None else (label - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-8)  # as Optuna holds a value to be on the grid


def parse(
    search: Mapping[str, Any], base: TrainConfig, document: yaml12.Document, outside: Outside = OURS
) -> tuple[Parameter, ...]:
    """Read the section `search` of a space file.

    Args:
        search: dotted field -> mapping with float, int or choice.
        base: the config whose fields are searched.
        document: the file, for the place of an error.
        outside: who trains.

    Returns:
        Parents of conditions before their children, otherwise as in the file.

    Raises:
        SpaceError: with file, line and key.
    """
    known = conversion.fields()
    if not search:
        raise document.error(("search",), "at least one field must be searched")
    found: dict[str, Parameter] = {}
    for name, value in search.items():
        path = ("search", name)
        holder, _, option = name.rpartition(".")
        if holder == "loss.terms":
            known[name] = float
        elif holder in OPTIONS:
            known[name] = _option(holder, option, search, base, document)
        elif holder == "options":
            known[name] = _option_of_trainer(option, outside, document)
        if name not in known:
            raise document.error(path, conversion.unknown(name, known))
        if name in UNSEARCHABLE:
            raise document.error(path, f"can't be searched: {UNSEARCHABLE[name]}")
        found[name] = _parameter(name, value, known[name], document)
        if holder in (*OPTIONS, "loss.terms"):
            _try_options(found[name], search, base, document)
        elif holder == "options":
            _try_trainer(found[name], base, outside.known, document)
        else:
            _try_values(found[name], base, document)
    return _in_order(found, document)


def _parameter(name: str, value: Any, annotation: Any, document: yaml12.Document) -> Parameter:
    path = ("search", name)
    kinds = ("float", "int", "choice")
    if not isinstance(value, dict) or sum(kind in value for kind in kinds) != 1:
        raise document.error(
            path, f"must hold one of float: [low, high], int: [low, high], choice: [...]; got {value!r}"
        )
    kind = next(kind for kind in kinds if kind in value)
    allowed = {kind, "when"} | (set() if kind == "choice" else {"log", "step"})
    for key in value:
        if key not in allowed:
            raise document.error((*path, key), f"unknown key; known are {', '.join(sorted(allowed))}")
    when = _conditions(value.get("when", {}), document, (*path, "when"))
    if kind == "choice":
        return Parameter(name=name, kind="choice", choices=_choices(value[kind], annotation, document, path), when=when)
    if annotation not in ((Any, float) if kind == "float" else (Any, int, float)):
        raise document.error((*path, kind), f"{name} holds {_words(annotation)}, so {kind} can't search it")
    return _range(name, kind, value, when, document)


def _range(name: str, kind: str, value: Mapping[str, Any], when: Any, document: yaml12.Document) -> Parameter:
    path = ("search", name)
    bounds = value[kind]
    numbers = isinstance(bounds, list) and all(
        isinstance(b, (int, float)) and not isinstance(b, bool) and math.isfinite(b) for b in bounds
    )
    if not numbers or len(bounds) != 2:
        raise document.error((*path, kind), f"must be [low, high], two numbers, but got {bounds!r}")
    low, high = bounds
    log, step = value.get("log", False), value.get("step")
    if kind == "int" and not all(b == int(b) for b in bounds):
        raise document.error((*path, kind), f"must be two whole numbers, but got {bounds!r}")
    if low > high:
        raise document.error(path, f"low <= high must hold, but got low={low}, high={high}")
    if not isinstance(log, bool):
        raise document.error((*path, "log"), f"must be true or false, but got {log!r}")
    if log and low <= 0:
        raise document.error(path, f"low > 0 must hold with log: true, but got low={low}")
    if step is not None and (isinstance(step, bool) or not isinstance(step, (int, float)) or step <= 0):
        raise document.error((*path, "step"), f"must be a number above 0, but got {step!r}")
    if step is not None and log:
        raise document.error((*path, "step"), "can't stand beside log: true")
    if kind == "int":
        if step is not None and step != int(step):
            raise document.error((*path, "step"), f"must be a whole number, but got {step!r}")
        return Parameter(name=name, kind="int", low=int(low), high=int(high), log=log, step=int(step or 1), when=when)
    return Parameter(name=name, kind="float", low=float(low), high=float(high), log=log, step=step, when=when)


def _choices(value: Any, annotation: Any, document: yaml12.Document, path: yaml12.Path) -> tuple[tuple[Any, Any], ...]:
    plain = (str, int, float, bool, type(None))
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, plain):
                raise document.error(
                    (*path, "choice"), f"a list or mapping needs a label, as in choice: {{NAME: {item!r}}}"
                )
        pairs = [(item, item) for item in value]
    else:
        pairs = []
    if not pairs:
        raise document.error((*path, "choice"), f"must be a list or a mapping of labels, not empty, but got {value!r}")
    for index, (label, item) in enumerate(pairs):
        try:
            converted = conversion.convert(str(path[-1]), item, annotation)
        except ConfigError as error:
            raise document.error((*path, "choice"), error.problem) from None
        pairs[index] = (converted if label is item and isinstance(item, (int, float)) else label, converted)
    labels = [label for label, _ in pairs]
    if len(set(labels)) != len(labels):
        raise document.error((*path, "choice"), f"every value must stand once, but got {labels!r}")
    return tuple(pairs)


def _conditions(value: Any, document: yaml12.Document, path: yaml12.Path) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(value, dict):
        raise document.error(path, f"must be a mapping of a searched field to its values, but got {value!r}")
    return tuple((field, tuple(v) if isinstance(v, list) else (v,)) for field, v in value.items())


def _in_order(found: Mapping[str, Parameter], document: yaml12.Document) -> tuple[Parameter, ...]:
    """Parents of conditions first, otherwise as in the file."""
    for name, parameter in found.items():
        for parent, labels in parameter.when:
            path = ("search", name, "when", parent)
            if parent not in found or found[parent].kind != "choice":
                raise document.error(path, "must be a searched field with a choice")
            for label in labels:
                if not found[parent].holds(label):
                    raise document.error(path, f"must be among {list(found[parent].labels)!r}, but got {label!r}")
    order: dict[str, Parameter] = {}
    while len(order) < len(found):
        ready = [n for n, p in found.items() if n not in order and all(parent in order for parent, _ in p.when)]
        if not ready:
            left = next(name for name in found if name not in order)
            raise document.error(("search", left, "when"), "the conditions form a circle")
        order |= {name: found[name] for name in ready}
    return tuple(order.values())


def _try_values(parameter: Parameter, base: TrainConfig, document: yaml12.Document) -> None:
    """Each bound and each choice must be in the field's range; what depends on other fields is not tried here."""
    part, _, field = parameter.name.rpartition(".")
    owner: Any = base
    for name in filter(None, part.split(".")):
        owner = getattr(owner, name)
    for value in _extremes(parameter):
        try:
            dataclasses.replace(owner, **{field: value})
        except ConfigError as error:
            if error.key == field:
                raise document.error(("search", parameter.name), f"{field} {error.problem}") from None


def _extremes(parameter: Parameter) -> list[Any]:
    choice = parameter.kind == "choice"
    return [value for _, value in parameter.choices] if choice else [parameter.low, parameter.high]


def _named(kind: str, search: Mapping[str, Any], base: TrainConfig) -> list[str]:
    """The parts of a kind that trials may have."""
    key = plugins.KINDS[kind].key
    searched = search.get(key)
    choices = searched.get("choice") if isinstance(searched, dict) else None
    values = choices.values() if isinstance(choices, dict) else choices if isinstance(choices, list) else ()
    return [str(name) for name in (operator.attrgetter(key)(base), *values)]


def _option(holder: str, option: str, search: Mapping[str, Any], base: TrainConfig, document: yaml12.Document) -> Any:
    """The type of an option; Any where nothing is known of it, since its plug-in is not loaded here."""
    kind = OPTIONS[holder]
    found = [plugins.options(kind, name) for name in _named(kind, search, base)]
    known = {key: hint for each in found for key, hint in (each or {}).items()}
    if option in known:
        return known[option]
    if None in found:
        return Any
    problem = conversion.unknown(option, known) if known else f"no {kind} of this search has options"
    raise document.error(("search", f"{holder}.{option}"), problem)


def _option_of_trainer(option: str, outside: Outside, document: yaml12.Document) -> Any:
    """As `_option`, of the trainer itself."""
    known = trainers.options(outside.known)
    if option in known:
        return known[option]
    if outside.trainer and not outside.known:
        return Any
    if not outside.trainer:
        problem = "vqsearch's own trainer has no options; the key trainer names one that has"
    else:
        problem = conversion.unknown(option, known) if known else f"{outside.trainer} has no options"
    raise document.error(("search", f"options.{option}"), problem)


def _try_trainer(
    parameter: Parameter, base: TrainConfig, trainer: trainers.Trainer | None, document: yaml12.Document
) -> None:
    """As `_try_values`, where the trainer is known."""
    if trainer is None:
        return
    for value in _extremes(parameter):
        try:
            trainer.settled(conversion.replace(base, {parameter.name: value}))
        except ConfigError as error:
            if error.key == parameter.name:
                option = parameter.name.partition(".")[2]
                raise document.error(("search", parameter.name), f"{option} {error.problem}") from None


def require_owners(searched: Sequence[Parameter], base: TrainConfig, document: yaml12.Document) -> None:
    """Refuse an option that one of several backbones (or quantizers) that are tried does not have.

    Args:
        searched: what is searched.
        base: the config of every trial.
        document: the file, for the place of an error.
    """
    choices = {parameter.name: {"choice": [value for _, value in parameter.choices]} for parameter in searched}
    for holder, kind in OPTIONS.items():
        tried = _named(kind, choices, base)[1:]
        for option, value in operator.attrgetter(holder)(base).items():
            without = [name for name in tried if option not in (plugins.options(kind, name) or {})]
            owners = [name for name in tried if name not in without]
            if without and owners:
                key = plugins.KINDS[kind].key
                raise document.error(
                    ("train", *holder.split("."), option),
                    f"{kind} {without[0]}, which is tried too, has no such option; expected it under search, as "
                    f"{holder}.{option}: {{choice: [{value}], when: {{{key}: {owners[0]}}}}}",
                )
        for parameter in searched:
            if parameter.name.rpartition(".")[0] == holder and not parameter.when:
                _require_owner(parameter, kind, tried, document)


def _require_owner(parameter: Parameter, kind: str, tried: Sequence[str], document: yaml12.Document) -> None:
    option = parameter.name.rpartition(".")[2]
    without = [name for name in tried if option not in (plugins.options(kind, name) or {})]
    owners = [name for name in tried if name not in without]
    if without and owners:
        allowed = owners[0] if len(owners) == 1 else f"[{', '.join(owners)}]"
        raise document.error(
            ("search", parameter.name),
            f"{kind} {without[0]}, which is tried too, has no such option; expected it with when: "
            f"{{{plugins.KINDS[kind].key}: {allowed}}}",
        )


def _try_options(parameter: Parameter, search: Mapping[str, Any], base: TrainConfig, document: yaml12.Document) -> None:
    """As `_try_values`, with each part that has this option."""
    holder, _, option = parameter.name.rpartition(".")
    kind = OPTIONS.get(holder, "")
    names = (
        [name for name in _named(kind, search, base) if option in (plugins.options(kind, name) or {})] if kind else []
    )
    for value in _extremes(parameter):
        for changes in [{plugins.KINDS[kind].key: name} for name in names] if kind else [{}]:
            try:
                config = conversion.replace(base, {**changes, parameter.name: value})
                if kind:
                    plugins.settled(kind, getattr(config, holder.partition(".")[0]))
            except ConfigError as error:
                # What a dataclass says of its options as a whole may be of another one that is searched.
                alone = sum(name.startswith(f"{holder}.") for name in search) == 1
                if error.key == parameter.name or (error.key == holder and alone):
                    problem = error.problem if error.key == holder else f"{option} {error.problem}"
                    raise document.error(("search", parameter.name), problem) from None


def parse_baselines(
    values: Sequence[Mapping[str, Any]], parameters: Sequence[Parameter], document: yaml12.Document
) -> tuple[Mapping[str, Any], ...]:
    """Read the section `baselines`: settings within the searched ranges that are tried first.

    Raises:
        SpaceError: with file, line and key.
    """
    return tuple(
        parse_baseline(baseline, parameters, document, ("baselines", index)) for index, baseline in enumerate(values)
    )


def parse_baseline(
    values: Mapping[str, Any], parameters: Sequence[Parameter], document: yaml12.Document, path: yaml12.Path = ()
) -> dict[str, Any]:
    """Read the settings of one trial, all or some of them.

    Args:
        values: searched field -> label or number.
        parameters: what is searched.
        document: where they stand, and `path` there, for messages.

    Raises:
        SpaceError: a field that is not searched, or not beside these values; or a value out of its range.
    """
    known = {parameter.name: parameter for parameter in parameters}
    labels = {}
    for name, label in values.items():
        if name not in known:
            raise document.error((*path, name), conversion.unknown(name, known).replace("field", "searched field"))
        parameter = known[name]
        number = isinstance(label, int) and not isinstance(label, bool)
        if number and (parameter.kind == "float" or (parameter.ordered and isinstance(parameter.labels[0], float))):
            label = float(label)
        if not parameter.holds(label):
            raise document.error((*path, name), f"must be {_words_of(parameter)}, but got {label!r}")
        labels[name] = label
    for name in labels:
        for parent, allowed in known[name].when:
            if parent in labels and labels[parent] not in allowed:
                raise document.error(
                    (*path, name),
                    f"is searched where {parent} is among {list(allowed)!r} only, but got {parent}={labels[parent]!r}",
                )
    return labels


def _words(annotation: Any) -> str:
    return {float: "a number", int: "a whole number", bool: "true or false", str: "text"}.get(annotation, "a list")


def _words_of(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        return f"among {list(parameter.labels)!r}"
    steps = "" if parameter.step in (None, 1) else f" in steps of {parameter.step:g}"
    return f"from {parameter.low:g} to {parameter.high:g}{steps}"


def logarithmic(parameter: Parameter) -> bool:
    """Whether an ordered choice is searched on a logarithmic scale: positive numbers, the last over 4 x the first."""
    return bool(min(parameter.labels) > 0 and max(parameter.labels) > 4 * min(parameter.labels))


def snap(parameter: Parameter, value: Any) -> Any:
    """The label of an ordered choice that is nearest to what a sampler drew from its range."""
    scale = math.log if logarithmic(parameter) else float
    return min(parameter.labels, key=lambda label: abs(scale(label) - scale(value)))


def suggest(parameters: Sequence[Parameter], trial: optuna.Trial) -> dict[str, Any]:
    """Ask a trial for every parameter whose conditions hold.

    A choice among numbers is stored as a number in a range, so that samplers and plots know its order; the
    sampler of the study (`search.sampling`) draws nothing but its labels.

    Returns:
        Dotted field -> label or number, as the study stores it.
    """
    labels: dict[str, Any] = {}
    for parameter in parameters:
        if all(labels.get(parent) in allowed for parent, allowed in parameter.when):
            labels[parameter.name] = _suggest(parameter, trial)
    return labels


def _suggest(parameter: Parameter, trial: optuna.Trial) -> Any:
    name, low, high, log = parameter.name, parameter.low, parameter.high, parameter.log
    if parameter.kind == "choice" and not parameter.ordered:
        return trial.suggest_categorical(name, parameter.labels)
    whole, step = parameter.kind == "int", parameter.step
    if parameter.ordered:
        low, high, log, step = min(parameter.labels), max(parameter.labels), logarithmic(parameter), None
        whole = all(isinstance(label, int) for label in parameter.labels)
    if whole:
        return trial.suggest_int(name, int(low), int(high), log=log, step=int(step or 1))
    return trial.suggest_float(name, low, high, log=log, step=step)


def settings(labels: Mapping[str, Any]) -> str:
    """Parameters in one line: the last part of each name, four digits of each number."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.4g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in labels.items()
    )
