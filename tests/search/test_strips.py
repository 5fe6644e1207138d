import base64
import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from search import strips


def png(pixels, **options):
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG", **options)
    return held.getvalue()


def pixels_of(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))).convert("RGB"))


def sheet(originals, level):
    """Two rows of three pairs of 4 x 4: the given originals, each over a flat reconstruction."""
    flat = np.full_like(originals[0], level)
    return np.concatenate([originals[0], flat, originals[1], flat])


ORIGINALS = np.random.default_rng(0).integers(0, 255, (2, 4, 12, 3), dtype=np.uint8)


def test_originals_stand_once_above_what_each_trial_made_of_them():
    rows = strips.strips([("best", png(sheet(ORIGINALS, 10))), ("baseline", png(sheet(ORIGINALS, 20)))], side=4)
    assert [[picture.label for picture in row] for row in rows] == [["original", "best", "baseline"]] * 2
    for row, originals in zip(rows, ORIGINALS, strict=True):
        assert np.array_equal(pixels_of(row[0]), originals)
        assert (pixels_of(row[1]) == 10).all()
        assert (pixels_of(row[2]) == 20).all()
        assert (row[0].width, row[0].height) == (12, 4)


def test_sheets_that_do_not_go_together_are_not_put_side_by_side():
    first = ("best", png(sheet(ORIGINALS, 10)))
    others = ORIGINALS.copy()
    others[1, 0, 0] += 1
    assert strips.strips([first, ("other originals", png(sheet(others, 20)))], side=4) == []
    assert strips.strips([first, ("broken", b"no picture")], side=4) == []
    assert strips.strips([first, ("smaller", png(sheet(ORIGINALS[:, :, :8], 20)))], side=4) == []
    assert strips.strips([first], side=3) == []
    assert strips.strips([], side=4) == []


def test_a_large_picture_shrinks_and_a_broken_one_is_left_out():
    wide = strips.whole("wide", png(np.zeros((8, 4 * strips.WIDEST, 3), dtype=np.uint8)))
    assert (wide.width, wide.height) == (strips.WIDEST, 2)
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    kept = base64.b64decode(strips.whole("noise", png(noise)).uri.partition(",")[2])
    assert len(kept) < 512 * 512 * 3 / 2
    assert strips.whole("broken", b"\x89PNG\r\n") is None


def test_what_a_file_says_besides_its_pixels_does_not_reach_the_page():
    said = PngInfo()
    said.add_text("Comment", "<script>alert(1)</script>")
    picture = strips.whole("plain", png(np.zeros((4, 4, 3), dtype=np.uint8), pnginfo=said))
    assert b"alert" not in base64.b64decode(picture.uri.partition(",")[2])
