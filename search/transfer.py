"""Search narrow, train wide: what `transfer` in a space file says, and what it makes of a config.

The file's `train` and `budget` are those of the target, the model that is wanted. What `transfer.proxy` makes smaller
is what the trials of the search train; the best of their settings are then trained at the target, as trials of the
same study (`search.finalists`). What a setting means at either size is up to `vqvae.parametrization`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.schema import File
from search.yaml12 import Document
from vqvae import conversion
from vqvae.config import TrainConfig

KIND = "sp-full-align"
"""Parametrization of a transfer whose file is silent."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What may differ between proxy and target."""

    width: int
    """Channels of the model."""
    depth: int
    """Blocks on each side."""
    steps: int
    """Optimizer steps of a trial."""
    images: int
    """Training images, at most; 0 is all."""


FIELDS = {"width": "model.width", "depth": "model.depth", "steps": "steps", "images": "data.images"}
"""Key of a `Size` -> field of the config."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A checked `transfer`.

    Attributes:
        proxy, target: the two sizes.
        top: settings of the search that are trained at the target.
        include: what is trained there beside them, baselines or nothing.
        decoder_depth: of the target, 0 where it is the depth.
        warmup_steps: of the target, unless a search over it says how many.
    """

    proxy: Size
    target: Size
    top: int
    include: str
    decoder_depth: int
    warmup_steps: int

    @property
    def differing(self) -> tuple[str, ...]:
        """Keys in which the sizes differ."""
        return tuple(key for key in FIELDS if getattr(self.proxy, key) != getattr(self.target, key))

    def at_target(self, config: TrainConfig) -> TrainConfig:
        """What a trial's config becomes at the target; no rung stops it there."""
        values: dict[str, Any] = {FIELDS[key]: getattr(self.target, key) for key in self.differing}
        if "depth" in self.differing:
            values["model.decoder_depth"] = self.decoder_depth
        if "steps" in self.differing:
            values["optimizer.warmup_steps"] = self.warmup_steps
        return conversion.replace(config, {**values, "rungs": ()})


def read(file: File, train: Mapping[str, Any], document: Document) -> tuple[Transfer, dict[str, Any]]:
    """The transfer of a space file, and `train` as it is at the proxy.

    Args:
        file: with a transfer.
        train: its section of that name, of the target.
        document: where they stand.

    Raises:
        SpaceError: what would not transfer, with its place.
    """
    block = file.transfer
    assert block is not None, "asked of a file with a transfer"
    for key, why in (
        ("finalists", "a transfer already trains its best settings again; its target trials can't be judged on top"),
        ("trainer", "a transfer needs vqsearch's own trainer, whose learning rates follow the width"),
    ):
        if getattr(file, key) is not None:
            raise document.error((key,), f"must not stand beside transfer: {why}")
    known = TrainConfig()
    model, data, optimizer = (_section(train, name) for name in ("model", "data", "optimizer"))
    written = Size(
        width=model.get("width", known.model.width),
        depth=model.get("depth", known.model.depth),
        steps=file.budget.steps,
        images=data.get("images", known.data.images),
    )
    target = _over(written, block.target.model_dump(exclude_none=True))
    proxy = _over(target, block.proxy.model_dump(exclude_none=True))
    found = Transfer(
        proxy=proxy,
        target=target,
        top=block.top,
        include=block.include,
        decoder_depth=model.get("decoder_depth", 0),
        warmup_steps=optimizer.get("warmup_steps", known.optimizer.warmup_steps),
    )
    _require_smaller(found, document)
    _require_transferable(found, train, file.search, document)
    return found, _at_proxy(found, train, document)


def _section(train: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = train.get(name)
    return found if isinstance(found, Mapping) else {}


def _over(size: Size, given: Mapping[str, int]) -> Size:
    return Size(**{key: given.get(key, getattr(size, key)) for key in FIELDS})


def _require_smaller(found: Transfer, document: Document) -> None:
    if not found.differing:
        raise document.error(
            ("transfer", "proxy"), f"must be smaller than the target in one of {', '.join(FIELDS)}, but equals it"
        )
    for key in found.differing:
        ours, theirs = getattr(found.proxy, key), getattr(found.target, key)
        if isinstance(theirs, int) and _at_most(key, ours) > _at_most(key, theirs):
            raise document.error(
                ("transfer", "proxy", key),
                f"must be at most the target's, which is {theirs:,}, but got {ours or 'all'}",
            )


def _at_most(key: str, value: int) -> float:
    """No images are all of them."""
    return math.inf if key == "images" and not value else value


def _require_transferable(
    found: Transfer, train: Mapping[str, Any], searched: Mapping[str, Any], document: Document
) -> None:
    """Refuse what would mean something else at the target."""
    chosen = _section(train, "parametrization")
    if chosen.get("kind", KIND) == "standard":
        raise document.error(
            ("train", "parametrization", "kind"),
            f"must be {KIND}, mup or sp-no-align in a transfer, since under standard a learning rate holds for one "
            "width, but got 'standard'",
        )
    for key in ("base_width", "base_depth"):
        if key in chosen:
            raise document.error(
                ("train", "parametrization", key), "the transfer sets this itself: it is the proxy's, transfer.proxy"
            )
    norm = _section(train, "optimizer").get("clip_norm", 0)
    why = "the norm is that of all gradients, and has other parts in a larger model"
    if norm:
        raise document.error(("train", "optimizer", "clip_norm"), f"must be 0 in a transfer, but got {norm}: {why}")
    sized = "transfer says what it is at the proxy and at the target"
    refused = {"optimizer.clip_norm": why, "model.width": sized}
    refused |= {FIELDS[key]: sized for key in found.differing if key != "steps"}
    if "depth" in found.differing:
        refused["model.decoder_depth"] = "it has to grow with the depth, in proportion"
    if "steps" in found.differing:
        refused["optimizer.warmup_steps"] = "it has to keep its part of the steps, which differ"
    for name in searched:
        reason = "it says what transfers" if name.startswith("parametrization.") else refused.get(name)
        if reason:
            raise document.error(("search", name), f"can't be searched in a transfer: {reason}")


def _at_proxy(found: Transfer, train: Mapping[str, Any], document: Document) -> dict[str, Any]:
    """`train` with what is smaller at the proxy."""
    values: dict[str, Any] = copy.deepcopy(dict(train))

    def section(name: str) -> dict[str, Any]:
        part = values.setdefault(name, {})
        if not isinstance(part, dict):
            raise document.error(("train", name), f"must be a mapping, but got {part!r}")
        return part

    for key in FIELDS:  # equal ones too: transfer.target may say them otherwise than train
        if key != "steps":
            part, name = FIELDS[key].split(".")
            section(part)[name] = getattr(found.proxy, key)
    if "depth" in found.differing and found.decoder_depth and isinstance(found.decoder_depth, int):
        depth = found.decoder_depth * found.proxy.depth / found.target.depth
        if depth != int(depth):
            raise document.error(
                ("train", "model", "decoder_depth"),
                f"must be such that it stays in proportion to the depth, {found.target.depth} at the target and "
                f"{found.proxy.depth} at the proxy, but got {found.decoder_depth}, which makes {depth:g}",
            )
        section("model")["decoder_depth"] = int(depth)
    if "steps" in found.differing and isinstance(found.warmup_steps, int):
        section("optimizer")["warmup_steps"] = round(found.warmup_steps * found.proxy.steps / found.target.steps)
    bases = {"base_width": found.proxy.width, "base_depth": found.proxy.depth if "depth" in found.differing else 0}
    values["parametrization"] = {"kind": KIND, **section("parametrization"), **bases}
    return values


def direct_name(study: str) -> str:
    """Of the study that searches the target itself."""
    return f"{study}-direct"


def direct(source: Mapping[str, Any], found: Transfer) -> dict[str, Any]:
    """The space file that searches the target itself, where a setting means what it means in the transfer.

    Args:
        source: what a study stores of a space with a transfer.
        found: that transfer.
    """
    values: dict[str, Any] = copy.deepcopy({key: part for key, part in source.items() if key != "transfer"})
    values["study"] = direct_name(values["study"])
    values["budget"]["steps"] = found.target.steps
    train = values["train"]
    for key in FIELDS:
        if key != "steps" and FIELDS[key] not in values["search"]:
            part, name = FIELDS[key].split(".")
            train.setdefault(part, {})[name] = getattr(found.target, key)
    bases = {"base_width": found.proxy.width, "base_depth": found.proxy.depth if "depth" in found.differing else 0}
    train["parametrization"] = {"kind": KIND, **train.get("parametrization", {}), **bases}
    at = values.get("pruner", {}).get("at")
    if at is not None and "steps" in found.differing:
        values["pruner"]["at"] = [round(step * found.target.steps / found.proxy.steps) for step in at]
    return values


def words(found: Transfer) -> str:
    """The two sizes for people: width 32 to 128, depth 2 to 4."""
    return ", ".join(f"{key} {_said(found.proxy, key)} to {_said(found.target, key)}" for key in found.differing)


def _said(size: Size, key: str) -> str:
    value = getattr(size, key)
    return f"{value:,}" if value else "all"
