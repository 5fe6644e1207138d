import io
import os
import socket
import tarfile

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from vqvae import data
from vqvae.config import DataConfig
from vqvae.metrics import psnr
from vqvae.pictures import to_images


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, each of its own gray, in three subfolders."""
    folder = tmp_path / "pictures"
    for index in range(12):
        place = folder / f"part{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (20 * index,) * 3).save(place / f"{index:02}.png")
    return folder


@pytest.fixture
def look_alikes(tmp_path):
    """Sixteen crops of a photograph, three files of each: as PNG, as JPEG and at half the size."""
    folder = tmp_path / "look-alikes"
    folder.mkdir()
    for index in range(16):
        row, column = 128 * (index // 4), 128 * (index % 4)
        crop = Image.fromarray(photographs.astronaut()[row : row + 128, column : column + 128])
        crop.save(folder / f"{index:02}.png")
        crop.save(folder / f"{index:02}-again.jpg", quality=80)
        crop.resize((64, 64), Image.Resampling.LANCZOS).save(folder / f"{index:02}-half.png")
    return folder


def load(folder, **settings):
    settings = {"resolution": 8, "cache": str(folder.parent / "cache"), **settings}
    return data.load(DataConfig(source="folder", path=str(folder), **settings))


def refusal(folder, **settings):
    with pytest.raises(data.DataError) as caught:
        load(folder, **settings)
    return str(caught.value)


def parts(splits):
    return splits.train, splits.validation, splits.test


def sizes(splits):
    return [len(part) for part in parts(splits)]


def all_grays(splits):
    return sorted(gray for part in parts(splits) for gray in grays(part))


def grays(images):
    return sorted((images[np.arange(len(images))][:, 0, 0, 0] // 20).tolist())


def test_photographs_are_split_by_photograph():
    splits = data.load(DataConfig(resolution=64))
    assert sizes(splits) == [987, 82, 77]
    assert splits.validation[np.arange(3)].shape == (3, 64, 64, 3)
    assert (splits.skipped, splits.small, splits.near_duplicates) == ((), 0, 0)


def test_photographs_need_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(data.load(DataConfig(resolution=64)).train) == 987


def test_painting_each_held_out_crop_in_its_mean_color_gives_18_8_decibels():
    images = to_images(data.load(DataConfig(resolution=64)).validation[np.arange(82)])
    painted = images.mean((2, 3), keepdim=True).expand_as(images)
    assert psnr(painted, images).mean().item() == pytest.approx(18.84, abs=0.01)


def test_a_folder_is_split_without_overlap(folder):
    splits = load(folder, validation_fraction=0.25, test_fraction=0.25)
    assert sizes(splits) == [6, 3, 3]
    assert all_grays(splits) == list(range(12))


def test_the_split_does_not_depend_on_the_place_of_the_folder(folder):
    before = grays(load(folder).validation)
    folder.rename(folder.parent / "moved")
    assert grays(load(folder.parent / "moved").validation) == before


def test_no_test_split_where_none_is_wanted(folder):
    assert sizes(load(folder, test_fraction=0.0)) == [11, 1, 0]


def test_near_duplicates_are_counted_and_stay_together(look_alikes):
    settings = {"resolution": 64, "validation_fraction": 0.2, "test_fraction": 0.2}
    splits = load(look_alikes, **settings)
    assert splits.near_duplicates == 32
    homes = [{row // 3 for row in part.rows.tolist()} for part in parts(splits)]  # three files each, in a row
    assert [len(home) for home in homes] == [10, 3, 3]
    assert len(set.union(*homes)) == 16


def test_split_by_file_they_are_still_counted(look_alikes):
    splits = load(look_alikes, resolution=64, validation_fraction=0.2, test_fraction=0.2, group_by="file")
    assert splits.near_duplicates == 32
    homes = [{row // 3 for row in part.rows.tolist()} for part in parts(splits)]
    assert homes[0] & homes[1]


def test_folders_stay_together_where_asked(folder):
    splits = load(folder, group_by="folder")
    assert sizes(splits) == [4, 4, 4]
    assert all(len({gray % 3 for gray in grays(part)}) == 1 for part in parts(splits))


def test_flat_pictures_do_not_become_one_group(folder):
    splits = load(folder)
    assert splits.near_duplicates == 0
    assert sizes(splits) == [10, 1, 1]


def test_splits_that_look_alikes_make_impossible_are_refused(tmp_path):
    black = tmp_path / "black"
    black.mkdir()
    for index in range(40):
        Image.new("RGB", (9, 9)).save(black / f"{index}.png")
    assert refusal(black) == (
        f"{black}: too few pictures: expected at least 3 that are no near-duplicates of each other for its splits, "
        f"but got 1 of 40 (data.group_by)"
    )
    assert sizes(load(black, group_by="file")) == [36, 2, 2]


def test_too_few_folders_are_refused(folder):
    for picture in folder.glob("part2/*"):
        picture.unlink()
    assert refusal(folder, group_by="folder") == (
        f"{folder}: too few pictures: expected at least 3 in different folders for its splits, "
        f"but got 2 of 8 (data.group_by)"
    )


def test_too_few_pictures_are_refused(tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for index in range(2):
        Image.new("RGB", (8, 8), (index,) * 3).save(few / f"{index}.png")
    Image.new("RGB", (7, 8)).save(few / "low.png")
    (few / "broken.png").write_bytes(b"")
    assert refusal(few, small="skip") == (
        f"{few}: too few pictures (1 could not be read, 1 are smaller than 8 px): "
        f"expected at least 3 for its splits, but got 2"
    )


def test_broken_and_small_files_are_skipped_counted_and_named(folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (24, 7)).save(folder / "low.png")
    splits = load(folder, small="skip")
    assert sum(sizes(splits)) == 12
    assert splits.skipped == (
        f"{folder}/broken.jpg: cannot identify image file",
        f"{folder}/empty.png: the file is empty",
    )
    assert splits.small == 1
    again = load(folder, small="skip")  # from the cache
    assert (again.skipped, again.small) == (splits.skipped, 1)


def test_a_list_of_splits_goes_before_fractions_and_groups(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"")
    (tmp_path / "list").write_text(
        "validation part0/00.png\nvalidation part1/01.png\ntest part0/03.png\ntest broken.png\n"
    )
    splits = load(folder, splits=str(tmp_path / "list"), group_by="folder", validation_fraction=0.5)
    assert [grays(part) for part in parts(splits)] == [[2, *range(4, 12)], [0, 1], [3]]
    (tmp_path / "list").write_text("validation part0/0.png\n")
    assert refusal(folder, splits=str(tmp_path / "list")) == (
        f"{tmp_path}/list:1: no picture part0/0.png; expected the name of one, such as part0/00.png"
    )


def test_pictures_of_every_kind_are_read_from_one_folder(tmp_path):
    folder = tmp_path / "kinds"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side is up
    upright = Image.new("RGB", (30, 30), "white")
    upright.paste("black", (0, 0, 15, 30))  # left half black; turned by the tag: the upper one
    upright.save(folder / "exif.jpg", exif=exif, quality=100)
    Image.new("CMYK", (20, 30), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=100)
    Image.new("RGBA", (20, 30), (255, 0, 0, 0)).save(folder / "alpha.png")
    Image.new("P", (300, 20), 0).save(folder / "palette.gif")
    Image.new("LA", (9, 9), (255, 0)).save(folder / "gray-alpha.webp", lossless=True)
    Image.fromarray(np.full((40, 20), 65535, dtype=np.uint16)).save(folder / "sixteen.png")
    splits = load(folder, group_by="file")
    found = {}
    for part in parts(splits):
        for row in part.rows:
            found[sorted(os.listdir(folder))[row]] = part.pixels[row]
    assert found["exif.jpg"][1].max() < 10 < 245 < found["exif.jpg"][-2].min()
    assert found["cmyk.jpg"][4, 4].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert found["alpha.png"].min() == 255
    assert found["palette.gif"].max() == 0
    assert found["gray-alpha.webp"].min() == 255
    assert found["sixteen.png"].min() == 255
    assert splits.skipped == ()


def test_tars_and_data_sets_are_split_and_cached_as_folders_are(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "huggingface"))
    datasets.disable_progress_bars()
    contents = [b""]
    for level in range(1, 10):
        stream = io.BytesIO()
        Image.new("RGB", (12, 12), (20 * level,) * 3).save(stream, "PNG")
        contents.append(stream.getvalue())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for level, content in enumerate(contents):
            entry = tarfile.TarInfo(f"{level}.png")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    datasets.Dataset.from_dict({"image": contents}).save_to_disk(tmp_path / "set")
    settings = {"resolution": 8, "cache": str(tmp_path / "cache")}
    for source, path, skipped in (("webdataset", "*.tar", "a.tar/0.png"), ("huggingface", "set", "0")):
        for _ in range(2):
            splits = data.load(DataConfig(source=source, path=f"{tmp_path}/{path}", **settings))
            assert all_grays(splits) == list(range(1, 10))
            assert sizes(splits) == [7, 1, 1]
            assert splits.skipped == (f"{skipped}: the file is empty",)
    assert len(list((tmp_path / "cache").glob("*/pixels.raw"))) == 2


def test_a_hugging_face_data_set_has_no_folders_to_group_by():
    with pytest.raises(data.DataError) as caught:
        data.load(DataConfig(source="huggingface", path="x", group_by="folder"))
    assert str(caught.value) == (
        "data.group_by: must be near-duplicates or file, since the pictures of a Hugging Face data set lie in no "
        "folders, but got 'folder'"
    )


def test_decoding_is_told(folder):
    told = []
    data.load(
        DataConfig(source="folder", path=str(folder), resolution=8, cache=str(folder.parent / "cache")), told.append
    )
    assert told == [data.Decoding(0, 12), data.Decoding(12, 12)]


def test_fewer_training_images_are_among_the_more_and_held_out_ones_stay(folder):
    whole, eight, four = (load(folder, images=most) for most in (0, 8, 4))
    assert len(whole.train) == len(load(folder, images=100).train) == 10
    rows = [set(found.train.rows.tolist()) for found in (whole, eight, four)]
    assert [len(each) for each in rows] == [10, 8, 4]
    assert rows[2] < rows[1] < rows[0]
    assert four.train.rows.tolist() == load(folder, images=4).train.rows.tolist()
    for part in ("validation", "test"):
        assert getattr(four, part).rows.tolist() == getattr(whole, part).rows.tolist()


def test_fewer_of_the_bundled_photographs_train_too():
    whole, few = (data.load(DataConfig(resolution=64, images=most)) for most in (0, 50))
    assert len(few.train) == 50 < len(whole.train)
    assert len(few.validation) == len(whole.validation)
