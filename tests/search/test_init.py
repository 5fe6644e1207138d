"""A space file from a folder of pictures: what it says of them, and that it can be searched."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from search import beginning, launch, probe, space


def planted(folder):
    """60 files: 40 crops of a photograph, 4 of them gray, 5 with transparency, 6 turned, 7 copies; 3 broken."""
    folder.mkdir(parents=True)
    picture = np.asarray(photographs.astronaut())
    for number in range(50):
        row, column = 44 * (number // 8), 52 * (number % 8)
        crop = Image.fromarray(picture[row : row + 100, column : column + 140])
        if number < 4:
            crop = crop.convert("L")
        elif number < 9:
            crop.putalpha(128)
        exif = Image.Exif()
        exif[0x0112] = 6 if 9 <= number < 15 else 1
        crop.save(folder / f"{number:02}.png", exif=exif)
        if number >= 43:
            crop.save(folder / f"{number:02}-again.jpg", quality=90)
    for number in range(3):
        whole = io.BytesIO()
        Image.fromarray(picture).save(whole, "PNG")
        (folder / f"broken{number}.png").write_bytes(whole.getvalue()[: 30000 * number])
    return folder


@pytest.fixture
def without_lpips(tmp_path, monkeypatch):
    """A machine without the weights of LPIPS."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ["faces", "a: \"b'#.", "line\nbreak: [", "a  # b", "\\u0041 {é} 😀 \x07 %TAG"])
def test_the_file_loads_and_can_be_trained_whatever_the_folder_is_called(name, tmp_path, command, without_lpips):
    folder = planted(tmp_path / name)
    _, out, _ = command("init", str(folder), "--no-cost", check=0)
    (tmp_path / "mine.yaml").write_text(out)
    loaded = space.load(tmp_path / "mine.yaml")
    assert loaded.base.data.path == str(folder)
    assert loaded.objective.metric == "val/psnr"
    launch.check_trainable(loaded)
    command("validate", "mine.yaml", check=0)


def test_the_comments_say_what_was_found(tmp_path, command, without_lpips):
    planted(tmp_path / "faces")
    _, out, err = command("init", "faces", "--no-cost", check=0)
    assert err == ""
    said = " ".join(line.strip("# ") for line in out.splitlines() if line.startswith("#"))
    assert "Pictures: 60 files in 1 folder. Of 60 that were looked at 3 can't be read, 4 are gray" in said
    assert "5 have transparency (laid over white), 6 are turned by their EXIF tag" in said
    assert "their median 100 px; the long side is 1.40 times the short one in the median" in said
    assert "Of 57 that were compared 7 are near-duplicates of another one." in said
    assert '\nstudy: "faces"\n' in out
    assert "    resolution: 64 " in out
    assert "the middle square: 71 % of the median picture" in out


def test_the_cost_goes_to_the_standard_error(tmp_path, command, without_lpips, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.05)
    planted(tmp_path / "faces")
    _, out, err = command("init", "faces", check=0)
    assert "hours" not in out
    assert "search under asha: " in err
    assert "will not fit" not in err


def test_a_folder_without_usable_pictures_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    assert refused("init", "none").startswith(f"vqsearch: {tmp_path}/none: no such folder; expected one with pictures")
    assert refused("init", "empty").startswith(f"vqsearch: {tmp_path}/empty: no pictures in it; expected files ending")
    assert refused("init", "broken") == (
        f"vqsearch: {tmp_path}/broken: none of 1 pictures can be read; expected whole ones"
    )


@pytest.mark.parametrize(("memory", "resolution"), [(6.0, 128), (48.0, 256)])
@pytest.mark.parametrize("lpips", [True, False])
def test_the_file_for_gpus_loads_and_can_be_trained(memory, resolution, lpips, tmp_path):
    from search.survey import Survey

    seen = Survey(
        place="/data/faces", total=60000, folders=(60000,), looked=2000, broken=0, decoded=512, near_duplicates=3,
        gray=0, alpha=0, turned=0, short_sides=(200, 400, 512, 512, 600), aspects=(1.0, 1.2, 1.5),
    )  # fmt: skip
    machine = beginning.Hardware(gpus=4, gpu="A6000", memory_gib=memory, cores=64)
    (tmp_path / "mine.yaml").write_text(beginning.write(seen, machine, lpips))
    loaded = space.load(tmp_path / "mine.yaml")
    launch.check_trainable(loaded)
    assert (loaded.parallel, loaded.resources.gpus, loaded.base.data.resolution) == (4, 1, resolution)
    assert loaded.objective.metric == ("val/lpips_alex" if lpips else "val/psnr")
    assert (loaded.base.data.validation_fraction, loaded.base.data.test_fraction) == (0.02, 0.02)
