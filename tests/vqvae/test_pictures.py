import numpy as np
import pytest
import torch
from PIL import Image

from vqvae import pictures


def halves(first, second, mode="RGB"):
    picture = Image.new(mode, (40, 20), first)
    picture.paste(second, (20, 0, 40, 20))
    return picture


def colors(picture):
    pixels = np.asarray(picture)
    return pixels[10, 10].tolist(), pixels[10, 30].tolist()


def test_transparency_is_laid_over_white(tmp_path):
    halves((255, 0, 0, 255), (255, 0, 0, 0), "RGBA").save(tmp_path / "a.png")
    assert colors(pictures.read(tmp_path / "a.png")) == ([255, 0, 0], [255, 255, 255])


def test_a_transparent_palette_color_is_laid_over_white(tmp_path):
    palette = Image.new("P", (40, 20), 0)
    palette.putpalette([0, 0, 255, 0, 255, 0])
    palette.paste(1, (20, 0, 40, 20))
    palette.save(tmp_path / "a.png", transparency=1)
    assert colors(pictures.read(tmp_path / "a.png")) == ([0, 0, 255], [255, 255, 255])


def test_gray_becomes_three_equal_colors(tmp_path):
    halves(17, 200, "L").save(tmp_path / "a.png")
    assert colors(pictures.read(tmp_path / "a.png")) == ([17, 17, 17], [200, 200, 200])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_reduced_to_eight_not_clipped(tmp_path, suffix):
    pixels = np.full((20, 40), 65535, dtype=np.uint16)
    pixels[:, :20] = 200 * 257
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert colors(pictures.read(tmp_path / f"a.{suffix}")) == ([200, 200, 200], [255, 255, 255])


def test_a_picture_stands_upright_by_its_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves((255, 0, 0), (0, 0, 255)).save(tmp_path / "a.png", exif=exif)
    assert colors(pictures.read(tmp_path / "a.png")) == ([0, 0, 255], [255, 0, 0])


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"^floating-point pixels have no fixed white$"):
        pictures.read(tmp_path / "a.tiff")


def test_a_large_jpeg_is_decoded_at_a_fraction_that_is_enough(tmp_path):
    Image.new("RGB", (800, 640)).save(tmp_path / "a.jpg")
    assert pictures.read(tmp_path / "a.jpg", 64).size == (200, 160)
    assert pictures.read(tmp_path / "a.jpg").size == (800, 640)


def test_fit_takes_the_central_square_and_enlarges_what_is_small():
    picture = Image.new("RGB", (30, 10), "black")
    picture.paste("white", (7, 0, 23, 10))
    fitted = pictures.fit(picture, 32)
    assert fitted.shape == (32, 32, 3)
    assert fitted.min() == 255


def test_pictures_survive_the_way_to_images_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    images = pictures.to_images(levels)
    assert images.shape == (1, 3, 16, 16)
    assert (images.min(), images.max()) == (-1, 1)
    assert np.array_equal(pictures.to_pictures(images), levels)


def test_images_out_of_range_are_clipped():
    images = torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert pictures.to_pictures(images).max(axis=(1, 2, 3)).tolist() == [0, 255]


def test_the_sheet_shows_originals_above_their_reconstructions():
    originals = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    made = pictures.sheet(originals, -originals, columns=2)
    assert made[::2, ::2, 0].tolist() == [[0, 128], [255, 128], [255, 255], [0, 255]]
