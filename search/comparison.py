"""A comparison file: several searches, the arms, that share everything but what makes each of them what it is.

Each arm is a space of its own, merged from what is common to all and what is the arm's; `search.equality` proves that
what has to be equal is. What decides what trials are measured on, and how much, can't be an arm's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from search import code, yaml12
from search import space as spaces
from search.errors import SpaceError
from search.schema import Limits
from search.space import Space

QUANTITIES = ("tokens", "bits_per_image", "parameters")
"""What can be held equal: what is known of a model before it is trained."""

Rule = Limits | Literal["same", "free"]
"""same: one number in all arms, whichever; limits: within them; free: whatever an arm makes of it."""

DEFAULT: Mapping[str, Rule] = {"tokens": "same", "bits_per_image": "same", "parameters": "free"}

COMMON = {
    "data": "all arms see the same images",
    "evaluation": "all arms are measured alike",
    "batch_size": "all arms see equally many images",
}
"""Fields of `train` that an arm may not set -> why."""

FINALISTS = {"top": 3, "seeds": 3, "include": "baselines"}
"""Those of a file that is silent: without them there is no answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison file, checked arm by arm.

    Attributes:
        name: the studies are called NAME-ARM.
        arms: name -> its space, in the order of the file.
        equal: quantity -> what holds for it in all arms.
        document: where it came from, for the place of an error.
    """

    name: str
    arms: Mapping[str, Space]
    equal: Mapping[str, Rule]
    document: yaml12.Document = dataclasses.field(compare=False, repr=False)

    @property
    def common(self) -> Space:
        """A space with all that is common to the arms."""
        return next(iter(self.arms.values()))

    @property
    def studies(self) -> dict[str, str]:
        """Arm -> its study."""
        return {arm: space.study for arm, space in self.arms.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arm(yaml12.Document):
    """The mapping of one arm, whose keys stand under the arm or among the common ones.

    Attributes:
        whole: the file.
        arm: name of the arm.
        baselines: how many are common.
    """

    whole: yaml12.Document
    arm: str
    baselines: int

    def where(self, path: yaml12.Path) -> str:
        return self.whole.where(self._origin(path))

    def error(self, path: Iterable[str | int], problem: str) -> SpaceError:
        path = tuple(path)
        origin = self._origin(path)
        shared = origin == path and path[:1] in (("train",), ("search",), ("baselines",))
        return self.whole.error(origin, f"{problem} (in the arm {self.arm})" if shared else problem)

    def _origin(self, path: yaml12.Path) -> yaml12.Path:
        if path[:1] == ("baselines",) and len(path) > 1 and isinstance(path[1], int) and path[1] >= self.baselines:
            return ("arms", self.arm, "baselines", path[1] - self.baselines, *path[2:])
        if path[:1] in (("train",), ("search",)):
            for length in range(len(path), 1, -1):
                own = ("arms", self.arm, *path[:length])
                if own in self.whole.lines or own in self.whole.flags:
                    return ("arms", self.arm, *path)
                if path[:length] in self.whole.lines or path[:length] in self.whole.flags:
                    break
        return path


def load(
    path: str | Path, overrides: Sequence[str] = (), *, trials: int | None = None, plugins: Sequence[str] = ()
) -> Comparison:
    """Read and check a comparison file, and run the files of code that it names for all of its arms.

    Args:
        path: the YAML file; relative paths in it start at its folder.
        overrides: as in `search.space.load`; also ``arms.NAME.search.optimizer.lr=...``.
        trials: of each arm, in place of the file's.
        plugins: files of code besides those of the file.

    Raises:
        SpaceError: with file, line and key.
        PluginError: as `search.space.load`.
    """
    document = spaces.read(path, overrides, {"budget.trials": trials})
    values: dict[str, Any] = document.value
    if "comparison" not in values:
        raise document.error(("comparison",), f"this key is missing; one search alone: vqsearch launch {path}")
    if values.get("trainer") is not None:
        raise document.error(
            ("trainer",), "arms are compared by what is known of vqsearch's own models, so that it must be left out"
        )
    if values.get("transfer") is not None:
        raise document.error(("transfer",), "arms are compared at one size, so that it must be left out")
    if "study" in values:
        raise document.error(("study",), "a comparison names its studies itself, COMPARISON-ARM")
    name = _name(values["comparison"], ("comparison",), document)
    arms = values.get("arms")
    if not isinstance(arms, dict) or len(arms) < 2:
        raise document.error(("arms",), f"must be a mapping of at least two names to what each arm sets, got {arms!r}")
    common = {key: value for key, value in values.items() if key not in ("comparison", "equal", "arms")}
    common.setdefault("finalists", dict(FINALISTS))
    common.setdefault("search", {})
    folder = Path(path).resolve().parent
    common["plugins"] = code.of_file(document, folder, plugins)
    found = {}
    for arm, own in arms.items():
        _name(arm, ("arms", arm), document)
        merged = _merged(common, own, arm, document) | {"study": f"{name}-{arm}"}
        shared = common.get("baselines")
        place = _Arm(
            name=document.name,
            value=merged,
            whole=document,
            arm=arm,
            baselines=len(shared) if isinstance(shared, list) else 0,
        )
        found[arm] = spaces.check_named(merged, place, folder)
    made = Comparison(name=name, arms=found, equal=_equal(values.get("equal", {}), document), document=document)
    for quantity in QUANTITIES:
        if quantity in made.common.constraints and made.equal[quantity] != "free":
            raise document.error(
                ("constraints", quantity), "this is held equal in all arms; expected it under equal or here, not both"
            )
    return made


def is_comparison(path: str | Path) -> bool:
    """Whether a file says that it is a comparison.

    Raises:
        SpaceError: no such file, or no mapping in YAML.
    """
    return "comparison" in spaces.read(path).value


def with_limits(space: Space, limits: Mapping[str, Limits]) -> Space:
    """A space in which some quantities have limits, so that a trial outside them is refused before it trains."""
    source = json.loads(json.dumps(space.source))
    source.setdefault("constraints", {}).update({k: v.model_dump(exclude_none=True) for k, v in limits.items()})
    return dataclasses.replace(space, constraints={**space.constraints, **limits}, source=source)


def _name(value: Any, path: yaml12.Path, document: yaml12.Document) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
        raise document.error(path, f"must be letters, digits, '_' and '-' (it names folders), but got {value!r}")
    return value


def _merged(common: Mapping[str, Any], own: Any, arm: str, document: yaml12.Document) -> dict[str, Any]:
    """What is common, with what is the arm's in it."""
    path: yaml12.Path = ("arms", arm)
    if not isinstance(own, dict):
        raise document.error(path, f"must be a mapping with {', '.join(JOINED)}, but got {own!r}")
    merged: dict[str, Any] = json.loads(json.dumps(common))
    for key, value in own.items():
        if key not in JOINED:
            raise document.error(
                (*path, key),
                f"an arm sets {', '.join(JOINED)}; all else is the same for all and stands outside of arms",
            )
        shared = merged.get(key, [] if key == "baselines" else {})
        for where, each in (((key,), shared), ((*path, key), value)):
            if not isinstance(each, list if key == "baselines" else dict):
                kind = "list" if key == "baselines" else "mapping"
                raise document.error(where, f"must be a {kind}, but got {each!r}")
        for name in value if key in ("train", "search") else ():
            if (field := str(name).partition(".")[0]) in COMMON:
                raise document.error((*path, key, name), f"an arm can't set this: {COMMON[field]}")
        merged[key] = JOINED[key](shared, value)
    return merged


def _deep(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {k for k in base.keys() & over.keys() if isinstance(base[k], dict) and isinstance(over[k], dict)}
    return {**base, **over, **{key: _deep(base[key], over[key]) for key in both}}


def _by_key(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**base, **over}.items() if value is not None}


JOINED: Mapping[str, Callable[[Any, Any], Any]] = {"train": _deep, "search": _by_key, "baselines": operator.add}
"""How the arm's are joined to the common ones; in `search` a null takes a key away."""


def _equal(values: Any, document: yaml12.Document) -> dict[str, Rule]:
    if not isinstance(values, dict):
        raise document.error(("equal",), f"must be a mapping of {', '.join(QUANTITIES)}, but got {values!r}")
    rules = dict(DEFAULT)
    for name, value in values.items():
        path = ("equal", name)
        if name not in QUANTITIES:
            raise document.error(path, f"unknown quantity; known are {', '.join(QUANTITIES)}")
        limits = {"min": value, "max": value} if _is_number(value) else value
        if limits in ("same", "free"):
            rules[name] = limits
            continue
        kept = isinstance(limits, dict) and bool(limits) and limits.keys() <= {"min", "max"}
        if not kept or not all(map(_is_number, limits.values())):
            raise document.error(path, f"must be same, free, a number or {{min: , max: }}, but got {value!r}")
        low, high = limits.get("min"), limits.get("max")
        ordered = low is None or high is None or low <= high
        if any(each <= 0 for each in limits.values()) or not ordered:
            raise document.error(path, f"0 < min <= max must hold, but got {value!r}")
        rules[name] = Limits(**{key: float(each) for key, each in limits.items()})
    return rules


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
