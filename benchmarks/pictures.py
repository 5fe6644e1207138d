"""A folder of pictures such as people have: many sizes, gray and transparent ones, turned, broken and repeated ones.

They are made of the bundled photographs, each a blend of two crops, so that they differ from one another; the same
count and seed make the same folder. The walk of the README ("Your pictures") and `benchmarks/data.py` begin with it.

python benchmarks/pictures.py FOLDER --count 5000
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae.photographs import PHOTOGRAPHS

KINDS = {"plain": 0.80, "gray": 0.05, "alpha": 0.04, "turned": 0.05, "small": 0.02, "repeated": 0.03, "broken": 0.01}
"""What a picture is, and how often."""

ORIENTATION = 0x0112
"""The EXIF tag; 6 means that the picture is to be turned by 90 degrees to the right."""


def main() -> None:
    """Write the pictures into sub-folders of 500, and say how many of each kind there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    files = [file for split in PHOTOGRAPHS.values() for file in split]
    originals = [Image.open(str(resources.files(package) / file)).convert("RGB") for package, file in files]
    made: Counter[str] = Counter()
    last = None
    for number in range(options.count):
        place = options.folder / f"{number // 500:02}"
        place.mkdir(parents=True, exist_ok=True)
        kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
        kind = "plain" if last is None else kind
        last = write(kind, place / f"{number:05}", originals, random, last)
        made[kind] += 1
    print(f"{options.count} pictures in {options.folder}:", ", ".join(f"{n} {kind}" for kind, n in made.most_common()))


def write(kind: str, stem: Path, originals: list[Image.Image], random: np.random.Generator, last: Path | None) -> Path:
    """Write one picture, and give the one that a repeated one may repeat."""
    if kind == "repeated" and last is not None:
        shutil.copyfile(last, stem.with_suffix(last.suffix))
        return last
    short = int(random.integers(24, 48) if kind == "small" else random.integers(96, 400))
    width, height = (round(short * aspect) for aspect in random.permutation((1.0, random.uniform(1.0, 1.8))))
    picture = Image.blend(*(crop(originals, width, height, random) for _ in range(2)), alpha=random.uniform(0.2, 0.5))
    name = stem.with_suffix(".png" if kind == "alpha" else str(random.choice((".jpg", ".jpg", ".jpeg", ".webp"))))
    exif = Image.Exif()
    if kind == "gray":
        picture = picture.convert("L")
    elif kind == "alpha":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    elif kind == "turned":
        exif[ORIENTATION] = 6
    picture.save(name, quality=92, exif=exif)
    if kind == "broken":
        name.write_bytes(name.read_bytes()[: int(random.integers(0, 400))])
        return last or name
    return name


def crop(originals: list[Image.Image], width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A part of a photograph, a third of its sides or more, mirrored or not."""
    photograph = originals[int(random.integers(len(originals)))]
    part = random.uniform(0.33, 1.0)
    wide, high = (round(side * part) for side in photograph.size)
    left, top = (
        int(random.integers(side - kept + 1)) for side, kept in zip(photograph.size, (wide, high), strict=True)
    )
    cut = photograph.crop((left, top, left + wide, top + high)).resize((width, height), Image.Resampling.LANCZOS)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else cut


if __name__ == "__main__":
    main()
