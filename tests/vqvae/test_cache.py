import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vqvae import cache, sources
from vqvae.config import DataConfig
from vqvae.sources import DataError

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


def config(folder, **settings):
    home = str(folder.parent / "cache")
    return DataConfig(**{"source": "folder", "path": str(folder), "resolution": 8, "cache": home, **settings})


def decoded(folder, tell=None, **settings):
    settings = config(folder, **settings)
    return cache.decoded(sources.find(settings), settings, tell)


def grays(found):
    return {name: int(found.pixels[row, 0, 0, 0]) // 20 for row, name in enumerate(found.names)}


def made(folder):
    return {path: path.stat().st_mtime_ns for path in (folder.parent / "cache").glob("*/pixels.raw")}


def start(folder, sleep_s):
    """A process that decodes a folder, so many seconds a picture, and prints how many it decoded and got."""
    code = (
        "import sys, time; from PIL import Image\n"
        "from vqvae import cache, sources; from vqvae.config import DataConfig\n"
        "read, opened = Image.open, []\n"
        f"def slow(file):\n    opened.append(file); time.sleep({sleep_s}); return read(file)\n"
        "Image.open = slow\n"
        "config = DataConfig(source='folder', path=sys.argv[1], resolution=8, cache=sys.argv[2])\n"
        "found = cache.decoded(sources.find(config), config)\n"
        "print(len(opened), len(found.names))\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(folder.parent / "cache")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(folder):
    """Waits until a process has begun to decode; the folder it does so in."""
    end = time.monotonic() + WALL_S
    while time.monotonic() < end:
        for file in (folder.parent / "cache").glob("*.partial/pixels.raw"):
            return file.parent
        time.sleep(0.02)
    raise AssertionError("it never began")


def test_every_picture_lies_under_its_name(folder):
    assert grays(decoded(folder)) == {f"part{i % 2}/{i}.{('png', 'BMP')[i % 2]}": i for i in range(12)}


def test_the_cache_is_mapped_not_read(folder):
    found = decoded(folder)
    assert isinstance(found.pixels, np.memmap)
    assert not found.pixels.flags.writeable


def test_it_is_decoded_once_and_again_when_a_file_changes(folder):
    decoded(folder)
    before = made(folder)
    decoded(folder)
    assert made(folder) == before
    Image.new("RGB", (30, 30), (250,) * 3).save(folder / "part0" / "0.png")
    assert grays(decoded(folder))["part0/0.png"] == 12
    assert len(made(folder)) == 2


@pytest.mark.parametrize("settings", [{"resolution": 4}, {"fit": "stretch"}, {"small": "skip"}])
def test_other_settings_of_the_pixels_are_another_cache(folder, settings):
    decoded(folder)
    decoded(folder, **settings)
    assert len(made(folder)) == 2


def test_settings_of_splits_and_augmentation_share_one_cache(folder):
    decoded(folder)
    decoded(folder, validation_fraction=0.3, test_fraction=0.0, group_by="file", flip=0.0, sharpness=1.0)
    assert len(made(folder)) == 1


def test_another_version_of_the_code_is_another_cache(folder, monkeypatch):
    decoded(folder)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    decoded(folder)
    assert len(made(folder)) == 2


def test_a_cache_that_is_there_needs_no_right_to_write(folder, monkeypatch):
    decoded(folder)

    def refuse(*_, **__):
        raise AssertionError("a lock was taken")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert len(decoded(folder).names) == 12


def test_broken_truncated_and_empty_files_are_named_with_the_reason(folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        whole = folder / f"short.{suffix}"
        Image.fromarray(noise).save(whole)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = decoded(folder)
    assert len(found.names) == len(found.pixels) == 12
    assert len(found.unread) == 8
    assert found.unread["broken.jpg"] == "cannot identify image file"
    assert found.unread["empty.png"] == "the file is empty"
    assert found.unread["short.jpg"].startswith("image file is truncated (")
    assert decoded(folder).unread == found.unread


def test_random_damage_never_ends_the_decoding(folder):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        Image.fromarray(noise).save(folder / f"whole.{suffix}")
        whole = np.frombuffer((folder / f"whole.{suffix}").read_bytes(), dtype=np.uint8)
        for index in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 4)] = generator.integers(0, 256, 4)
            (folder / f"damaged{index}.{suffix}").write_bytes(damaged.tobytes())
    found = decoded(folder)
    assert len(found.names) + len(found.unread) == 12 + 6 * 41
    assert len(found.unread) > 20


def test_a_crop_of_a_large_jpeg_is_taken_at_its_own_scale(folder):
    noise = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large.jpg")
    found = decoded(folder, fit="crop")
    whole = np.asarray(Image.open(folder / "large.jpg"))
    assert np.array_equal(found.pixels[found.names.index("large.jpg")], whole[46:54, 56:64])


def test_small_pictures_are_enlarged_or_left_out_as_asked(folder):
    Image.new("RGB", (100, 7), "white").save(folder / "low.png")
    Image.new("L", (8, 8), "white").save(folder / "just.png")
    assert {"low.png", "just.png"} <= set(decoded(folder).names)
    found = decoded(folder, small="skip")
    assert (found.small, len(found.names), found.unread) == (["low.png"], 13, {})
    assert decoded(folder, small="skip").small == ["low.png"]


def test_nothing_usable_is_an_empty_cache(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    for _ in range(2):
        assert decoded(tmp_path / "pictures").pixels.shape == (0, 8, 8, 3)


def test_a_file_that_cannot_be_had_now_ends_the_decoding_and_is_not_kept_as_broken(folder):
    settings = config(folder)
    source = sources.find(settings)
    hidden = (folder / "part0" / "4.png").rename(folder / "part0" / "4.hidden")
    with pytest.raises(DataError) as caught:
        cache.decoded(source, settings)
    expected = f"{folder}/part0/4.png: No such file or directory; expected a file that can be read"
    assert str(caught.value) == expected
    hidden.rename(folder / "part0" / "4.png")
    assert len(decoded(folder).names) == 12
    assert not list((folder.parent / "cache").glob("*.partial"))


def test_progress_is_told_from_nothing_to_all(folder, monkeypatch):
    monkeypatch.setattr(cache, "TELL_EVERY_S", 0.0)
    told = []
    decoded(folder, told.append)
    assert told == [cache.Decoding(done, 12) for done in [*range(13), 12]]
    told.clear()
    decoded(folder, told.append)
    assert told == []


def test_progress_is_told_at_most_once_in_a_while(folder, monkeypatch):
    monkeypatch.setattr(cache, "TELL_EVERY_S", 3600.0)
    told = []
    decoded(folder, told.append)
    assert told == [cache.Decoding(0, 12), cache.Decoding(12, 12)]


def test_processes_that_start_together_decode_once(folder):
    running = [start(folder, 0.1) for _ in range(2)]
    assert sorted(process.communicate(timeout=WALL_S)[0].split() for process in running) == [["0", "12"], ["12", "12"]]


def test_a_process_that_waits_tells_for_whom_and_how_far_that_is(folder, monkeypatch):
    monkeypatch.setattr(cache, "TELL_EVERY_S", 0.1)
    other = start(folder, 0.25)
    begun(folder)
    told = []
    found = decoded(folder, told.append)
    assert other.communicate(timeout=WALL_S)[0].split() == ["12", "12"]
    assert len(found.names) == 12
    assert {state.waiting_for for state in told} - {"another process"} == {
        f"process {other.pid} on {socket.gethostname()}"
    }
    assert any(state.total == 12 for state in told)


def test_a_process_killed_half_way_leaves_nothing_that_is_taken_for_a_cache(folder):
    killed = start(folder, 0.3)
    left = begun(folder)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=WALL_S)
    assert left.is_dir()
    assert made(folder) == {left / "pixels.raw": (left / "pixels.raw").stat().st_mtime_ns}
    found = decoded(folder)
    assert sorted(grays(found).values()) == list(range(12))
    assert not left.exists()


def test_a_process_waiting_for_one_that_is_killed_goes_on_itself(folder):
    killed = start(folder, 2.0)
    begun(folder)
    waiting = start(folder, 0.0)
    time.sleep(1.5)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=WALL_S)
    assert waiting.communicate(timeout=WALL_S)[0].split() == ["12", "12"]


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError) as caught:
        decoded(folder, cache=str(tmp_path / "file" / "cache"))
    assert str(caught.value) == (
        f"{tmp_path}/file/cache: cannot hold the cache of decoded images (0 MiB): Not a directory; "
        f"expected a folder with room (data.cache)"
    )


def test_too_little_room_is_seen_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(DataError) as caught:
        decoded(folder, resolution=512)
    assert str(caught.value) == (
        f"{folder.parent}/cache: cannot hold the cache of decoded images (9 MiB): only 1 MiB are free; "
        f"expected a folder with room (data.cache)"
    )
    assert made(folder) == {}


def test_a_disk_that_fills_up_while_decoding_is_one_clear_line(folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The nearest to a full disk that needs no rights: a file may have 1,000 bytes, and not 12 x 8 x 8 x 3.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError) as caught:
            decoded(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == (
        f"{folder.parent}/cache: cannot hold the cache of decoded images (0 MiB): File too large; "
        f"expected a folder with room (data.cache)"
    )
    assert [path.suffix for path in (folder.parent / "cache").iterdir()] == [".lock"]


def test_a_damaged_cache_is_named(folder):
    decoded(folder)
    (file,) = made(folder)
    file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        decoded(folder)
    assert str(caught.value).startswith(f"{file.parent}: a damaged cache of decoded images (")
    assert str(caught.value).endswith("); expected it whole: remove it")


def test_memory_does_not_grow_with_the_number_of_pictures():
    done = []

    def work(item):
        done.append(item)
        return item

    results = cache._in_order(work, iter(range(10_000)))
    assert [next(results) for _ in range(5)] == list(range(5))
    time.sleep(0.1)
    assert len(done) <= cache.AHEAD * len(os.sched_getaffinity(0)) + 10
    results.close()
