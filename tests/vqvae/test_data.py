import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqvae import data
from vqvae.config import DataConfig
from vqvae.metrics import psnr
from vqvae.pictures import to_images

WALL_S = 30


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, each of its own gray, in two subfolders."""
    folder = tmp_path / "pictures"
    for index in range(12):
        place = folder / f"part{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (20 * index,) * 3).save(place / f"{index}.{('png', 'BMP')[index % 2]}")
    return folder


def load(folder, **settings):
    settings = {"resolution": 8, "cache": str(folder.parent / "cache"), **settings}
    return data.load(DataConfig(source="folder", path=str(folder), **settings))


def grays(images):
    return sorted((images[np.arange(len(images))][:, 0, 0, 0] // 20).tolist())


def test_photographs_are_cut_into_a_grid():
    splits = data.load(DataConfig(resolution=64))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [987, 82, 77]
    assert splits.validation[np.arange(3)].shape == (3, 64, 64, 3)


@pytest.mark.parametrize(("resolution", "crops"), [(256, [594, 22, 32]), (512, [287, 10, 4])])
def test_at_high_resolutions_the_crops_overlap_and_small_photographs_are_enlarged(resolution, crops):
    splits = data.load(DataConfig(resolution=resolution))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == crops
    assert splits.test[np.arange(1)].shape == (1, resolution, resolution, 3)


def test_photographs_need_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(data.load(DataConfig(resolution=64)).train) == 987


def test_painting_each_held_out_crop_in_its_mean_color_gives_18_8_decibels():
    images = to_images(data.load(DataConfig(resolution=64)).validation.spread(512))
    painted = images.mean((2, 3), keepdim=True).expand_as(images)
    assert psnr(painted, images).mean().item() == pytest.approx(18.84, abs=0.01)


def test_a_photograph_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(data.PHOTOGRAPHS, "test", (("skimage", "data/none.png"),))
    with pytest.raises(data.DataError) as caught:
        data.load(DataConfig(resolution=64))
    assert str(caught.value).startswith("photograph data/none.png: not in the installed scikit-image (looked at ")


def test_a_folder_is_searched_in_depth_and_split_without_overlap(folder):
    splits = load(folder, validation_fraction=0.25, test_fraction=0.25)
    parts = [grays(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [6, 3, 3]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(12))


def test_the_split_does_not_depend_on_the_place_of_the_folder(folder):
    before = grays(load(folder).validation)
    folder.rename(folder.parent / "moved")
    assert grays(load(folder.parent / "moved").validation) == before


def test_groups_are_never_divided():
    groups = [str(index // 5) for index in range(100)]
    rows = data.split(groups, 0.2, 0.2)
    homes = [{groups[row] for row in part} for part in rows.values()]
    assert [len(home) for home in homes] == [12, 4, 4]
    assert len(set.union(*homes)) == 20


def test_no_test_split_where_none_is_wanted(folder):
    splits = load(folder, test_fraction=0.0)
    assert (len(splits.test), len(splits.validation), len(splits.train)) == (0, 1, 11)


def test_broken_files_are_skipped_and_named(folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    whole = (folder / "part0" / "0.png").read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    splits = load(folder)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 12
    first, second = splits.skipped
    assert first == f"{folder}/broken.jpg: cannot identify image file"
    assert second.startswith(f"{folder}/short.png: ")
    assert load(folder).skipped == splits.skipped  # from the cache too


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"/none: no such folder; expected one with pictures \(.jpg, .jpeg"):
        load(tmp_path / "none")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(data.DataError, match=r"/empty: no pictures in it; expected files ending in .jpg, .jpeg"):
        load(tmp_path / "empty")


def test_too_few_pictures_are_refused(tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8)).save(few / f"{index}.png")
    (few / "broken.png").write_bytes(b"")
    with pytest.raises(data.DataError) as caught:
        load(few)
    expected = f"{few}: too few pictures (1 could not be read): expected at least 3 for its splits, but got 2"
    assert str(caught.value) == expected


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(data.DataError) as caught:
        load(folder, cache=str(tmp_path / "file" / "cache"))
    assert str(caught.value) == (
        f"{tmp_path}/file/cache: cannot hold the cache of decoded images (0 MiB): Not a directory; "
        f"expected a folder with room (data.cache)"
    )


def test_the_cache_is_decoded_once_and_again_when_a_file_changes(folder):
    load(folder)
    made = {path: path.stat().st_mtime_ns for path in (folder.parent / "cache").glob("*/pixels.npy")}
    load(folder, validation_fraction=0.3)
    assert {path: path.stat().st_mtime_ns for path in (folder.parent / "cache").glob("*/pixels.npy")} == made
    Image.new("RGB", (30, 30), (250,) * 3).save(folder / "part0" / "0.png")
    splits = load(folder)
    assert sorted(grays(splits.train) + grays(splits.validation) + grays(splits.test)) == list(range(1, 13))
    assert len(list((folder.parent / "cache").glob("*/pixels.npy"))) == 2


def test_a_cache_left_half_made_is_made_again(folder):
    load(folder)
    (place,) = (folder.parent / "cache").glob("*/pixels.npy")
    place.parent.rename(place.parent.with_suffix(".partial"))
    assert len(load(folder).train) == 10


def test_the_cache_is_mapped_not_read(folder):
    assert isinstance(load(folder).train.pixels, np.memmap)


def test_processes_that_start_together_decode_once(folder):
    code = (
        "import os, sys, time; from PIL import Image; from vqvae import data; from vqvae.config import DataConfig\n"
        "read = Image.open\n"
        "def slow(path):\n    os.write(1, b'opened '); time.sleep(0.2); return read(path)\n"
        "Image.open = slow\n"
        "config = DataConfig(source='folder', path=sys.argv[1], resolution=8, cache=sys.argv[2])\n"
        "print(len(data.load(config).train))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(folder.parent / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(process.communicate(timeout=WALL_S)[0].split() for process in running)
    assert told == [["10"], ["opened"] * 12 + ["10"]]


def test_spread_is_even_and_always_the_same():
    images = data.Images(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))
    assert images.spread(4).ravel().tolist() == [0, 3, 6, 9]
    assert images.spread(99).ravel().tolist() == list(range(10))
