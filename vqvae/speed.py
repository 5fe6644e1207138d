"""What a model costs: parameters, time and memory.

b images, h height, w width
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae.model import VQVAE

TIMED_S = 0.4
"""Wall seconds that timing one direction takes, unless a single pass takes longer."""

REPEATS = 9
"""Most passes that are timed in one direction."""


@torch.no_grad()
def costs(model: VQVAE, micro_batch: int) -> dict[str, float]:
    """What a model costs on the device that it is on.

    Args:
        model: in evaluation mode.
        micro_batch: images at once.

    Returns:
        parameters: number of trained values;
        encode_images_per_s, decode_images_per_s: images to indices and back, in float32, the median of a few passes
        over random images, without reading and moving them;
        peak_memory_gib: on CUDA only, see `peak_memory_gib`.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    shape = (micro_batch, 3, model.resolution, model.resolution)
    images = (torch.rand(shape, generator=generator) * 2 - 1).to(device)
    indices = model.encode(images)
    found = {
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "encode_images_per_s": micro_batch / seconds(lambda: model.encode(images), device),
        "decode_images_per_s": micro_batch / seconds(lambda: model.decode(indices), device),
    }
    memory = peak_memory_gib(device)
    return found if memory is None else found | {"peak_memory_gib": memory}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median wall seconds of some work on a device, after a first pass to warm up.

    Work so slow that the first pass alone takes longer than `TIMED_S` is not repeated.
    """
    passes = [_timed(work, device)]
    if passes[0] < TIMED_S:
        passes = []
        while len(passes) < REPEATS and sum(passes) < TIMED_S:
            passes.append(_timed(work, device))
    return statistics.median(passes)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # it works on while Python goes on
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Begins a new measurement: a process may train one run after another."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Most memory in GiB that tensors held at once since `forget_peak_memory`, training and evaluations alike.

    None on the CPU: what a process holds there cannot be told from what the cache of images, the libraries and
    earlier runs hold, and its peak cannot be set back.
    """
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
