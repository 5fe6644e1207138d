"""VQVAE image tokenizers: the model and its trainer, which know nothing of searches.

Names are loaded on first use, so that importing the package does not load torch.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {
    "TrainConfig": "config",
    "VqvaeError": "config",
    "from_dict": "conversion",
    "preset": "presets",
    "register": "plugins",
    "replace": "conversion",
    "to_dict": "conversion",
    "build_model": "model",
    "load": "checkpoint",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vqvae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vqvae.{_HOMES[name]}"), name)
