import io
import os
import sys
import tarfile

import pytest
from PIL import Image

from vqvae import sources, testing
from vqvae.config import DataConfig
from vqvae.sources import DataError


def png(level=0):
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


def names(**settings):
    return [name for name, _ in sources.find(DataConfig(**settings)).pictures()]


def refusal(**settings):
    with pytest.raises(DataError) as caught:
        list(sources.find(DataConfig(**settings)).pictures())
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "deep/d.gif", ".hidden.png", ".trash/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_passes_the_checks_of_every_source(tmp_path):
    for level in range(30):
        Image.new("RGB", (32, 32), (8 * level,) * 3).save(tmp_path / f"{level}.png")
    report = testing.report("data", "folder", {"data.path": str(tmp_path), "data.group_by": "file"})
    assert not report.failed, str(report)


def test_a_folder_is_searched_in_depth_but_not_for_what_is_hidden(folder):
    assert names(source="folder", path=str(folder)) == ["a.JPG", "b.png", "deep/d.gif", "deep/er/c.webp"]


def test_links_are_followed_and_loops_of_links_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f.png").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(folder / "none.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    found = names(source="folder", path=str(folder))
    assert found == ["a.JPG", "b.png", "deep/d.gif", "deep/er/c.webp", "link/f.png"]


def test_what_is_no_file_is_no_picture(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    assert len(names(source="folder", path=str(folder))) == 4


def test_names_may_be_any_bytes(folder):
    (folder / os.fsdecode(b"\xff\xfe caf\xe9.png")).write_bytes(png())
    source = sources.find(DataConfig(source="folder", path=str(folder)))
    assert dict(source.pictures())[os.fsdecode(b"\xff\xfe caf\xe9.png")].read_bytes() == png()


def test_the_identity_of_a_folder_follows_names_sizes_and_times(folder):
    def identity():
        return sources.find(DataConfig(source="folder", path=str(folder))).identity

    seen = [identity()]
    (folder / "b.png").write_bytes(b"1")
    seen.append(identity())
    os.utime(folder / "b.png", ns=(0, 0))
    seen.append(identity())
    (folder / "b.png").rename(folder / "z.png")
    seen.append(identity())
    (folder / "notes.txt").write_text("else")
    assert identity() == seen[-1]
    assert len(set(seen)) == 4


def test_a_missing_folder_is_refused(tmp_path):
    expected = "no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff)"
    assert refusal(source="folder", path=f"{tmp_path}/none") == f"{tmp_path}/none: {expected}"


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert refusal(source="folder", path=str(tmp_path)).startswith(
        f"{tmp_path}: no pictures in it; expected files ending in .jpg, .jpeg"
    )


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, offline, with its own cache out of the way."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def saved(datasets, tmp_path):
    """Two subsets written by save_to_disk."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def subset(levels):
        rows = {"image": [{"bytes": png(level), "path": None} for level in levels], "label": levels}
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": subset([1, 2, 3]), "extra": subset([9])}).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_a_saved_data_set_is_read_by_subset_and_column(saved):
    source = sources.find(DataConfig(source="huggingface", path=saved, subset="extra"))
    assert (source.total, list(source.pictures())) == (1, [("0", png(9))])
    assert names(source="huggingface", path=saved) == ["0", "1", "2"]


def test_a_data_set_saved_alone_is_read_whole(datasets, tmp_path):
    datasets.Dataset.from_dict({"picture": [png(5), None]}).save_to_disk(tmp_path / "alone")
    source = sources.find(DataConfig(source="huggingface", path=str(tmp_path / "alone"), column="picture"))
    assert list(source.pictures()) == [("0", png(5)), ("1", b"")]


def test_a_local_folder_that_load_dataset_understands_is_read(datasets, tmp_path):
    (tmp_path / "local" / "train").mkdir(parents=True)
    for level in range(3):
        (tmp_path / "local" / "train" / f"{level}.png").write_bytes(png(level))
    source = sources.find(DataConfig(source="huggingface", path=str(tmp_path / "local")))
    assert [(name, path.read_bytes()) for name, path in source.pictures()] == [(str(n), png(n)) for n in range(3)]


def test_a_local_parquet_file_is_read(saved, datasets, tmp_path):
    (tmp_path / "parquet").mkdir()
    datasets.load_from_disk(saved)["train"].to_parquet(tmp_path / "parquet" / "train.parquet")
    source = sources.find(DataConfig(source="huggingface", path=str(tmp_path / "parquet")))
    assert [content for _, content in source.pictures()] == [png(level) for level in (1, 2, 3)]


def test_the_identity_of_a_data_set_is_the_same_until_it_is_saved_anew(saved):
    def identity(**settings):
        return sources.find(DataConfig(source="huggingface", path=saved, **settings)).identity

    assert identity() == identity()
    assert identity() != identity(subset="extra")


def test_wrong_subsets_columns_and_names_are_refused_with_what_there_is(saved, datasets):
    settings = {"source": "huggingface", "path": saved}
    assert refusal(**settings, subset="test") == (
        f"data set {saved}: no subset 'test' (data.subset); expected one of train, extra"
    )
    assert refusal(**settings, column="img") == (
        f"data set {saved}: no column 'img' (data.column); expected one of image, label"
    )
    assert refusal(**settings, column="label") == (
        f"data set {saved}: column 'label' (data.column) holds Value('int64'); expected images"
    )
    message = refusal(source="huggingface", path="nobody/no-such-data")
    assert message.startswith("data set nobody/no-such-data: ")
    assert message.endswith(
        "; expected a name or folder that load_dataset of Hugging Face datasets takes, "
        "or a folder written by save_to_disk"
    )


@pytest.fixture
def tars(tmp_path):
    """Three tars of two samples each; one of them has two pictures."""
    pytest.importorskip("webdataset")
    for shard in range(3):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for sample in range(2):
                parts = {f"{sample:03}.png": png(10 * shard + sample), f"{sample:03}.json": b"{}"}
                if (shard, sample) == (2, 1):
                    parts[f"{sample:03}.mask.PNG"] = png(99)
                for name, content in parts.items():
                    entry = tarfile.TarInfo(f"cats/{name}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return tmp_path


def test_pictures_in_tars_are_named_by_tar_and_key(tars):
    found = dict(sources.find(DataConfig(source="webdataset", path=f"{tars}/shard-{{0..1}}.tar")).pictures())
    assert list(found) == [f"shard-{shard}.tar/cats/00{sample}.png" for shard in (0, 1) for sample in (0, 1)]
    assert found["shard-1.tar/cats/000.png"] == png(10)
    assert names(source="webdataset", path=f"{tars}/*.tar")[4:] == [
        "shard-2.tar/cats/000.png",
        "shard-2.tar/cats/001.mask.png",
        "shard-2.tar/cats/001.png",
    ]


def test_tars_that_are_missing_or_cut_off_are_refused(tars):
    assert refusal(source="webdataset", path=f"{tars}/none-*.tar") == (
        f"{tars}/none-*.tar: no such tars; expected a glob or brace pattern, such as shards/{{000..012}}.tar"
    )
    whole = (tars / "shard-0.tar").read_bytes()
    (tars / "shard-0.tar").write_bytes(whole[:700])
    message = refusal(source="webdataset", path=f"{tars}/shard-0.tar")
    assert message.startswith(f"{tars}/shard-0.tar: ")
    assert message.endswith("; expected a whole tar of samples")


@pytest.mark.parametrize(("source", "package"), [("huggingface", "datasets"), ("webdataset", "webdataset")])
def test_an_extra_that_is_not_installed_is_named(monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(source=source, path="x")
    assert message.startswith(f"data.source {source}: the package {package} cannot be imported (")
    assert message.endswith(f"); expected it installed, as by: pip install 'vqsearch[{source}]'")
