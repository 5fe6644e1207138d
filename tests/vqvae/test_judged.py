"""The test split: measured once, at the end, by models that report; never read by one that is chosen."""

import json

import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from vqvae import data
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.metrics import spread
from vqvae.train import TEST_IMAGES, TEST_VALUES, CheckpointError, train


def tiny(**settings):
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
        "quantizer": {"codebook_size": 32, "code_dim": 4},
        "loss.perceptual": 0.0,
        "optimizer": {"lr": 2e-3, "warmup_steps": 1},
        "data": {"resolution": 32, "sharpness": 0.0, "autocontrast": 0.0},
        "evaluation": {"images": 12, "lpips": False, "test": True},
        "steps": 4,
        "rungs": (2,),
        "batch_size": 8,
        "micro_batch": 8,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


@pytest.fixture
def folder(tmp_path):
    """Pictures of one's own, and where they are decoded."""
    dice = np.random.default_rng(0)
    for number in range(40):
        picture = dice.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    return {
        "data__source": "folder",
        "data__path": str(tmp_path),
        "data__cache": str(tmp_path / "cache"),
        "data__group_by": "file",
        "data__test_fraction": 0.2,
    }


def test_the_test_split_is_measured_whole_at_the_last_step_and_only_there(tmp_path):
    reports = {report.step: report for report in train(tiny()) if report.evaluated}
    assert not any(name.startswith("test/") for name in reports[2].metrics)
    assert {"test/psnr", "test/ssim", "test/l1", "test/entropy_bits_per_image"} <= reports[4].metrics.keys()
    images = len(data.load(tiny().data).test)
    assert images > tiny().evaluation.images
    for report in train(tiny()):
        if report.checkpoint:
            report.checkpoint(tmp_path / str(report.step))
    assert not (tmp_path / "2" / TEST_VALUES).exists()
    with np.load(tmp_path / "4" / TEST_VALUES) as each:
        assert set(each) == {"psnr", "ssim", "l1"}
        assert each["psnr"].shape == (images,)
        assert each["psnr"].mean() == pytest.approx(reports[4].metrics["test/psnr"])


def test_measuring_the_test_split_changes_nothing_else():
    *_, with_it = train(tiny())
    *_, without = train(tiny(evaluation__test=False))
    timed = {"images_per_s", "encode_images_per_s", "decode_images_per_s"}
    seen = {name: value for name, value in with_it.metrics.items() if not name.startswith("test/")}
    assert {k: v for k, v in seen.items() if k not in timed} == {
        k: v for k, v in without.metrics.items() if k not in timed
    }


def test_a_run_that_goes_on_after_its_end_says_the_same_of_the_test_split(tmp_path):
    *_, first = train(tiny())
    for report in train(tiny()):
        if report.step == 4 and report.checkpoint:
            report.checkpoint(tmp_path / "end")
    *_, again = train(tiny(), tmp_path / "end")
    again.checkpoint(tmp_path / "again")
    assert again.metrics["test/psnr"] == first.metrics["test/psnr"]
    with np.load(tmp_path / "end" / TEST_VALUES) as before, np.load(tmp_path / "again" / TEST_VALUES) as after:
        assert (before["psnr"] == after["psnr"]).all()


def test_the_sheet_of_the_test_split_shows_the_same_images_of_it_in_every_run_at_the_last_step_alone():
    reports = {report.step: report for report in train(tiny()) if report.evaluated}
    *_, otherwise = train(tiny(seed=1, model__width=8))
    split = data.load(tiny().data).test
    rows = spread(len(split), TEST_IMAGES)
    assert len(rows) == 32 < len(split)
    assert "test" not in reports[2].pictures
    for report in (reports[4], otherwise):
        shown = rearrange(report.pictures["test"], "(r two h) (k w) c -> two (r k) h w c", two=2, k=8, h=32)
        assert (shown[0] == split[rows]).all()
    assert (reports[4].pictures["test"] != otherwise.pictures["test"]).any()


def test_the_sheet_of_the_test_split_is_of_the_models_reconstructions_in_the_order_of_its_values(tmp_path):
    *_, report = train(tiny(evaluation__images=100))
    report.checkpoint(tmp_path / "end")
    shown = rearrange(report.pictures["test"], "(r two h) (k w) c -> two (r k) h w c", two=2, k=8, h=32) / 255
    measured = 10 * np.log10(1 / np.square(shown[1] - shown[0]).mean((1, 2, 3)))
    with np.load(tmp_path / "end" / TEST_VALUES) as each:
        assert measured == pytest.approx(each["psnr"][spread(len(each["psnr"]), TEST_IMAGES)], abs=0.05)


def test_a_run_that_was_stopped_and_goes_on_shows_the_same_of_the_test_split(tmp_path):
    *_, whole = train(tiny())
    for report in train(tiny()):
        if report.checkpoint:
            report.checkpoint(tmp_path / str(report.step))
    for step in (2, 4):
        *_, resumed = train(tiny(), tmp_path / str(step))
        assert resumed.pictures.keys() == whole.pictures.keys() == {"reconstructions", "worst", "test"}
        assert all((resumed.pictures[name] == whole.pictures[name]).all() for name in whole.pictures)


def test_a_run_made_longer_shows_the_test_split_at_its_new_end_alone(tmp_path):
    fixed = {"optimizer__schedule": "constant"}
    for report in train(tiny(**fixed)):
        if report.step == 4 and report.checkpoint:
            report.checkpoint(tmp_path / "end")
    first, *_, last = train(tiny(steps=6, rungs=(5,), **fixed), tmp_path / "end")
    by_step = {r.step: r for r in train(tiny(steps=6, rungs=(5,), **fixed), tmp_path / "end") if r.evaluated}
    assert ["test" in by_step[step].pictures for step in (4, 5, 6)] == [True, False, True]
    assert (first.pictures["test"] != last.pictures["test"]).any()


def test_a_damaged_file_of_values_is_refused(tmp_path):
    for report in train(tiny()):
        if report.step == 4 and report.checkpoint:
            report.checkpoint(tmp_path / "end")
    (tmp_path / "end" / TEST_VALUES).write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"damaged: test\.npz"):
        next(train(tiny(), tmp_path / "end"))


def test_no_run_that_is_chosen_depends_on_a_pixel_of_the_test_split(folder, tmp_path):
    config = tiny(evaluation__test=False, **folder)
    rows = data.load(config.data).test.rows
    assert len(rows) >= 4

    def told():
        found = []
        for report in train(config):
            measured = {k: v for k, v in report.metrics.items() if not k.endswith("_per_s")}
            found.append(
                (report.step, measured, {name: picture.tobytes() for name, picture in report.pictures.items()})
            )
        return json.dumps([each[:2] for each in found]), [each[2] for each in found]

    before = told()
    [pixels] = (tmp_path / "cache").glob("*/pixels.raw")
    changed = np.memmap(pixels, np.uint8, "r+", shape=(40, 32, 32, 3))
    changed[rows] = 255 - changed[rows]
    changed.flush()
    assert told() == before
    *_, judged = train(tiny(**folder))
    changed[rows] = 0
    changed.flush()
    *_, otherwise = train(tiny(**folder))
    assert judged.metrics["test/psnr"] != otherwise.metrics["test/psnr"]


def test_a_test_split_without_an_image_is_refused(folder):
    config = tiny(**(folder | {"data__test_fraction": 0.0}))
    with pytest.raises(ConfigError, match=r"evaluation\.test: must be false where no image is in the test split"):
        next(train(config))
