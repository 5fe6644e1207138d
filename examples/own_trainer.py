"""A trainer of one's own: a small autoencoder without codes; docs/plugins.md has a space file that searches it.

b images, h and w rows and columns of pixels
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

import vqvae
from vqvae import data
from vqvae.batches import batch
from vqvae.config import TrainConfig
from vqvae.train import Progress


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What `options` holds for this trainer."""

    width: int = 16
    """Channels of the bottleneck."""
    lr: float = 1.0e-3
    """Learning rate of Adam at the first step."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, but got {self.width}")


def build(config: AutoencoderConfig) -> nn.Module:
    """From images (b, 3, h, w) to such images, by way of a quarter of their rows and columns."""
    down = nn.Conv2d(3, config.width, 4, stride=4)
    return nn.Sequential(down, nn.SiLU(), nn.ConvTranspose2d(config.width, 3, 4, stride=4))


def parameters(config: TrainConfig) -> dict[str, float]:
    """What a search may limit before anything trains."""
    return {"parameters": sum(each.numel() for each in build(config.options).parameters())}


@vqvae.trainer(config=AutoencoderConfig, metrics={"val/mse": "minimize"}, costs=parameters)
def train(config: TrainConfig, resume: Path | None, stop: Callable[[], bool]) -> Iterator[Progress]:
    """Trains on the images of the config, and measures where it has to."""
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    model = build(config.options).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    images, step = data.load(config.data), 0
    rows = np.arange(len(images.validation))[: config.evaluation.images]
    held_out = rearrange(torch.from_numpy(images.validation[rows]).to(device), "b h w c -> b c h w") / 127.5 - 1

    def write(folder: Path) -> None:
        torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "run.pt")

    if resume is not None:
        state = torch.load(resume / "run.pt", map_location=device, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    while step < config.steps:
        if stop():
            yield Progress(step=step, metrics={}, stopped=True, checkpoint=write)
            return
        optimizer.param_groups[0]["lr"] = config.options.lr * (1 - step / config.steps)  # over steps, not a rung's
        seen = batch(images.train, config, step, slice(0, config.batch_size), device)  # the same for a seed and a step
        loss: Tensor = (model(seen) - seen).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step in (*config.rungs, config.steps):
            with torch.no_grad():
                error = (model(held_out) - held_out).square().mean()
            yield Progress(step=step, metrics={"val/mse": float(error)}, evaluated=True, checkpoint=write)
