"""Named training set-ups, by the settings in which they differ from `TrainConfig`'s defaults."""

from __future__ import annotations

from typing import Any

from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace

PRESETS: dict[str, dict[str, Any]] = {
    "convolution": {"model.backbone": "convolution", "model.width": 360, "model.depth": 2, "model.head_size": 40},
    "attention": {"model.backbone": "attention", "model.width": 384, "model.depth": 7},
    "mamba": {"model.backbone": "mamba", "model.width": 256, "model.depth": 12},
    "bimamba": {"model.backbone": "bimamba", "model.width": 256, "model.depth": 6},
}
"""The article's models at 32 x 32 tokens: 16M, 36M, 33M and 33M parameters."""


def preset(name: str) -> TrainConfig:
    """The article's training set-up with one of its four models.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError("preset", f"must be one of {', '.join(PRESETS)}, but got {name!r}")
    return replace(TrainConfig(), PRESETS[name])
