"""A folder of pictures as a file of indices."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vqvae
from vqvae import checkpoint, pictures, tokens
from vqvae.config import TrainConfig
from vqvae.conversion import from_dict, replace
from vqvae.data import load
from vqvae.model import build_model
from vqvae.sources import DataError
from vqvae.tokens import TokensError


@pytest.fixture(scope="module")
def config():
    model = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8, "patch": 8}
    quantizer = {"codebook_size": 300, "code_dim": 4}
    return replace(TrainConfig(), {"model": model, "quantizer": quantizer, "data.resolution": 32})


@pytest.fixture(scope="module")
def model(config, tmp_path_factory):
    """A model as a user has it, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoint.save_model(build_model(config), config, folder, {})
    return vqvae.load(folder)


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of several sizes in nested folders, and a broken one."""
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate([(32, 32), (40, 64), (100, 50), (20, 30), (33, 32), (32, 90), (64, 64)]):
        place = tmp_path / "faces" / f"part {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        colors = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC).save(place / f"{number}.png")
    (tmp_path / "faces" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "faces"


NAMES = [f"part {number % 2}/{number}.png" for number in (0, 2, 4, 6, 1, 3, 5)]


def test_every_picture_of_a_folder_becomes_indices_by_its_name(model, config, folder, tmp_path):
    told = []
    written = tokens.write(
        model, config, folder, tmp_path / "tokens.npz", batch_size=3, tell=lambda *numbers: told.append(numbers)
    )
    assert written == ((7, 4, 4), "uint16", (f"{folder}/broken.jpg: cannot identify image file",))
    assert told == [(3, 8), (6, 8), (8, 8)]
    found = np.load(tmp_path / "tokens.npz", allow_pickle=False)
    assert set(found) == {"indices", "names", "codebook_size", "resolution", "patch", "config"}
    assert found["names"].tolist() == NAMES
    assert (found["codebook_size"], found["resolution"], found["patch"]) == (300, 32, 8)
    assert from_dict(json.loads(str(found["config"]))) == config
    assert (found["indices"].shape, found["indices"].dtype) == ((7, 4, 4), np.uint16)
    for name, indices in zip(NAMES, found["indices"], strict=True):
        square = pictures.fit(pictures.read(folder / name, 32), 32)
        assert np.array_equal(model.encode(pictures.to_images(square[None]))[0], indices), name
    assert len(np.unique(found["indices"])) > 10


def test_decoded_indices_are_the_models_reconstructions(model, config, folder, tmp_path):
    tokens.write(model, config, folder, tmp_path / "tokens.npz", batch_size=4)
    found = np.load(tmp_path / "tokens.npz")
    decoded = model.decode(torch.from_numpy(found["indices"].astype("int64")))
    square = pictures.fit(pictures.read(folder / NAMES[2], 32), 32)
    with torch.no_grad():
        made = model(pictures.to_images(square[None])).images
    torch.testing.assert_close(decoded[2:3], made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kind"), [(256, np.uint8), (257, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32)]
)
def test_an_index_takes_the_fewest_bytes_that_hold_the_codebook(config, folder, tmp_path, size, kind):
    large = replace(config, {"quantizer.codebook_size": size})
    tokens.write(build_model(large).eval(), large, folder, tmp_path / "tokens.npz")
    assert np.load(tmp_path / "tokens.npz")["indices"].dtype == kind


def test_pictures_become_square_as_in_training(model, config, folder, tmp_path):
    stretched = replace(config, {"data.fit": "stretch"})
    tokens.write(model, stretched, folder, tmp_path / "tokens.npz")
    square = pictures.fit(pictures.read(folder / NAMES[1], 32), 32, "stretch")
    wanted = model.encode(pictures.to_images(square[None]))[0]
    assert np.array_equal(np.load(tmp_path / "tokens.npz")["indices"][1], wanted)


def test_a_split_holds_the_pictures_that_training_puts_there(model, config, folder, tmp_path):
    data = {"cache": str(tmp_path / "cache"), "validation_fraction": 0.3, "test_fraction": 0.2, "group_by": "file"}
    config = replace(config, {f"data.{name}": value for name, value in data.items()})
    names = []
    for split in ("train", "validation", "test"):
        written = tokens.write(model, config, folder, tmp_path / f"{split}.npz", split=split)
        assert written.left_out == ()
        found = np.load(tmp_path / f"{split}.npz")
        images = getattr(load(dataclasses.replace(config.data, source="folder", path=str(folder))), split)
        assert np.array_equal(model.encode(pictures.to_images(images[np.arange(len(images))])), found["indices"])
        names += found["names"].tolist()
    assert sorted(names) == sorted(NAMES)
    without = replace(config, {"data.test_fraction": 0.0})
    with pytest.raises(TokensError) as caught:
        tokens.write(model, without, folder, tmp_path / "none.npz", split="test")
    assert str(caught.value) == f"{folder}: its split test is empty; expected one with pictures"


def refusal(kind, *arguments):
    with pytest.raises(kind) as caught:
        tokens.write(*arguments)
    return str(caught.value)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(model, config, folder, tmp_path):
    taken = tmp_path / "taken.npz"
    taken.write_text("mine")
    assert refusal(TokensError, model, config, folder, taken) == f"{taken}: there already; expected a new file"
    assert taken.read_text() == "mine"
    target = tmp_path / "taken.npz" / "tokens.npz"
    assert refusal(TokensError, model, config, folder, target) == f"{target}: can't be written: File exists"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pictures in it" in refusal(DataError, model, config, empty, tmp_path / "tokens.npz")
    (empty / "broken.png").write_bytes(b"no picture")
    assert refusal(TokensError, model, config, empty, tmp_path / "tokens.npz") == (
        f"{empty}: none of its 1 pictures can be read, {empty}/broken.png: cannot identify image file"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"taken.npz", "empty", "faces"}


def test_a_file_that_is_not_finished_does_not_appear(model, config, folder, tmp_path):
    def stop(_done, _total):
        assert not (tmp_path / "tokens.npz").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.write(model, config, folder, tmp_path / "tokens.npz", tell=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]
