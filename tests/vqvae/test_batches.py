import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

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


PLAIN = {"crop_scale": 1.0, "flip": 0.0, "sharpness": 0.0, "autocontrast": 0.0}


def test_without_augmentation_the_pixels_are_untouched(images):
    made = batches.batch(images, config(**PLAIN), 2, ALL, CPU)
    rows = batches.order(20, 3, 16, 8)
    assert torch.equal(((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1), torch.from_numpy(images[rows]))


def test_flips_mirror_each_image_exactly_or_not_at_all(images):
    plain = batches.batch(images, config(**PLAIN), 0, ALL, CPU)
    assert torch.equal(batches.batch(images, config(**PLAIN | {"flip": 1.0}), 0, ALL, CPU), plain.flip(-1))


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


@pytest.fixture
def levels():
    """Whole levels 0 to 255, of little contrast in one image, flat in one color of another."""
    levels = torch.randint(0, 256, (6, 3, 12, 17), generator=torch.Generator().manual_seed(0))
    levels[1] = 90 + levels[1] // 8
    levels[2, 1] = 77
    return levels.to(torch.uint8)


def to_levels(images):
    return (images + 1) * 127.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (batches.sharpen, lambda levels: torchvision.adjust_sharpness(levels, 2.0)),
        (batches.autocontrast, torchvision.autocontrast),
    ],
)
def test_sharpening_and_autocontrast_are_those_of_torchvision(levels, ours, theirs):
    made = to_levels(ours(levels.float() / 127.5 - 1))
    exact = theirs(levels.double() / 255) * 255
    assert (made - exact).abs().max() < 1e-3
    assert (made - theirs(levels)).abs().max() < 1 + 1e-3  # it rounds, and cuts the rest off
    assert not torch.allclose(made, levels.float(), atol=2)


def test_a_flat_color_keeps_its_level_under_autocontrast(levels):
    assert torch.equal(batches.autocontrast(levels.float())[2, 1], levels[2, 1].float())


def test_images_too_small_to_blur_are_not_sharpened():
    images = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).expand(1, 3, 2, 2)
    assert torch.equal(batches.sharpen(images), images)


def test_sharpening_and_autocontrast_are_chosen_as_often_as_asked_and_apart():
    sharpened, stretched = batches.chosen(DataConfig(sharpness=0.3, autocontrast=0.6), 10000, 0, 0)
    assert sharpened.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert stretched.float().mean().item() == pytest.approx(0.6, abs=0.02)
    assert (sharpened & stretched).float().mean().item() == pytest.approx(0.18, abs=0.02)
    assert not torch.equal(batches.chosen(DataConfig(), 100, 0, 0), batches.chosen(DataConfig(), 100, 0, 1))
    assert not torch.equal(batches.chosen(DataConfig(), 100, 0, 0), batches.chosen(DataConfig(), 100, 1, 0))


def test_a_batch_is_cropped_and_flipped_then_sharpened_then_stretched(images):
    plain = batches.batch(images, config(crop_scale=0.5, flip=0.5, sharpness=0, autocontrast=0), 4, ALL, CPU)
    both = batches.batch(images, config(crop_scale=0.5, flip=0.5, sharpness=1, autocontrast=1), 4, ALL, CPU)
    assert torch.equal(both, batches.autocontrast(batches.sharpen(plain)))
    assert not torch.allclose(both, batches.sharpen(batches.autocontrast(plain)), atol=1e-2)


def test_only_the_chosen_images_of_a_micro_batch_are_changed(images):
    plain = batches.batch(images, config(**PLAIN), 1, ALL, CPU)
    made = batches.batch(images, config(**PLAIN | {"sharpness": 0.5}), 1, slice(2, 8), CPU)
    sharpened = batches.chosen(DataConfig(sharpness=0.5, autocontrast=0), 8, 3, 1)[0, 2:]
    assert 0 < sharpened.sum() < 6
    assert ((made - plain[2:]).abs().amax((1, 2, 3)) > 0).tolist() == sharpened.tolist()
    assert torch.equal(made[sharpened], batches.sharpen(plain[2:][sharpened]))


@given(step=st.integers(0, 10**6), size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_micro_batches_of_any_size_make_up_the_batch(step, size, seed):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    images, run = Images(pixels, np.arange(20)), TrainConfig(data=DataConfig(resolution=8), batch_size=8, seed=seed)
    parts = [batches.batch(images, run, step, slice(start, start + size), CPU) for start in range(0, 8, size)]
    assert torch.equal(torch.cat(parts), batches.batch(images, run, step, ALL, CPU))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_batch_is_that_of_the_cpu_and_the_device_is_not_waited_for(images):
    run, cuda = config(sharpness=0.5, autocontrast=0.5), torch.device("cuda")
    batches.batch(images, run, 0, ALL, cuda)  # whatever is allocated first may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = batches.batch(images, run, 3, ALL, cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(made.cpu(), batches.batch(images, run, 3, ALL, CPU), atol=1e-4, rtol=0)
