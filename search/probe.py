"""A timed probe of a model: a few training steps on images of noise, in the way that trials train.

That is with their batch, their augmentation and their precision, on the device that is here. On a CPU a step takes as
few images as make the probe a matter of seconds.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from search import capacity, space
from search.corners import Corner
from search.space import Space
from vqvae.batches import batch
from vqvae.config import TrainConfig, VqvaeError
from vqvae.conversion import replace
from vqvae.data import Images
from vqvae.learner import CPU_MICRO_BATCH, Learner
from vqvae.speed import forget_peak_memory, peak_memory_gib

SECONDS = 2.0
"""Of timed steps, at least; where the first takes five times as long it is the only one."""

PICTURES = 16
"""Pictures of noise that a probe trains on."""

COPIES = 5
"""Of the weights that training keeps, in float32: themselves, their average, gradients and two moments."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A model in training."""

    images_per_s: float
    images: int
    """Of a timed step."""
    micro_batch: int
    """Images at once, as many as fit."""
    peak_memory_gib: float | None
    """Most that tensors held at once; None on a CPU, where it can't be told."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A corner of a space on the device that is here."""

    corner: Corner
    speed: Speed | None
    """None where it can't be trained."""
    problem: str = ""
    """Why not, or which limit it breaks though it can."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a trial gets of the machine that is here."""

    device: torch.device
    name: str
    cores: int
    """Of a trial that trains on the CPU; 1 on a GPU."""
    gpu_share: float
    """Part of a GPU that a trial has; 1 on the CPU."""
    at_once: int
    """Trials at once: `parallel`, or what this machine holds."""


def here(searched: Space) -> Machine:
    """What a trial of a space gets of this machine; one that asks for a GPU where there is none gets its CPUs."""
    need, cores = searched.resources, len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count() if searched.base.device != "cpu" else 0
    if need.gpus and gpus:
        fits = capacity.fitting({"CPU": cores, "GPU": gpus}, need)
        device, name, own, share = torch.device("cuda"), torch.cuda.get_device_name(), 1, min(need.gpus, 1.0)
    else:
        fits = int(cores / need.cpus)
        own = min(max(1, int(need.cpus)), cores)
        name = "a core of this CPU" if own == 1 else f"{own} cores of this CPU"
        device, share = torch.device("cpu"), 1.0
    at_once = searched.parallel or max(1, fits)
    return Machine(device=device, name=name, cores=own, gpu_share=share, at_once=at_once)


def probe(searched: Space, corner: Corner, machine: Machine) -> Probe:
    """Train a corner for some steps; what goes wrong with it is said, and is no error."""
    threads = torch.get_num_threads()
    needed = COPIES * 4 * corner.parameters
    if machine.device.type == "cpu" and needed > _memory():
        problem = f"its weights need {needed / 2**30:.3g} GiB in training, and this machine has {_memory() / 2**30:.3g}"
        return Probe(corner=corner, speed=None, problem=problem)
    try:
        if machine.device.type == "cpu":
            torch.set_num_threads(machine.cores)
        elif machine.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(machine.gpu_share)
        speed = speed_of(corner.config, machine.device)
    except (VqvaeError, RuntimeError, MemoryError) as error:  # the last two: compilers, allocators
        words = str(error).strip().splitlines()
        return Probe(corner=corner, speed=None, problem=words[0] if words else type(error).__name__)
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)
    measured = {"images_per_s": speed.images_per_s}
    if speed.peak_memory_gib is not None:
        measured["peak_memory_gib"] = speed.peak_memory_gib
    return Probe(corner=corner, speed=speed, problem="; ".join(broken(searched, measured)))


def broken(searched: Space, quantities: Mapping[str, float]) -> list[str]:
    """The limits that a model breaks, in words."""
    said = []
    for name in space.violations(searched.constraints, quantities):
        limit = searched.constraints[name]
        sides = {"at least": limit.min, "at most": limit.max}
        bounds = " and ".join(f"{word} {value:,.6g}" for word, value in sides.items() if value is not None)
        said.append(f"{name} {quantities[name]:,.6g}, where constraints ask for {bounds}")
    return said


def speed_of(config: TrainConfig, device: torch.device, images: int = 0) -> Speed:
    """How fast a model trains.

    Its LPIPS has random weights, which cost the same, and its discriminator trains from the first step on.

    Args:
        config: of the run.
        device: where it trains.
        images: of a step; 0 is the batch of the run, on a CPU as many as `SECONDS` allow.

    Raises:
        VqvaeError: it can't be built, or not even one image at once fits into memory.
    """
    config = replace(config, {"loss.lpips_trunk": "random", "gan.start": 0.0})
    if not images and device.type == "cpu":
        images, alone = 1, _timed(config, device, 1)
        most = config.micro_batch if config.micro_batch != "auto" else min(config.batch_size, CPU_MICRO_BATCH)
        images = min(most, int(SECONDS * alone.images_per_s))
        if images < 2:
            return alone
    return _timed(config, device, images or config.batch_size)


def _timed(config: TrainConfig, device: torch.device, images: int) -> Speed:
    if images != config.batch_size:
        config = replace(config, {"batch_size": images, "micro_batch": images})
    forget_peak_memory(device)
    learner = Learner(config, device)
    side = config.data.resolution
    noise = Images(np.random.default_rng(0).integers(0, 256, (PICTURES, side, side, 3), np.uint8), np.arange(PICTURES))
    # Of one thread its own time counts, whoever else uses the core.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def step() -> float:
        _wait(device)
        started, done = clock(), learner.step
        learner.advance(lambda part: batch(noise, config, done, part, device))
        _wait(device)
        return clock() - started

    passes = [step()]  # compiles, imports, and fills caches
    if passes[0] < 5 * SECONDS or device.type == "cuda":
        passes = []
        while sum(passes) < SECONDS:
            passes.append(step())
    return Speed(
        images_per_s=images / statistics.median(passes),
        images=images,
        micro_batch=learner.micro_batch,
        peak_memory_gib=peak_memory_gib(device),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
