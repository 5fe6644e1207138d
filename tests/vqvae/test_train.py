"""The trainer, on models that train in a second.

The golden losses are written anew, after a change that is meant to move them, by
``python tests/vqvae/test_train.py``.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vqvae import checkpoint
from vqvae.checkpoint import CheckpointError
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace, to_dict
from vqvae.learner import OutOfMemory
from vqvae.model import BACKBONES as BACKBONES_BY_NAME
from vqvae.model import VQVAE
from vqvae.train import Diverged, train

GOLDEN = Path(__file__).with_name("golden.json")
BACKBONES = ("convolution", "attention", "mamba", "bimamba", "mambavision")
VALIDATION = {
    "psnr",
    "ssim",
    "l1",
    "codebook_usage",
    "perplexity",
    "entropy_bits_per_image",
    "codebook_tokens",
    "codebook_undersampled",
}


def tiny(**settings):
    """A model of 32-pixel photographs; settings by their dotted names, with __ for the dot."""
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8, "state_size": 8},
        "quantizer": {"codebook_size": 32, "code_dim": 4},
        "loss.perceptual": 0.0,
        "optimizer": {"lr": 2e-3, "warmup_steps": 2},
        "data": {"resolution": 32, "sharpness": 0.0, "autocontrast": 0.0},
        "evaluation": {"images": 12, "lpips": False},
        "steps": 6,
        "batch_size": 8,
        "micro_batch": 8,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


def saved(config, at, folder, **arguments):
    """The report of step `at`, its checkpoint written."""
    for progress in train(config, **arguments):
        if progress.step == at and progress.checkpoint:
            progress.checkpoint(folder)
            return progress
    raise AssertionError(f"no checkpoint at step {at}")


def as_settings(part, values):
    """The fields of a part of the config, as arguments of `tiny`."""
    return {f"{part}__{name}": value for name, value in values.items()}


def without_rate(metrics):
    return {name: value for name, value in metrics.items() if not name.endswith("_per_s")}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def test_it_evaluates_exactly_at_the_rungs_and_at_the_end():
    reports = list(train(tiny(rungs=[2, 3], checkpoint_every=4)))
    assert [report.step for report in reports if report.evaluated] == [2, 3, 6]
    assert [report.step for report in reports if report.checkpoint] == [2, 3, 4, 6]
    for report in reports:
        validation = {name.removeprefix("val/") for name in report.metrics if name.startswith("val/")}
        assert validation == (VALIDATION if report.evaluated else set())
        assert {"train/l2", "train/codebook", "train/commitment", "train/loss", "images_per_s"} <= set(report.metrics)
        assert set(report.pictures) == ({"reconstructions", "worst"} if report.evaluated else set())
    assert reports[-1].pictures["reconstructions"].shape == (2 * 2 * 32, 8 * 32, 3)


def tiles(picture):
    """The pairs of a sheet of one row or more, (n, 2, 32, 32, 3)."""
    rows = picture.reshape(-1, 2, 32, picture.shape[1] // 32, 32, 3)
    return rows.transpose(0, 3, 1, 2, 4, 5).reshape(-1, 2, 32, 32, 3)


def test_the_worst_pictures_are_those_with_the_largest_error_of_all_measured(monkeypatch):
    every = tiles(next(train(tiny(steps=1))).pictures["reconstructions"])[:12]
    errors = ((every[:, 0].astype(float) - every[:, 1]) ** 2).mean((1, 2, 3))
    monkeypatch.setattr("vqvae.train.SHEET_IMAGES", 3)
    worst = tiles(next(train(tiny(steps=1))).pictures["worst"])
    assert (worst == every[errors.argsort()[::-1][:3]]).all()


def test_every_report_says_how_many_images_each_split_has(tmp_path):
    (tmp_path / "pictures").mkdir()
    for index in range(10):
        Image.new("RGB", (32, 32), (20 * index,) * 3).save(tmp_path / "pictures" / f"{index}.png")
    folder = {"source": "folder", "path": str(tmp_path / "pictures"), "resolution": 32, "cache": str(tmp_path / "c")}
    parts = {"group_by": "file", "validation_fraction": 0.3, "test_fraction": 0.0}
    reports = list(train(tiny(data={**folder, **parts}, steps=2)))
    assert [each.sizes for each in reports] == [{"train": 7, "validation": 3}] * len(reports)
    assert set(next(train(tiny())).sizes) == {"train", "validation", "test"}


def test_the_first_step_is_reported_so_that_a_viewer_sees_it_live():
    assert next(iter(train(tiny()))).step == 1


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        saved(tiny(steps=2, seed=seed), 2, tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(tmp_path, backbone):
    config = tiny(model__backbone=backbone, rungs=[1], checkpoint_every=3, optimizer__clip_norm=1.0)
    saved(config, 3, tmp_path / "half")
    whole = saved(config, 6, tmp_path / "whole")
    resumed = saved(config, 6, tmp_path / "resumed", resume=tmp_path / "half")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert without_rate(resumed.metrics) == without_rate(whole.metrics)


QUANTIZERS = {
    "ema": {"update": "ema", "ema_decay": 0.9, "revive_below": 0.5},
    "euclidean, revived": {"l2_normalize": False, "revive_below": 0.5, "lr_multiplier": 3.0},
    "rotation": {"estimator": "rotation"},
    "simvq": {"kind": "simvq"},
    "fsq": {"kind": "fsq", "levels": [4, 4, 3]},
    "lfq": {"kind": "lfq"},
    "bsq": {"kind": "bsq"},
    "gumbel": {"kind": "gumbel"},
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_resumed_run_of_every_quantizer_equals_one_that_never_stopped(tmp_path, name):
    config = tiny(rungs=[1], checkpoint_every=3, micro_batch=4, **as_settings("quantizer", QUANTIZERS[name]))
    saved(config, 3, tmp_path / "half")
    whole = saved(config, 6, tmp_path / "whole")
    resumed = saved(config, 6, tmp_path / "resumed", resume=tmp_path / "half")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert without_rate(resumed.metrics) == without_rate(whole.metrics)


GAN = {"weight": 0.5, "start": 0.34, "width": 8, "depth": 2}


def test_a_run_away_from_its_base_goes_on_bit_for_bit_and_its_model_keeps_the_depth_scale(tmp_path):
    chosen = {"kind": "mup", "base_width": 16, "base_depth": 1, "base_gan_width": 4}
    size = {"width": 32, "depth": 2, "backbone": "mamba", "head_size": 8, "state_size": 8}
    config = tiny(
        model=size, parametrization=chosen, precision="bfloat16", micro_batch=4, gan__weight=0.1, gan__depth=2
    )
    config = replace(config, {"gan.width": 8, "gan.start": 0.0, "rungs": [3]})
    saved(config, 3, tmp_path / "half")
    saved(config, 6, tmp_path / "whole")
    saved(config, 6, tmp_path / "resumed", resume=tmp_path / "half")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    model = checkpoint.load(tmp_path / "whole")
    assert [block.residual_scale for block in model.blocks()] == [0.5] * 4
    with pytest.raises(CheckpointError, match=r"parametrization\.base_width was 16, but is 8 now"):
        list(train(replace(config, {"parametrization.base_width": 8}), resume=tmp_path / "half"))


@pytest.mark.parametrize("at", [1, 3])  # before and after the discriminator's start
def test_a_run_with_a_discriminator_goes_on_in_a_new_process_bit_for_bit(tmp_path, at):
    config = tiny(rungs=[1, 3], optimizer__schedule="wsd", data__sharpness=0.3, **as_settings("gan", GAN))
    saved(config, at, tmp_path / "half")
    saved(config, 6, tmp_path / "whole")
    script = (
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from vqvae.conversion import from_dict\n"
        "from vqvae.train import train\n"
        "config, half, target = from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])\n"
        "for progress in train(config, half):\n"
        "    if progress.step == config.steps:\n"
        "        progress.checkpoint(target)\n"
    )
    arguments = [json.dumps(to_dict(config)), str(tmp_path / "half"), str(tmp_path / "resumed")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= set(files(tmp_path / "whole"))


def test_the_discriminator_starts_after_its_part_of_the_steps_and_changes_nothing_before(tmp_path):
    rungs = [2, 3, 4]
    plain = {each.step: each for each in train(tiny(rungs=rungs)) if each.evaluated}
    played = {each.step: each for each in train(tiny(rungs=rungs, **as_settings("gan", GAN))) if each.evaluated}
    terms = {"train/gan_generator", "train/gan_weight", "train/gan_discriminator", "train/gan_real", "train/gan_fake"}
    assert without_rate(played[2].metrics) == without_rate(plain[2].metrics)
    assert terms <= set(played[3].metrics)
    assert played[4].metrics["val/psnr"] != plain[4].metrics["val/psnr"]


def test_a_discriminator_that_diverges_ends_the_run_by_the_name_of_its_term():
    with pytest.raises(Diverged) as caught:
        list(train(tiny(**as_settings("gan", {**GAN, "start": 0.0, "lr": 1e30}))))
    assert caught.value.term.startswith("train/gan_")


def test_an_evaluation_comes_again_after_a_resume(tmp_path):
    config = tiny(rungs=[2])
    before = saved(config, 2, tmp_path / "a")
    first, *_, last = train(config, resume=tmp_path / "a")
    assert (first.step, first.evaluated, first.metrics) == (2, True, before.metrics)
    for name in ("reconstructions", "worst"):
        assert (first.pictures[name] == before.pictures[name]).all()
    assert first.checkpoint
    first_again = saved(config, 2, tmp_path / "b", resume=tmp_path / "a")
    assert first_again.metrics == before.metrics
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (last.step, last.evaluated) == (6, True)


def test_a_checkpoint_from_before_there_were_worst_pictures_goes_on(tmp_path):
    saved(tiny(rungs=[2]), 2, tmp_path / "a")
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    del state["progress"]["worst"]
    (tmp_path / "a" / "state.json").write_text(json.dumps(state))
    first, *_, last = train(tiny(rungs=[2]), resume=tmp_path / "a")
    assert [set(each.pictures) for each in (first, last)] == [{"reconstructions"}, {"reconstructions", "worst"}]


def test_a_finished_run_only_shows_its_last_evaluation_again(tmp_path):
    last = saved(tiny(steps=2), 2, tmp_path / "a")
    (again,) = train(tiny(steps=2), resume=tmp_path / "a")
    assert (again.step, again.evaluated, again.metrics) == (2, True, last.metrics)


def test_a_stopped_run_leaves_a_checkpoint_and_goes_on_as_if_nothing_had_been(tmp_path):
    config = tiny()
    asked = iter([False, False, False, True])
    *_, last = train(config, stop=lambda: next(asked))
    assert (last.step, last.stopped, last.evaluated) == (3, True, False)
    saved(config, 6, tmp_path / "whole")
    asked = iter([False, False, False, True])
    saved(config, 3, tmp_path / "stopped", stop=lambda: next(asked))
    reports = list(train(config, resume=tmp_path / "stopped"))
    assert [reports[0].step, reports[0].evaluated] == [4, False]  # no evaluation was lost, so none comes again
    saved(config, 6, tmp_path / "resumed", resume=tmp_path / "stopped")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_run_can_be_stopped_before_its_first_step(tmp_path):
    (only,) = train(tiny(), stop=lambda: True)
    assert (only.step, only.stopped, only.metrics) == (0, True, {})
    saved(tiny(), 0, tmp_path / "a", stop=lambda: True)
    saved(tiny(), 6, tmp_path / "b", resume=tmp_path / "a")
    saved(tiny(), 6, tmp_path / "c")
    assert files(tmp_path / "b") == files(tmp_path / "c")


def test_a_run_stopped_before_its_first_step_goes_on_without_an_evaluation(tmp_path):
    saved(tiny(), 0, tmp_path / "a", stop=lambda: True)
    first = next(train(tiny(), resume=tmp_path / "a"))
    assert (first.step, first.evaluated) == (1, False)


@pytest.fixture
def gradient_norms(monkeypatch):
    """The global norm of the gradient at each optimizer step, as it goes into AdamW."""
    norms = []
    step = torch.optim.AdamW.step

    def spy(self):
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    return norms


def test_accumulated_micro_batches_equal_the_full_batch(gradient_norms):
    reports = [list(train(tiny(steps=3, micro_batch=size)))[-1] for size in (8, 4, 1)]
    assert gradient_norms[3:] == pytest.approx(2 * gradient_norms[:3], rel=1e-3)
    terms = [{name: value for name, value in each.metrics.items() if name.startswith("train/")} for each in reports]
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)
    assert terms[2] == pytest.approx(terms[0], rel=1e-4)


def test_clipping_bounds_the_gradient(gradient_norms):
    list(train(tiny(steps=2)))
    list(train(tiny(steps=2, optimizer__clip_norm=0.01)))
    assert min(gradient_norms[:2]) > 0.011
    assert gradient_norms[2:] == pytest.approx([0.01, 0.01], rel=1e-3)


def test_it_learns():
    first, *_, last = train(tiny(steps=80, rungs=[1], optimizer__warmup_steps=10))
    assert last.metrics["val/psnr"] > first.metrics["val/psnr"] + 3
    assert last.metrics["train/l2"] < first.metrics["train/l2"]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    list(train(tiny(steps=2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_trunk_never_passes_for_the_real_one():
    settings = {"evaluation__lpips": True, "evaluation__lpips_trunk": "random", "data__resolution": 64, "steps": 1}
    *_, last = train(tiny(**settings, evaluation__images=2, loss__perceptual=0.1, loss__lpips_trunk="random"))
    assert "val/lpips_random" in last.metrics
    assert "train/lpips_random" in last.metrics
    assert not {"val/lpips_alex", "train/lpips_vgg"} & set(last.metrics)


def test_a_loss_that_is_no_longer_finite_ends_the_run_and_names_step_and_term():
    with pytest.raises(Diverged) as caught:
        list(train(tiny(optimizer={"lr": 1e30, "warmup_steps": 1, "weight_decay": 0.0})))
    error = caught.value
    assert (error.step, error.term) == (2, "train/l2")
    expected = "after step 2 of 6, at optimizer.lr 1e+30; expected a finite value"
    assert str(error) in (f"train/l2 is nan {expected}", f"train/l2 is inf {expected}")


def test_a_metric_that_is_not_finite_ends_the_run():
    with pytest.raises(Diverged) as caught:
        list(train(tiny(steps=1, optimizer={"lr": 1e30, "warmup_steps": 1, "weight_decay": 0.0})))
    assert (caught.value.step, caught.value.term) == (1, "val/psnr")


def test_only_what_changes_nothing_may_differ_on_resume(tmp_path):
    saved(tiny(rungs=[2]), 2, tmp_path / "a")
    free = {"rungs": [2, 4], "evaluation__images": 3, "checkpoint_every": 5, "micro_batch": 4, "compile": "never"}
    assert [report.step for report in train(tiny(**free), resume=tmp_path / "a") if report.evaluated] == [2, 4, 6]


def test_a_checkpoint_of_another_run_is_refused_by_the_names_of_the_fields(tmp_path):
    saved(tiny(rungs=[2]), 2, tmp_path / "a")
    with pytest.raises(CheckpointError) as caught:
        next(train(tiny(steps=8, optimizer__lr=1e-3), resume=tmp_path / "a"))
    expected = "of another run: optimizer.lr was 0.002, but is 0.001 now; steps was 6, but is 8 now"
    assert str(caught.value) == f"{tmp_path}/a: {expected}"


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_run_can_be_prolonged_where_the_schedule_allows_it(tmp_path, schedule):
    saved(tiny(rungs=[2], optimizer__schedule=schedule), 2, tmp_path / "a")
    *_, last = train(tiny(steps=8, optimizer__schedule=schedule), resume=tmp_path / "a")
    assert last.step == 8
    with pytest.raises(CheckpointError) as caught:
        next(train(tiny(steps=1, optimizer__schedule=schedule), resume=tmp_path / "a"))
    assert str(caught.value) == f"{tmp_path}/a: taken at step 2; expected at most steps, 1"


@pytest.mark.parametrize("tied", [{"gan__weight": 0.1, "gan__depth": 2}, {"quantizer__kind": "gumbel"}])
def test_a_run_with_something_that_begins_or_anneals_over_its_steps_cannot_be_prolonged(tmp_path, tied):
    config = {"optimizer__schedule": "constant", "rungs": [2], **tied}
    saved(tiny(**config), 2, tmp_path / "a")
    with pytest.raises(CheckpointError, match="steps was 6, but is 8 now"):
        next(train(tiny(steps=8, **config), resume=tmp_path / "a"))


def test_a_report_holds_the_terms_that_began_since_the_last_one():
    first, last = train(tiny(checkpoint_every=4, steps=4, rungs=[], **as_settings("gan", {**GAN, "start": 0.5})))
    assert (first.step, "train/gan_real" in first.metrics) == (1, False)
    assert "train/gan_real" in last.metrics


def test_weights_that_do_not_fit_are_refused(tmp_path):
    saved(tiny(rungs=[2]), 2, tmp_path / "a")
    (tmp_path / "a" / "ema.safetensors").write_bytes((tmp_path / "a" / "optimizer.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"/a: does not fit the model that its config builds: "):
        next(train(tiny(rungs=[2]), resume=tmp_path / "a"))


def test_broken_files_of_a_folder_are_told(tmp_path):
    for index in range(6):
        Image.new("RGB", (32, 32), (40 * index,) * 3).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    folder = {"source": "folder", "path": str(tmp_path), "resolution": 32, "cache": str(tmp_path / "cache")}
    report = next(train(tiny(data=folder)))
    assert report.skipped == (f"{tmp_path}/broken.png: cannot identify image file",)


def test_what_cannot_be_built_is_refused_before_a_picture_is_read():
    nowhere = {"source": "folder", "path": "no-such-folder", "resolution": 32}
    with pytest.raises(ConfigError) as caught:
        next(train(tiny(data=nowhere, quantizer__kind="vqq")))
    assert str(caught.value) == "quantizer.kind: must be one of vq, simvq, fsq, lfq, bsq, gumbel, but got 'vqq'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ConfigError) as caught:
        next(train(tiny(device="cuda")))
    assert str(caught.value) == "device: must be cpu or auto, since torch finds no CUDA device, but got 'cuda'"


def test_the_device_running_out_of_memory_is_told_with_the_micro_batch(monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", exhausted)
    with pytest.raises(OutOfMemory) as caught:
        next(train(tiny()))
    expected = "out of memory on cpu at a micro-batch of 8 images of 32 pixels; expected a smaller model"
    assert str(caught.value) == expected


@pytest.fixture
def batches(monkeypatch):
    """What goes through a model: whether it trains, and how many images at once."""
    seen = []
    forward = VQVAE.forward

    def spy(self, images):
        seen.append((self.training, len(images)))
        return forward(self, images)

    monkeypatch.setattr(VQVAE, "forward", spy)
    return seen


def test_never_more_than_a_micro_batch_goes_through_the_model(batches):
    (report,) = train(tiny(steps=1, micro_batch=4, evaluation__images=10))
    assert batches == [(True, 4)] * 2 + [(False, 4), (False, 4), (False, 2)] * 3
    assert report.pictures["reconstructions"].shape == (2 * 2 * 32, 8 * 32, 3)


def test_the_sheet_shows_the_same_whatever_the_micro_batch():
    small, large = (next(train(tiny(steps=1, micro_batch=size))) for size in (2, 8))
    difference = small.pictures["reconstructions"].astype(int) - large.pictures["reconstructions"]
    assert abs(difference).max() <= 1


@pytest.fixture
def cramped(monkeypatch):
    """A backbone whose device holds at most so many images: a function to set it, and the sizes that were tried."""
    room, tried = [8], []

    class Cramped(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            tried.append(len(images))
            if len(images) > room[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.encoder(images)

    backbone = BACKBONES_BY_NAME["attention"]
    small = backbone._replace(encoder=lambda config, resolution: Cramped(backbone.encoder(config, resolution)))
    monkeypatch.setitem(BACKBONES_BY_NAME, "cramped", small)

    def hold(images):
        room[0] = images
        tried.clear()
        return tried

    return hold


def cramped_run(tmp_path, name, **settings):
    return saved(tiny(model__backbone="cramped", **settings), 6, tmp_path / name)


@pytest.mark.parametrize("quantizer", [{}, {"update": "ema", "revive_below": 0.5}])
def test_a_micro_batch_of_auto_is_halved_until_it_fits_and_no_step_is_lost(tmp_path, cramped, quantizer):
    settings = as_settings("quantizer", quantizer)
    tried = cramped(2)
    cramped_run(tmp_path, "auto", micro_batch="auto", **settings)
    assert tried[:7] == [8, 4, 2, 2, 2, 2, 2]  # two attempts, then the four quarters of the first step
    assert max(tried[3:]) == 2
    cramped_run(tmp_path, "two", micro_batch=2, **settings)
    assert files(tmp_path / "auto") == files(tmp_path / "two")


def test_a_resumed_run_begins_with_the_micro_batch_that_fitted(tmp_path, cramped):
    cramped(2)
    config = tiny(model__backbone="cramped", micro_batch="auto", rungs=[2])
    saved(config, 2, tmp_path / "a")
    tried = cramped(2)
    list(train(config, resume=tmp_path / "a"))
    assert max(tried) == 2


def test_memory_that_ends_in_an_evaluation_halves_the_micro_batch_too(cramped):
    tried = cramped(8)
    reports = train(tiny(model__backbone="cramped", micro_batch="auto", rungs=[1], steps=2))
    first = next(reports)
    tried = cramped(4)
    last = next(reports)
    assert (first.step, last.step) == (1, 2)
    assert tried[:3] == [8, 4, 4]
    assert math.isfinite(last.metrics["val/psnr"])


@pytest.mark.parametrize(
    ("room", "micro_batch", "expected"),
    [
        (2, 4, "a micro-batch of 4 images of 32 pixels; expected a smaller micro_batch (or auto) or model"),
        (0, "auto", "a micro-batch of 1 images of 32 pixels; expected a smaller model"),
    ],
)
def test_only_a_fixed_micro_batch_or_one_image_ends_with_out_of_memory(cramped, room, micro_batch, expected):
    cramped(room)
    with pytest.raises(OutOfMemory) as caught:
        next(train(tiny(model__backbone="cramped", micro_batch=micro_batch)))
    assert str(caught.value) == f"out of memory on cpu at {expected}"


def test_memory_that_ends_while_the_sheet_is_made_is_told(monkeypatch):
    forward = VQVAE.forward
    calls = []

    def exhausted(self, images):
        calls.append(images)
        if len(calls) > 3:  # one of training, two of the evaluation of 12 images
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(VQVAE, "forward", exhausted)
    with pytest.raises(OutOfMemory):
        next(train(tiny(steps=1)))


def test_memory_that_ends_while_a_checkpoint_is_restored_is_told(tmp_path, monkeypatch):
    saved(tiny(rungs=[2]), 2, tmp_path / "a")

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", exhausted)
    with pytest.raises(OutOfMemory):
        next(train(tiny(rungs=[2]), resume=tmp_path / "a"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_losses_follow_those_of_the_cpu():
    *_, cpu = train(tiny(steps=10))
    *_, cuda = train(tiny(steps=10, device="cuda"))
    assert cuda.metrics["train/l2"] == pytest.approx(cpu.metrics["train/l2"], rel=0.05)


def first_losses(backbone):
    config = tiny(model__backbone=backbone, rungs=[1, 2, 3, 4], steps=5, micro_batch=4)
    return {
        str(report.step): {name: report.metrics[name] for name in ("train/l2", "train/codebook", "val/psnr")}
        for report in train(config)
        if report.evaluated
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_first_losses_are_the_golden_ones(backbone):
    golden = json.loads(GOLDEN.read_text())[backbone]
    for step, found in first_losses(backbone).items():
        assert found == pytest.approx(golden[step], rel=1e-4), f"step {step}"
        assert all(math.isfinite(value) for value in found.values())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({backbone: first_losses(backbone) for backbone in BACKBONES}, indent=1) + "\n")
