"""VQVAE image tokenizers: the model and its trainer, which know nothing of searches.

Names are loaded on first use, so that importing the package does not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which do not see what is loaded on first use
    from vqvae.checkpoint import load as load
    from vqvae.config import TrainConfig as TrainConfig
    from vqvae.config import VqvaeError as VqvaeError
    from vqvae.conversion import from_dict as from_dict
    from vqvae.conversion import replace as replace
    from vqvae.conversion import to_dict as to_dict
    from vqvae.model import build_model as build_model
    from vqvae.plugins import register as register
    from vqvae.presets import preset as preset
    from vqvae.trainers import trainer as trainer

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
    "trainer": "trainers",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vqvae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vqvae.{_HOMES[name]}"), name)
