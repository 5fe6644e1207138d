"""Models and training runs as folders: tensors in safetensors files, the rest in JSON; nothing is unpickled.

    export:      weights.safetensors  config.json
    checkpoint:  model.safetensors    ema.safetensors    optimizer.safetensors    (and others)    state.json

A folder appears whole, by one rename, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from vqvae import plugins
from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.conversion import from_dict, replace, to_dict
from vqvae.model import VQVAE, build_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

FORMAT = "vqsearch 2"
"""Marks our folders; the number changes when older ones can no longer be read."""


class CheckpointError(VqvaeError):
    """A folder that is missing, damaged, of another program or of another run."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a run needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps done."""
    config: TrainConfig
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Named tensors of each part, one file for each: model, ema (of its weights), optimizer (its moments, by
    ``<parameter>/<moment>``), and what else the trainer has."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What the trainer adds, of JSON types."""


def save(state: TrainingState, folder: Path) -> None:
    """Writes a checkpoint into a folder that is empty or does not exist.

    Raises:
        CheckpointError: the folder holds something, or cannot be written.
    """
    with _appearing(folder) as place:
        for name, tensors in state.tensors.items():
            _write_tensors(tensors, place / f"{name}.safetensors")
        values = {"step": state.step, "config": to_dict(state.config), "progress": state.progress}
        values["options"] = options(state.config)
        _write_json({**values, "tensors": list(state.tensors)}, place / "state.json")


def read(folder: Path) -> TrainingState:
    """A checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    values = _read_json(folder, "state.json", "step", "config", "progress", "tensors")
    names = values["tensors"]
    if not isinstance(names, list) or not {"model", "ema", "optimizer"} <= {str(name) for name in names}:
        raise CheckpointError(
            f"{folder / 'state.json'}: damaged: tensors is {names!r}; expected the names of the parts"
        )
    tensors = {name: _read_tensors(folder / f"{name}.safetensors") for name in names}
    config = _config(values, folder / "state.json")
    return TrainingState(step=values["step"], config=config, progress=values["progress"], tensors=tensors)


def save_model(model: VQVAE, config: TrainConfig, folder: Path, metrics: Mapping[str, float]) -> None:
    """Exports a model: weights and config, and what it measured, into a folder that is empty or does not exist.

    Raises:
        CheckpointError: the folder holds something, or cannot be written.
    """
    with _appearing(folder) as place:
        _write_tensors(model.state_dict(), place / "weights.safetensors")
        config = replace(config, options(config))
        _write_json({"config": to_dict(config), "metrics": dict(metrics)}, place / "config.json")


def load(folder: str | Path, device: str | torch.device = "cpu") -> VQVAE:
    """A trained model, ready to encode and decode.

        model = vqvae.load("my-model", "cuda")
        indices = model.encode(images)    # float (b, 3, h, w) in [-1, 1] to int64 (b, y, x)
        images = model.decode(indices)    # and back; near [-1, 1], but not clamped

    `vqvae.tokens` writes the indices of a whole folder.

    Args:
        folder: an export, or a checkpoint, of which the moving average of the weights is taken.
        device: where the model goes.

    Raises:
        CheckpointError: neither is there, or it is damaged.
    """
    folder = Path(folder)
    config_file, weights_file = _files(folder)
    config = load_config(folder)
    weights = _read_tensors(folder / weights_file)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[:2][-1].strip()  # torch names every tensor in a line of its own
        raise CheckpointError(f"{folder / weights_file}: does not fit the model of {config_file}: {first}") from error
    return model.eval().requires_grad_(False).to(device)


def load_config(folder: str | Path) -> TrainConfig:
    """The config that the model of a folder was trained with, with the options of its parts as they were then.

    Raises:
        CheckpointError: neither an export nor a checkpoint is there, or it is damaged.
    """
    file, _ = _files(Path(folder))
    values = _read_json(Path(folder), file, "config")
    config = _config(values, Path(folder) / file)
    then = values.get("options", {})  # not there in checkpoints from before plug-ins
    return replace(config, then) if isinstance(then, dict) else config


def options(config: TrainConfig) -> dict[str, Any]:
    """Dotted field -> value of all options of the parts of a model: what its plug-in gives by default may change."""
    model, quantizer = plugins.settled("backbone", config.model), plugins.settled("quantizer", config.quantizer)
    parts: dict[str, Any] = {"model": model.options, "quantizer": quantizer.options}
    return {
        f"{section}.options.{name}": value
        for section, chosen in parts.items()
        if dataclasses.is_dataclass(chosen)
        for name, value in to_dict(chosen).items()
    }


def _files(folder: Path) -> tuple[str, str]:
    """Names of the files with the config and the weights of an export, or else of a checkpoint."""
    if not (folder / "config.json").exists() and (folder / "state.json").exists():
        return "state.json", "ema.safetensors"
    return "config.json", "weights.safetensors"


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A sibling folder to write into, which takes the place of `folder` at the end."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: not empty; expected an empty folder, or none")
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            _flush(path)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.touch()  # safetensors makes a file that only its owner reads
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    except safetensors.SafetensorError as error:  # how a full disk shows
        raise OSError(str(error)) from error
    path.chmod(mode)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: missing or damaged: {error}") from error


def _write_json(values: dict[str, Any], path: Path) -> None:
    versions = {"torch": torch.__version__}
    path.write_text(json.dumps({"format": FORMAT, "versions": versions, **values}, indent=2) + "\n")


def _read_json(folder: Path, name: str, *keys: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a model or a checkpoint of vqsearch")
    path = folder / name
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {name} in it; expected a model or a checkpoint of vqsearch") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: format is {found!r}; expected {FORMAT!r}")
    for key in keys:
        if key not in values:
            raise CheckpointError(f"{path}: damaged: no {key} in it")
    return values


def _config(values: dict[str, Any], path: Path) -> TrainConfig:
    try:
        config: TrainConfig = from_dict(values["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config
