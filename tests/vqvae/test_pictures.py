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


def test_thirty_two_bits_are_refused_unless_they_hold_sixteen(tmp_path):
    Image.fromarray(np.full((20, 40), 200 * 257, dtype=np.int32)).save(tmp_path / "a.tiff")
    assert colors(pictures.read(tmp_path / "a.tiff")) == ([200, 200, 200], [200, 200, 200])
    Image.fromarray(np.full((20, 40), 65536, dtype=np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"^32-bit pixels have no fixed white$"):
        pictures.read(tmp_path / "a.tiff")


def test_cmyk_becomes_rgb(tmp_path):
    halves((0, 255, 255, 0), (0, 0, 0, 255), "CMYK").save(tmp_path / "a.jpg", quality=100)
    red, black = colors(pictures.read(tmp_path / "a.jpg"))
    assert red == pytest.approx([255, 0, 0], abs=4)
    assert black == pytest.approx([0, 0, 0], abs=4)


def test_gray_with_transparency_is_laid_over_white(tmp_path):
    halves((0, 128), (0, 0), "LA").save(tmp_path / "a.png")
    assert colors(pictures.read(tmp_path / "a.png")) == ([127, 127, 127], [255, 255, 255])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (40, 20), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert colors(pictures.read(tmp_path / f"a.{suffix}")) == ([255, 0, 0], [255, 0, 0])


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


STRIPES = np.zeros((40, 80, 3), dtype=np.uint8)
STRIPES[:, 32:48] = 255


@pytest.mark.parametrize(("how", "white"), [("short-side", 8 * 20), ("stretch", 4 * 20), ("crop", 16 * 20)])
def test_a_picture_becomes_square_as_asked(how, white):
    fitted = pictures.fit(Image.fromarray(STRIPES), 20, how)
    assert fitted.shape == (20, 20, 3)
    assert (fitted[..., 0] > 127).sum() == white


def test_crop_resamples_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (31, 44, 3), dtype=np.uint8)
    assert np.array_equal(pictures.fit(Image.fromarray(noise), 16, "crop"), noise[7:23, 14:30])
    assert np.array_equal(pictures.fit(Image.fromarray(noise[:, :31]), 31, "crop"), noise[:, :31])


@pytest.mark.parametrize("how", ["short-side", "stretch", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (7, 9), (1000, 900)])
def test_pictures_of_any_size_fit(how, size):
    assert pictures.fit(Image.new("RGB", size, "lime"), 16, how).reshape(-1, 3).min(0).tolist() == [0, 255, 0]


def test_shrinking_averages_what_is_too_fine_to_show():
    board = np.indices((512, 512)).sum(0) % 2 * 255
    fitted = pictures.fit(Image.fromarray(board.astype(np.uint8)).convert("RGB"), 32)
    assert fitted.min() >= 125
    assert fitted.max() <= 130


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


def test_differences_are_amplified_and_clipped():
    images = torch.tensor([-1.0, -0.9, 1.0, 7.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    references = torch.tensor([-1.0, -1.0, 0.0, 1.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert pictures.difference(images, references)[0, 0, :, 0].tolist() == [0, 51, 255, 0]
    assert (pictures.difference(images, references) == pictures.difference(references, images)).all()


def test_a_code_has_always_the_same_color_in_a_square_for_each_token():
    indices = np.array([[0, 5, 0], [65535, 5, 1]])
    shown = pictures.code_map(indices, 4)
    assert shown.shape == (8, 12, 3)
    for row, column in np.ndindex(2, 3):
        square = shown[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1, 3)
        assert (square == pictures.code_map(indices[row : row + 1, column : column + 1], 1)[0, 0]).all()
    assert len({tuple(color) for color in pictures.code_map(indices, 1).reshape(-1, 3)}) == 4


DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
"""Of linear RGB: Machado et al. 2009, table 1, at a severity of 1."""


def test_successive_codes_differ_for_eyes_that_confuse_red_and_green():
    colors = pictures.code_map(np.arange(64)[None], 1)[0] / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEUTERANOPIA).T, 0, 1) ** (1 / 2.2)
    steps = np.linalg.norm(np.diff(seen, axis=0), axis=1)
    assert steps.min() > 0.25
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(64, 1)]
    assert apart.min() > 0.02


def captions(count, title="a", details="b"):
    return [(title, details)] * count


def test_captioned_panels_stand_in_rows_with_words_above_each():
    panels = [np.full((300, 400, 3), level, dtype=np.uint8) for level in (0, 60, 120)]
    made = pictures.captioned(panels, captions(3))
    gap, words = pictures.GAP, 2 * pictures.LINE
    assert made.shape == (2 * (300 + words) + 3 * gap, 2 * 400 + 3 * gap, 3)
    for place, level in enumerate((0, 60, 120)):
        left, top = gap + place % 2 * (400 + gap), gap + place // 2 * (300 + words + gap) + words
        assert (made[top : top + 300, left : left + 400] == level).all()
        assert made[top - words : top, left : left + 400].min() < 100
        assert (made[top - 2 : top, left : left + 400] == 255).all()
    assert (made[-(300 + words + gap) :, -(400 + gap) :] == 255).all()  # no fourth panel


@pytest.mark.parametrize(
    ("size", "times"), [((64, 64), 4), ((100, 70), 3), ((1, 1), 256), ((4, 2000), 1), ((4, 300), 3)]
)
def test_small_panels_are_enlarged_pixel_by_pixel(size, times):
    panel = np.random.default_rng(0).integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
    made = pictures.captioned([panel], captions(1), columns=1)
    top, left = pictures.GAP + 2 * pictures.LINE, pictures.GAP
    enlarged = made[top : top + times * size[1], left : left + times * size[0]]
    assert (enlarged == panel.repeat(times, 0).repeat(times, 1)).all()
    assert made.shape[0] == top + times * size[1] + pictures.GAP


def test_words_that_are_too_long_are_cut_and_never_run_into_the_next_panel():
    panel = np.zeros((300, 300, 3), dtype=np.uint8)
    made = pictures.captioned([panel, panel], captions(2, "W" * 300, "i" * 3000))
    assert made.shape[1] <= 2 * 1.5 * pictures.LEAST + 3 * pictures.GAP
    assert (made[:, : pictures.GAP] == 255).all()
    middle = made.shape[1] // 2
    assert (made[:, middle - pictures.GAP // 2 + 2 : middle + pictures.GAP // 2 - 2] == 255).all()
    short = pictures.captioned([panel, panel], captions(2, "a", "b"))
    assert short.shape[1] == 2 * 300 + 3 * pictures.GAP
