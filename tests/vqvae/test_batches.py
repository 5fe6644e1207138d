import numpy as np
import pytest
import torch

from vqvae import batches
from vqvae.config import DataConfig, TrainConfig
from vqvae.data import Images

CPU = torch.device("cpu")
ALL = slice(0, 8)


def config(**data):
    return TrainConfig(data=DataConfig(resolution=16, **data), batch_size=8, seed=3)


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    return Images(pixels, np.arange(20))


def test_every_image_is_seen_once_an_epoch_in_another_order():
    first, second = (batches.order(20, 0, epoch * 20, 20).tolist() for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert batches.order(20, 1, 0, 20).tolist() != first


def test_a_batch_may_span_epochs():
    stream = np.concatenate([batches.order(3, 0, start, 1) for start in range(8)])
    assert batches.order(3, 0, 0, 8).tolist() == stream.tolist()


def test_a_step_is_the_same_however_it_is_reached(images):
    alone = batches.batch(images, config(), 7, ALL, CPU)
    for step in range(8):
        last = batches.batch(images, config(), step, ALL, CPU)
    assert torch.equal(alone, last)
    assert not torch.equal(alone, batches.batch(images, config(), 8, ALL, CPU))


def test_smaller_micro_batches_see_the_same_images_augmented_alike(images):
    whole = batches.batch(images, config(), 2, ALL, CPU)
    halves = [batches.batch(images, config(), 2, part, CPU) for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), whole)


def test_without_crops_and_flips_the_pixels_are_untouched(images):
    made = batches.batch(images, config(crop_scale=1.0, flip=0.0), 2, ALL, CPU)
    rows = batches.order(20, 3, 16, 8)
    assert torch.equal(((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1), torch.from_numpy(images[rows]))


def test_flips_mirror_each_image_exactly_or_not_at_all(images):
    plain = batches.batch(images, config(crop_scale=1.0, flip=0.0), 0, ALL, CPU)
    assert torch.equal(batches.batch(images, config(crop_scale=1.0, flip=1.0), 0, ALL, CPU), plain.flip(-1))


def test_flips_are_as_frequent_as_asked():
    theta = batches.crops(DataConfig(flip=0.3), 4000, 0, 0)
    assert (theta[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_crops_lie_within_the_image_and_have_the_areas_asked_for():
    theta = batches.crops(DataConfig(crop_scale=0.5, flip=0.5), 4000, 0, 0)
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    assert (width + theta[:, 0, 2].abs()).max() <= 1 + 1e-6
    assert (height + theta[:, 1, 2].abs()).max() <= 1 + 1e-6
    area = width * height
    assert area.min().item() == pytest.approx(0.5, abs=0.05)
    assert area.max().item() == pytest.approx(1.0, abs=0.01)
    assert (width / height).max().item() == pytest.approx(4 / 3, abs=0.02)


def test_a_crop_shows_its_part_of_the_image_enlarged():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    theta = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]]])  # the right half, in the middle of the height
    made = batches.augment(ramp, theta)
    assert made[0, 0, 5, 0].item() == pytest.approx(0.0, abs=0.02)
    assert made[0, 0, 5, -1].item() == pytest.approx(1.0, abs=0.02)


def test_batches_leave_the_global_generator_alone(images):
    before = torch.get_rng_state()
    batches.batch(images, config(), 0, ALL, CPU)
    assert torch.equal(torch.get_rng_state(), before)
