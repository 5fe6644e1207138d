"""Images to a training step: ours beside torchvision's ImageFolder in a DataLoader with as many workers as cores.

- start: seconds from nothing to the first batch, of the first trial on a machine, which decodes the folder into the
  cache, and of a second one, which finds it there. What is imported does not count.
- crop: images a second with random resized crop and flip; ours come out of the cache, the peer decodes each time.
- all: the same with sharpness and autocontrast, at the article's probabilities.

Ours are made where the trainer makes them, in its own process and in its micro-batches, on the GPU if there is one. The
peer's are timed from its first batch to the end of its epoch, on the CPU. Rates are medians of alternating repeats;
what counts is their ratio. The pictures are JPEGs of 256 pixels at quality 92, of blended photographs.

python benchmarks/data.py              5,000 pictures; writes benchmarks/results/DATE-data.md
python benchmarks/data.py --quick      200 pictures, printed only
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pictures
import small
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from vqvae.batches import batch
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.data import Images, load
from vqvae.photographs import PHOTOGRAPHS

RESOLUTION, QUALITY, IN_FOLDER = 256, 92, 500
PLAIN = {"data.sharpness": 0.0, "data.autocontrast": 0.0}
"""Settings of a run that crops and flips only."""


def device() -> torch.device:
    """Where the trainer would want the images."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generate(folder: Path, count: int) -> None:
    """Writes the pictures, in sub-folders as ImageFolder wants them."""
    random = np.random.default_rng(0)
    files = [file for split in PHOTOGRAPHS.values() for file in split]
    originals = [Image.open(str(resources.files(package) / file)).convert("RGB") for package, file in files]
    for number in range(count):
        place = folder / f"{number // IN_FOLDER:02}"
        place.mkdir(parents=True, exist_ok=True)
        parts = [pictures.crop(originals, RESOLUTION, RESOLUTION, random) for _ in range(2)]
        Image.blend(*parts, alpha=random.uniform(0.2, 0.5)).save(place / f"{number:05}.jpg", quality=QUALITY)


def settings(folder: Path, cache: Path) -> TrainConfig:
    """The article's, on the pictures; which is near which does not matter here."""
    data = {"source": "folder", "path": str(folder), "cache": str(cache), "resolution": RESOLUTION, "group_by": "file"}
    return replace(TrainConfig(), {f"data.{name}": value for name, value in data.items()})


def ours(images: Images, config: TrainConfig, step: int) -> Tensor:
    """The images of a step, in micro-batches as the trainer takes them; gives the last of these."""
    size = config.batch_size if device().type == "cuda" else 16
    for start in range(0, config.batch_size, size):
        made = batch(images, config, step, slice(start, start + size), device())
    return made


def peer(folder: Path, *, everything: bool, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """ImageFolder with the article's transforms, its workers kept from epoch to epoch."""
    steps: list[Callable[[Image.Image], Image.Image]] = [
        transforms.RandomResizedCrop(RESOLUTION, scale=(0.8, 1.0)),
        transforms.RandomHorizontalFlip(0.3),
    ]
    if everything:
        steps += [transforms.RandomAdjustSharpness(2, 0.3), transforms.RandomAutocontrast(0.3)]
    levels = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    found = datasets.ImageFolder(str(folder), transforms.Compose([*steps, *levels]))
    workers = len(os.sched_getaffinity(0))
    return DataLoader(found, batch_size, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True)


def started(config: TrainConfig) -> tuple[float, Images]:
    """Seconds to the first batch of a trial, and what it trains on."""
    began = time.perf_counter()
    images = load(config.data).train
    ours(images, config, 0)
    finish()
    return time.perf_counter() - began, images


def finish() -> None:
    """Waits for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def our_rate(images: Images, config: TrainConfig, steps: Iterator[int], count: int) -> float:
    """Images a second over `count` steps."""
    began = time.perf_counter()
    for _ in range(count):
        ours(images, config, next(steps))
    finish()
    return count * config.batch_size / (time.perf_counter() - began)


def peer_rate(loader: DataLoader[tuple[Tensor, Tensor]], batch_size: int) -> float:
    """Images a second of an epoch, but for its first batch, before which workers start."""
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * batch_size / (time.perf_counter() - began)


def require_same_pixels(images: Images, folder: Path) -> None:
    """Nothing is faster by decoding less: our rows are the files' own pixels."""
    files = sorted(folder.rglob("*.jpg"))
    for row in (0, len(images) // 2, len(images) - 1):
        cached = images[np.array([row])][0]
        number = int(images.rows[row])
        assert np.array_equal(cached, np.asarray(Image.open(files[number]).convert("RGB"))), f"another {files[number]}"


def main() -> None:
    """Measure, print, and keep the result under its date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    count, repeats = (200, 2) if quick else (5000, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        generate(folder, count)
        config = replace(settings(folder, Path(name, "cache")), {"batch_size": 16} if quick else {})
        first, _ = started(config)
        seconds = [started(config) for _ in range(repeats)]
        second, images = statistics.median(took for took, _ in seconds), seconds[-1][1]
        require_same_pixels(images, folder)
        lines = [
            f"{count:,} pictures; ours on {device().type}, the peer on the CPU.\n",
            "| | ours | ImageFolder | ratio | wanted |",
            "| --- | ---: | ---: | ---: | ---: |",
            f"| start: first batch of a second trial / of the first, s | {second:.3f} / {first:.2f} | "
            f"| {second / first:.3f} | at most 0.1 |",
        ]
        print(*lines, sep="\n", flush=True)
        wanted = {"crop": 5, "all": 5 if device().type == "cuda" else 1}
        for kind, least in wanted.items():
            run = replace(config, PLAIN if kind == "crop" else {})
            loader = peer(folder, everything=kind == "all", batch_size=run.batch_size)
            steps, rates = iter(range(10**6)), []
            our_rate(images, run, steps, 2)  # the first ones warm up
            for _ in range(repeats):
                rates.append((our_rate(images, run, steps, count // run.batch_size), peer_rate(loader, run.batch_size)))
            mine, theirs = (statistics.median(each) for each in zip(*rates, strict=True))
            ratio = statistics.median(a / b for a, b in rates)
            lines.append(f"| {kind}, images/s | {mine:,.0f} | {theirs:,.0f} | {ratio:.2f} | at least {least} |")
            print(lines[-1], flush=True)
    if not quick:
        small.write("data", small.heading("Data", "python benchmarks/data.py") + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
