"""Sheets of pictures of any size, made by a model of random weights."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from search.cli import cli
from search.errors import OutputError, UserError
from search.reconstruct import in_tiles, reconstruct
from vqvae import checkpoint, metrics, pictures
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.data import DataError
from vqvae.model import build_model

WITHOUT = (
    "LPIPS is left out: {}/hub/checkpoints/alexnet-owt-7be5be79.pth: no such file; --lpips-trunk FILE names another one"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    settings = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 16, "patch": 16},
        "quantizer": {"codebook_size": 16, "code_dim": 4},
        "data.resolution": 64,
    }
    config = replace(TrainConfig(), settings)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported") / "model"
    checkpoint.save_model(build_model(config).eval(), config, folder, {})
    return folder


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """Nothing in torch.hub's folder, whatever machine this is."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


def save(path, width=100, height=70, seed=0):
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    return save(tmp_path / "cat.png")


def panels(sheet, width, height, columns=2):
    """The four pictures of a sheet, found by the white that is between them."""
    pixels = np.asarray(Image.open(sheet)).astype(int)
    cell = (pixels.shape[1] - pictures.GAP) // columns
    down = (pixels.shape[0] - pictures.GAP) // 2
    corners = [
        (pictures.GAP + row * down + 2 * pictures.LINE, pictures.GAP + column * cell)
        for row in (0, 1)
        for column in (0, 1)
    ]
    return [pixels[top : top + height, left : left + width] for top, left in corners]


def test_a_sheet_shows_original_reconstruction_difference_and_codes(model, tmp_path):
    path = save(tmp_path / "cat.png", 300, 70)
    before = path.read_bytes()
    (found,) = reconstruct(model, [path], tmp_path)
    assert found.sheet == tmp_path / "cat.reconstruction.png"
    assert path.read_bytes() == before
    original, made, difference, codes = panels(found.sheet, 300, 70)
    assert np.array_equal(original, np.asarray(Image.open(path)))
    decoded, indices = in_tiles(checkpoint.load(model), pictures.to_images(original[None].astype(np.uint8)))
    assert np.array_equal(made, pictures.to_pictures(decoded)[0])
    assert np.abs(difference - np.minimum(4 * np.abs(original - made), 255)).max() <= 4  # of rounding half a level
    assert indices.shape == (5, 19)
    for row, column in ((0, 0), (4, 18), (2, 7)):
        square = codes[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert np.array_equal(square, np.broadcast_to(pictures.code_map(indices.numpy(), 1)[row, column], square.shape))


def test_the_numbers_are_those_of_the_picture(model, picture, tmp_path):
    (found,) = reconstruct(model, [picture], tmp_path / "r", "random")
    original = pictures.to_images(np.asarray(Image.open(picture))[None])
    decoded, indices = in_tiles(checkpoint.load(model), original)
    assert set(found.metrics) == {"psnr", "ssim", "lpips_random"}
    assert found.metrics["psnr"] == metrics.psnr(decoded, original).item()
    assert found.metrics["ssim"] == metrics.ssim(decoded, original).item()
    assert (found.width, found.height, found.tokens, found.codes) == (100, 70, 5 * 7, 16)
    assert found.distinct == len(indices.unique()) > 1


def test_tokens_that_only_fill_a_tile_up_are_not_counted(model):
    image = torch.zeros(1, 3, 65, 17)
    decoded, indices = in_tiles(checkpoint.load(model), image)
    assert decoded.shape == image.shape
    assert indices.shape == (5, 2)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 9)])
def test_pictures_of_any_size_have_a_sheet(model, tmp_path, size):
    said = []
    (found,) = reconstruct(model, [save(tmp_path / "a.png", *size)], tmp_path, "random", said.append)
    assert (found.width, found.height) == size
    assert said == [f"LPIPS is left out of {tmp_path}/a.png: it is smaller than 31 px"]
    assert set(found.metrics) == {"psnr", "ssim"}
    assert min(Image.open(found.sheet).size) > 100


def ran(*arguments):
    done = CliRunner().invoke(cli, ["reconstruct", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_line_for_people_and_without_weights_why_lpips_is_missing(model, picture, tmp_path):
    (found,) = reconstruct(model, [picture], tmp_path / "r")
    code, out, err = ran(model, picture, "--to", tmp_path / "r")
    psnr, ssim = found.metrics["psnr"], found.metrics["ssim"]
    sheet = tmp_path / "r" / "cat.reconstruction.png"
    line = f"{picture} -> {sheet}  100 x 70, PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, {found.distinct} of 16 codes\n"
    assert (code, out) == (0, line)
    assert err == WITHOUT.format(tmp_path / "home") + "\n"


def test_json_for_programs(model, picture, tmp_path):
    code, out, _ = ran(model, picture, "--to", tmp_path / "r", "--json")
    (found,) = reconstruct(model, [picture], tmp_path / "r")
    assert code == 0
    assert json.loads(out) == [
        {
            "path": str(picture),
            "sheet": str(found.sheet),
            "width": 100,
            "height": 70,
            "psnr": found.metrics["psnr"],
            "ssim": found.metrics["ssim"],
            "lpips": None,
            "tokens": 35,
            "distinct_codes": found.distinct,
            "codebook_size": 16,
        }
    ]
    (random,) = json.loads(ran(model, picture, "--to", tmp_path / "r", "--json", "--lpips-trunk", "random")[1])
    assert random["lpips"] is None  # a random trunk never passes for the real one
    assert random["lpips_random"] > 0


def test_a_folder_stands_for_all_pictures_below_it_but_not_for_earlier_sheets(model, tmp_path):
    for name in ("a.png", "b/a.jpg", "c.png"):
        save(tmp_path / "faces" / name)
    (tmp_path / "faces" / "broken.png").write_bytes(b"no picture")
    said = []
    for _ in range(2):
        found = list(reconstruct(model, [tmp_path / "faces"], tmp_path / "faces", "random", said.append))
    assert [str(each.sheet.relative_to(tmp_path / "faces")) for each in found] == [
        "a.reconstruction.png",
        "b/a.reconstruction.png",
        "c.reconstruction.png",
    ]
    broken = f"  {tmp_path}/faces/broken.png: this picture can't be read: cannot identify image file"
    assert said == ["left out, could not be read: 1", broken] * 2


def test_a_folder_without_a_picture_that_can_be_read_is_refused(model, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path}/none: no pictures in it; expected files ending in "):
        list(reconstruct(model, [tmp_path / "none"], tmp_path / "r"))
    save(tmp_path / "sheets" / "a.reconstruction.png")
    with pytest.raises(UserError) as caught:
        list(reconstruct(model, [tmp_path / "sheets"], tmp_path / "r"))
    assert str(caught.value) == f"{tmp_path}/sheets: nothing in it but sheets of this command; expected pictures"
    (tmp_path / "none" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        list(reconstruct(model, [tmp_path / "none"], tmp_path / "r"))
    broken = f"{tmp_path}/none/broken.png: this picture can't be read: cannot identify image file"
    assert str(caught.value) == f"none of 1 pictures can be read: {broken}"
    assert not (tmp_path / "r").exists()


def test_two_pictures_of_one_name_are_refused_but_not_one_that_is_named_twice(model, picture, tmp_path):
    other = tmp_path / "other" / "cat.jpg"
    with pytest.raises(UserError) as caught:
        list(reconstruct(model, [picture, other], tmp_path / "r"))
    sheet = tmp_path / "r" / "cat.reconstruction.png"
    assert str(caught.value) == f"{picture} and {other}: both would become {sheet}; expected different names"
    assert not (tmp_path / "r").exists()
    assert len(list(reconstruct(model, [picture, picture], tmp_path / "r"))) == 1


def bomb():
    """The start of a PNG of 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"no picture", "cannot identify image file"),
        (bomb(), "Image size (3600000000 pixels) exceeds limit of "),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot identify image file"),
    ],
    ids=["missing", "text", "a bomb", "zeros"],
)
def test_a_picture_that_cannot_be_read_is_named_before_anything_is_written(model, picture, tmp_path, content, reason):
    broken = tmp_path / "dog.png"
    if content:
        broken.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(reconstruct(model, [picture, broken], tmp_path / "r"))
    assert str(caught.value).startswith(f"{broken}: this picture can't be read: {reason}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_folder_that_sheets_cannot_go_to_is_named(model, picture):
    with pytest.raises(OutputError) as caught:
        list(reconstruct(model, [picture], Path("/dev/null/x")))
    assert str(caught.value) == "/dev/null/x: can't be written: Not a directory"


def test_weights_that_were_asked_for_and_are_not_there_are_refused(model, picture, tmp_path):
    with pytest.raises(UserError) as caught:
        list(reconstruct(model, [picture], tmp_path / "r", f"{tmp_path}/none.pth"))
    expected = "expected torchvision's alexnet-owt-7be5be79.pth, or no such flag to go without LPIPS"
    assert str(caught.value) == f"--lpips-trunk: {tmp_path}/none.pth: no such file; {expected}"
    assert not (tmp_path / "r").exists()


def test_the_weights_that_judged_the_model_are_taken_if_they_are_here_but_never_random_ones(model, picture, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"")
    config = checkpoint.load_config(model)
    for file, problem in (
        ("random", WITHOUT.format(tmp_path / "home")),
        (f"{tmp_path}/gone.pth", WITHOUT.format(tmp_path / "home")),
        (f"{tmp_path}/mine.pth", f"LPIPS is left out: {tmp_path}/mine.pth: expected a name that ends in the checksum"),
    ):
        folder, said = tmp_path / f"model-{Path(file).stem}", []
        judged = replace(config, {"evaluation.lpips_trunk": file})
        checkpoint.save_model(checkpoint.load(model), judged, folder, {})
        (found,) = reconstruct(folder, [picture], tmp_path / "r", say=said.append)
        assert set(found.metrics) == {"psnr", "ssim"}
        assert said[0].startswith(problem)


def test_a_hostile_name_is_shown_as_text_on_the_sheet_and_in_the_line(model, tmp_path):
    path = save(tmp_path / "a\x1b[2J\nb.png")
    (found,) = reconstruct(model, [path], tmp_path / "r")
    assert "a\\x1b[2J\\nb.png" in found.line()
    assert found.sheet.is_file()
