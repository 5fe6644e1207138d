"""What selects has not trained, what reports has not been seen: planted copies, and pages out of reach."""

import io
import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage import data as skimage_data

from vqvae import data, duplicates, partition, photographs
from vqvae.config import DataConfig

PARTS = ("train", "validation", "test")
ROTATED = 6
"""EXIF orientation of a picture that is shown turned by 90 degrees."""


def jpeg(picture, quality):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def png(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def on_its_side(picture):
    """Stored turned, with the tag that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return png(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)


COPIES = {
    "exact.png": png,
    "saved again.jpg": lambda picture: jpeg(picture, 85),
    "half.png": lambda picture: png(picture.resize((128, 128), Image.Resampling.LANCZOS)),
    "larger.png": lambda picture: png(picture.resize((320, 320), Image.Resampling.BICUBIC)),
    "cropped.png": lambda picture: png(picture.crop((1, 1, 255, 255))),
    "brighter.png": lambda picture: png(ImageEnhance.Brightness(picture).enhance(1.05)),
    "turned.png": on_its_side,
    "brighter and saved again.jpg": lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.03), 90),
}


@pytest.fixture(scope="module")
def originals():
    """Sixteen pictures of 256 pixels, no two of them alike."""
    photograph = Image.fromarray(skimage_data.astronaut())
    boxes = [(x, y, x + 128, y + 128) for y in range(0, 512, 128) for x in range(0, 512, 128)]
    return [photograph.crop(box).resize((256, 256), Image.Resampling.BICUBIC) for box in boxes]


@pytest.fixture(scope="module")
def copies(originals):
    """File name -> content of all copies of each picture."""
    return [{name: make(picture) for name, make in COPIES.items()} for picture in originals]


@given(chosen=st.data())
@settings(max_examples=4, deadline=None)
def test_no_copy_of_a_picture_is_in_another_split(copies, tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("faces")
    stems = chosen.draw(st.permutations([f"{index:03}" for index in range(len(copies) * len(COPIES))]))
    family = {}
    for index, made in enumerate(copies):
        for name, content in made.items():
            file = f"{stems.pop()} {name}"
            (folder / file).write_bytes(content)
            family[file] = index
    config = DataConfig(
        source="folder",
        path=str(folder),
        resolution=64,
        cache=str(folder / "cache"),
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    splits = data.load(config)
    names = sorted(family)
    homes = [{family[names[row]] for row in getattr(splits, part).rows} for part in PARTS]
    assert sum(map(len, homes)) == len(copies)
    assert all(homes)
    assert splits.near_duplicates == len(copies) * (len(COPIES) - 1)


@pytest.mark.parametrize("resolution", [64, 256])
def test_no_crop_of_a_bundled_photograph_is_in_another_split_nor_one_that_looks_alike(resolution):
    parts = photographs.crops(resolution)
    hashes, home = [], []
    for name in PARTS:
        crops = parts[name][np.arange(len(parts[name]))]
        hashes += [duplicates.perceptual_hash(crop) for crop in crops]
        home += [name] * len(crops)
    seen = {}
    for group, split in zip(duplicates.group(np.array(hashes)).tolist(), home, strict=True):
        assert seen.setdefault(group, split) == split


@given(count=st.integers(60, 300), chosen=st.data(), fraction=st.floats(0.05, 0.3))
@settings(max_examples=100, deadline=None)
def test_a_picture_with_another_name_moves_at_most_two_of_the_others(count, chosen, fraction):
    names = [f"{index}.png" for index in range(count)]
    place = chosen.draw(st.integers(0, count - 1))
    renamed = [*names[:place], f"new{chosen.draw(st.integers(0, 10**6))}.png", *names[place + 1 :]]
    order = chosen.draw(st.permutations(range(count)))
    before = partition.split(names, fraction, fraction)
    after = partition.split([renamed[row] for row in order], fraction, fraction)
    home = {names[row]: part for part in PARTS for row in before[part]}
    moved = [names[order[row]] for part in PARTS for row in after[part] if home[names[order[row]]] != part]
    assert len(set(moved) - {names[place]}) <= 2


WATCHED = """
import ctypes, json, mmap, sys
import numpy as np
import torch

torch.set_num_threads(1)
from vqvae import data, photographs
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.train import train

settings, folder = json.loads(sys.argv[1])
config = replace(TrainConfig(), settings)
opened = []
sys.addaudithook(lambda event, values: event == "open" and opened.append(str(values[0])))


def pictures():
    found = {each for each in opened if each.startswith(folder) and each.endswith(".png")}
    opened.clear()
    return len(found)


if config.data.source == "folder":
    rows = data.load(config.data).test.rows
    decoded = pictures()
    real, libc = np.memmap, ctypes.CDLL(None, use_errno=True)

    def without_test(*arguments, **keywords):
        pixels = real(*arguments, **keywords)
        size = pixels[0].nbytes
        assert size % mmap.PAGESIZE == 0 == pixels.ctypes.data % mmap.PAGESIZE
        for row in rows.tolist():
            assert libc.mprotect(ctypes.c_void_p(pixels.ctypes.data + row * size), ctypes.c_size_t(size), 0) == 0
        return pixels

    np.memmap = without_test
    print(json.dumps({"decoded": decoded, "rows": len(rows)}))
for test in (False, True):
    for report in train(replace(config, {"evaluation.test": test})):
        pass
    print(json.dumps({"opened": pictures()} | report.sizes), flush=True)
"""
"""Trains, as a search does and then as a finalist, and tells how many pictures were opened. The pages of a cache that
hold the test split can't be read meanwhile."""

TINY = {
    "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
    "quantizer": {"codebook_size": 32, "code_dim": 4},
    "loss.perceptual": 0.0,
    "optimizer.warmup_steps": 1,
    "evaluation": {"images": 12, "lpips": False},
    "data.resolution": 64,
    "steps": 4,
    "rungs": [2],
    "batch_size": 8,
    "device": "cpu",
}


def watched(settings, folder):
    arguments = [sys.executable, "-c", textwrap.dedent(WATCHED), json.dumps([settings, str(folder)])]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.returncode, ran.stderr


@pytest.fixture
def noise(tmp_path):
    """Pictures of one's own, and the settings that read them."""
    dice = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(dice.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return TINY | {
        "data.source": "folder",
        "data.path": str(tmp_path),
        "data.cache": str(tmp_path / "cache"),
        "data.test_fraction": 0.2,
    }


def test_a_run_that_is_chosen_neither_opens_a_picture_again_nor_reads_a_page_of_the_test_split(noise, tmp_path):
    said, returned, errors = watched(noise, tmp_path)
    assert said == [
        {"decoded": 40, "rows": 8},
        {"opened": 0, "train": 30, "validation": 2, "test": 8},
    ], errors
    assert returned == -signal.SIGSEGV  # of the second run, where it reads them


def test_a_run_that_is_chosen_does_not_open_the_photograph_that_tests():
    [test] = photographs.PHOTOGRAPHS["test"]
    said, returned, errors = watched(TINY, photographs._path(test).with_suffix(""))
    assert returned == 0, errors
    sizes = {"train": 987, "validation": 82, "test": 77}
    assert said == [{"opened": 0} | sizes, {"opened": 1} | sizes]
