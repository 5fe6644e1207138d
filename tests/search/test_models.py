"""Training, exporting and tokenizing with one model, on a model that trains in a second."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

import vqvae
from search import models, records
from search.errors import OutputError, UserError
from search.reconstruct import in_tiles
from vqvae import pictures
from vqvae.config import TrainConfig, VqvaeError
from vqvae.conversion import replace
from vqvae.data import Decoding


def tiny(**settings):
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 16, "patch": 16},
        "quantizer": {"codebook_size": 16, "code_dim": 4},
        "loss.perceptual": 0.0,
        "optimizer": {"warmup_steps": 1},
        "data.resolution": 64,
        "evaluation": {"lpips": False, "images": 4},
        "steps": 6,
        "batch_size": 4,
        "micro_batch": 4,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert models.train(tiny(), folder) == 0
    return folder


def checkpoints(folder):
    return [path.name for path in (folder / "checkpoints").iterdir()]


def test_a_run_keeps_its_last_checkpoint_and_leaves_a_model(trained):
    assert checkpoints(trained) == ["step-00000006"]
    assert {path.name for path in trained.iterdir()} == {"checkpoints", "model", "reconstructions.png", "worst.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("settings", [{}, {"checkpoint_every": 2}], ids=["plain", "with checkpoints on the way"])
def test_a_signal_stops_a_run_and_a_second_call_goes_on_as_if_nothing_had_been(tmp_path, trained, number, settings):
    said = []
    step = 2 if settings else 1

    def show(report):
        if report.step == step and not report.stopped:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    assert models.train(tiny(**settings), tmp_path, said.append, show) == number
    assert signal.getsignal(number) is before
    kept = f"{tmp_path}/checkpoints/step-{step:08d}"
    assert models.outcome(tmp_path, number) == [f"stopped; the same command goes on from {kept}"]
    assert checkpoints(tmp_path) == [f"step-{step:08d}"]
    assert not (tmp_path / "model").exists()
    said.clear()
    assert models.train(tiny(**settings), tmp_path, said.append) == 0
    assert said[0] == f"going on from {kept}"
    weights = "model/weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (trained / weights).read_bytes()


def test_what_comes_next_is_said_as_commands(tmp_path):
    folder = tmp_path / "my run"
    assert models.outcome(folder, 0) == [
        f"the model is in {folder}/model",
        f"look at it:   {folder}/reconstructions.png, and worst.png beside it",
        f"reconstruct:  vqsearch reconstruct '{folder}/model' PICTURE --to DIR",
        f"tokenize:     vqsearch tokenize '{folder}/model' FOLDER --to tokens.npz",
    ]


def test_a_model_says_what_it_measured(trained):
    metrics = json.loads((trained / "model" / "config.json").read_text())["metrics"]
    assert {"val/psnr", "val/codebook_usage", "images_per_s"} <= set(metrics)
    assert not [name for name in metrics if name.startswith("train/")]


def test_missing_weights_are_said_before_pictures_are_looked_for_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    config = tiny(**{"data.source": "folder", "data.path": "/no/such/folder", "loss.perceptual": 1.0})
    with pytest.raises(UserError) as caught:
        models.train(replace(config, {"evaluation.lpips": True}), tmp_path / "runs" / "mine")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/home/hub/checkpoints/vgg16-397923af.pth and {tmp_path}/home/hub/checkpoints/")
    assert said.endswith("; or do without: --set loss.perceptual=0 --set evaluation.lpips=false")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_late_leaves_no_folder(tmp_path):
    with pytest.raises(VqvaeError, match="no such folder"):
        models.train(tiny(**{"data.source": "folder", "data.path": "/no/such"}), tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(VqvaeError, match="no such folder"):
        models.train(tiny(**{"data.source": "folder", "data.path": "/no/such"}), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []  # it was there before


def test_pictures_that_are_left_out_are_told_once(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"broken-{number:02d}.png").write_bytes(b"no picture")
    settings = {"data.source": "folder", "data.path": str(folder), "data.cache": str(tmp_path / "cache"), "rungs": [2]}
    said, far = [], []
    models.train(tiny(**settings, steps=4), tmp_path / "run", said.append, decoding=far.append)
    assert said[:3] == [
        "10 training and 1 validation images of 64 px",
        "left out, could not be read: 12",
        f"  {folder}/broken-00.png: cannot identify image file",
    ]
    assert said[12:] == ["  and 2 more"]
    assert far[-1] == Decoding(24, 24)


UNWRITABLE = "/dev/null/x: can't be written: Not a directory"


def test_a_folder_that_cannot_be_made_is_named_before_training():
    with pytest.raises(OutputError) as caught:
        models.train(tiny(), Path("/dev/null/x"))
    assert str(caught.value) == UNWRITABLE


def test_what_cannot_be_written_while_training_is_named(tmp_path):
    (tmp_path / "reconstructions.png").mkdir()
    with pytest.raises(OutputError) as caught:
        models.train(tiny(), tmp_path)
    assert str(caught.value) == f"{tmp_path}: can't be written: Is a directory"
    assert checkpoints(tmp_path) == ["step-00000006"]


@pytest.fixture
def study(trained, tmp_path):
    """A study with one trial, whose checkpoint is that of `trained`."""
    shutil.copytree(trained / "checkpoints" / "step-00000006", tmp_path / "root" / "a")
    shutil.copy(trained / "reconstructions.png", tmp_path / "root" / "a")
    study = optuna.create_study(study_name="tiny")
    records.set_output(study, str(tmp_path / "root"))
    trial = study.ask()
    records.set_checkpoint(trial, records.CheckpointRecord(step=6, folder="a", metrics={"val/psnr": 20.0}))
    study.tell(trial, 20.0)
    return study


def test_a_model_is_exported_with_its_pictures(study, tmp_path):
    assert models.export(study, 0, tmp_path / "model") == f"trial 0 at step 6 -> {tmp_path}/model"
    exported = {path.name for path in (tmp_path / "model").iterdir()}
    assert exported == {"weights.safetensors", "config.json", "reconstructions.png"}


def test_a_folder_that_an_export_cannot_make_is_named(study, tmp_path):
    (tmp_path / "file").write_text("")
    for target, problem in (
        ("/dev/null/x", "cannot be written: Not a directory"),
        (f"{tmp_path}/file", "expected a folder that is new or empty"),
        (f"{tmp_path}/{'x' * 300}", "can't be written: File name too long"),
    ):
        with pytest.raises((OutputError, VqvaeError)) as caught:
            models.export(study, 0, Path(target))
        assert str(caught.value) == f"{target}: {problem}"


@pytest.fixture
def faces(tmp_path):
    """Three pictures of the model's own size, and a broken one."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(3):
        colors = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(colors).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_tokens_decode_to_the_pictures_that_reconstruct_makes(trained, faces, tmp_path):
    told = []
    lines = models.tokenize(
        trained / "model", faces, tmp_path / "tokens.npz", batch_size=2, tell=lambda *numbers: told.append(numbers)
    )
    assert lines == [
        "left out, could not be read: 1",
        f"  {faces}/broken.png: cannot identify image file",
        f"3 pictures, 4 x 4 tokens of 16 codes each, uint8 -> {tmp_path}/tokens.npz",
    ]
    assert told == [(2, 4), (4, 4)]
    found = np.load(tmp_path / "tokens.npz")
    images = vqvae.load(trained / "model").decode(torch.from_numpy(found["indices"].astype("int64")))
    for name, indices, decoded in zip(found["names"], found["indices"], images, strict=True):
        original = pictures.to_images(np.asarray(Image.open(faces / str(name)))[None])
        made, codes = in_tiles(vqvae.load(trained / "model"), original)
        assert torch.allclose(made[0], decoded, atol=1e-4)  # rounding, of another batch
        assert np.array_equal(codes, indices)


def test_tokens_are_made_from_a_checkpoint_too(trained, faces, tmp_path):
    for name, folder in (("a", "model"), ("b", "checkpoints/step-00000006")):
        models.tokenize(trained / folder, faces, tmp_path / f"{name}.npz", batch_size=4, device="cpu")
    assert np.array_equal(np.load(tmp_path / "a.npz")["indices"], np.load(tmp_path / "b.npz")["indices"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(trained, faces, tmp_path):
    with pytest.raises(UserError) as caught:
        models.tokenize(trained / "model", faces, tmp_path / "tokens.npz", batch_size=4, device="cuda")
    assert str(caught.value) == "--device: must be cpu or auto, since torch finds no CUDA device, but got 'cuda'"
