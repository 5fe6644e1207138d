"""Named training set-ups, by the settings in which they differ from `TrainConfig`'s defaults."""

from __future__ import annotations

from typing import Any

from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace

_SUFFIXES = ("", "-small", "-tiny")
_WIDTH_AND_DEPTH = {
    "convolution": ((384, 2), (288, 2), (160, 2)),
    "attention": ((384, 7), (192, 7), (128, 4)),
    "mamba": ((256, 12), (128, 12), (64, 12)),
    "bimamba": ((256, 6), (128, 6), (64, 6)),
    "mambavision": ((256, 14), (128, 14), (64, 14)),
}
_SHAPE: dict[str, dict[str, Any]] = {
    # Every width a multiple of 8 at every resolution, as tensor cores ask for.
    "convolution": {"model.channel_multipliers": (0.25, 0.5, 0.5, 1.0), "model.head_size": 32},
}

PRESETS: dict[str, dict[str, Any]] = {
    f"{backbone}{size}": {
        "model.backbone": backbone,
        "model.width": sizes[rank][0],
        "model.depth": sizes[rank][1],
        **_SHAPE.get(backbone, {}),
    }
    for rank, size in enumerate(_SUFFIXES)
    for backbone, sizes in _WIDTH_AND_DEPTH.items()
}
"""Parameters in millions; all of them make 32 x 32 tokens of 256-pixel images.

| | convolution | attention | mamba | bimamba | mambavision |
| --- | --- | --- | --- | --- | --- |
| the article's | 16.5 | 36.6 | 32.0 | 32.0 | 33.3 |
| -small | 9.4 | 9.6 | 8.8 | 8.8 | 9.2 |
| -tiny | 3.1 | 2.9 | 2.7 | 2.7 | 2.8 |

The article names the first four and MambaVision's mixer as next. `small` and `tiny` are proxies to search on: alike in
all but width, so that settings carry over, but for attention-tiny, which is shallower since its head size stays too.
"""


def preset(name: str) -> TrainConfig:
    """The article's training set-up with one of the models of `PRESETS`.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError("preset", f"must be one of {', '.join(PRESETS)}, but got {name!r}")
    return replace(TrainConfig(), PRESETS[name])
