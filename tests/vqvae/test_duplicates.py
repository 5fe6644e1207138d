import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage import data

from vqvae import duplicates


@pytest.fixture(scope="module")
def crops():
    """Crops of 128 pixels of a photograph, side by side."""
    photograph = data.astronaut()
    return [photograph[row : row + 128, column : column + 128] for row in (0, 128, 256) for column in (0, 128, 256)]


def as_jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=75)
    return np.asarray(Image.open(stream))


CHANGES = {
    "saved again": as_jpeg,
    "half the size": lambda pixels: np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)),
    "brighter": lambda pixels: np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(1.05)),
}


def grouped(pictures):
    return duplicates.group(np.array([duplicates.perceptual_hash(picture) for picture in pictures])).tolist()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_that_was_changed_a_little_is_a_near_duplicate(crops, change):
    assert grouped([*crops, *map(change, crops)]) == [*range(9), *range(9)]


def test_a_mirrored_picture_is_another_one(crops):
    assert grouped([crops[0], crops[0][:, ::-1]]) == [0, 1]


def test_flat_pictures_are_not_joined_unless_they_are_equal():
    blacks = [np.full((32, 32, 3), level, dtype=np.uint8) for level in range(20)]
    stars = []
    for seed in range(20):
        sky = np.zeros((32, 32, 3), dtype=np.uint8)
        sky[tuple(np.random.default_rng(seed).integers(0, 32, 2))] = 255
        stars.append(sky)
    assert grouped([*blacks, *stars, blacks[3], stars[5]]) == [*range(40), 3, 25]


def test_no_pictures_make_no_groups():
    assert duplicates.group(np.array([])).tolist() == []


def flipped(bits, places):
    changed = bits.copy()
    changed[list(places)] ^= True
    return changed


def hashes(bits):
    packed = np.packbits(np.array(bits), axis=1).view(np.uint16)
    return np.concatenate([packed, np.zeros((len(packed), 4), np.uint16)], axis=1)


@given(places=st.sets(st.integers(0, 255), min_size=12, max_size=12), extra=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_twelve_differing_bits_are_found_wherever_they_are_and_thirteen_are_too_many(places, extra):
    bits = np.random.default_rng(0).random(256) < 0.3
    assert duplicates.group(hashes([bits, flipped(bits, places)])).tolist() == [0, 0]
    assert duplicates.group(hashes([bits, flipped(bits, places | {extra})])).tolist() == [0, int(extra not in places)]


def test_pairs_that_agree_in_one_band_alone_are_found_among_many_that_agree_in_it_too():
    generator = np.random.default_rng(0)
    bits = generator.random((2000, 256)) < 0.3
    bits[:60, :: duplicates.BANDS] = bits[0, :: duplicates.BANDS]
    pairs = [flipped(row, range(1, duplicates.BANDS)) for row in bits[:10]]
    assert duplicates.group(hashes([*bits, *pairs])).tolist() == [*range(2000), *range(10)]


def reference(bits):
    """Groups by comparing all pairs, one after another."""
    group = list(range(len(bits)))
    for one in range(len(bits)):
        for other in range(one):
            if (bits[one] != bits[other]).sum() <= 12 and group[one] != group[other]:
                low, high = sorted((group[one], group[other]))
                group = [low if each == high else each for each in group]
    return group


@given(
    seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 0.02, 0.04]), likeness=st.sampled_from([0, 128, 240])
)
@settings(max_examples=30, deadline=None)
def test_groups_are_those_of_comparing_all_pairs(seed, noise, likeness):
    generator = np.random.default_rng(seed)
    bits = generator.random((12, 256)) < 0.3
    bits[:, :likeness] = bits[0, :likeness]
    bits = bits[generator.integers(0, 12, 60)] ^ (generator.random((60, 256)) < noise)
    assert duplicates.group(hashes(bits)).tolist() == reference(bits)


def test_frames_of_a_video_are_one_group_by_way_of_one_another():
    bits = np.random.default_rng(0).random(256) < 0.3
    frames = [bits]
    for frame in range(40):
        frames.append(flipped(frames[-1], [6 * frame + place for place in range(6)]))
    assert (frames[0] != frames[-1]).sum() > 100
    assert set(duplicates.group(hashes(frames)).tolist()) == {0}


@pytest.mark.parametrize("kind", ["unlike", "a video", "alike in three quarters"])
def test_ten_thousand_pictures_are_grouped_in_seconds(kind):
    generator = np.random.default_rng(0)
    bits = generator.random((10_000, 256)) < 0.35
    if kind == "a video":
        bits = bits[0] ^ (generator.random(bits.shape) < 0.01)
    if kind == "alike in three quarters":
        bits[:, :192] = bits[0, :192]
    started = time.process_time()
    groups = duplicates.group(hashes(bits))
    assert time.process_time() - started < 10
    assert len(np.unique(groups)) == {"unlike": 10_000, "a video": 1}.get(kind, len(np.unique(groups)))
