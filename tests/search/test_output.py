import pytest
from pyarrow import fs

from search import output
from search.errors import OutputError


def write(text):
    return lambda folder: (folder / "a.txt").write_text(text)


@pytest.fixture(params=["folder", "url", "bucket"])
def root(request, tmp_path, monkeypatch):
    if request.param == "bucket":
        # Anything but a local file system takes the ways of a bucket: copies, no renaming.
        bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        monkeypatch.setattr(output, "filesystem", lambda _root: (bucket, "out"))
    return f"file://{tmp_path}/out" if request.param == "url" else str(tmp_path / "out")


def test_what_was_saved_is_fetched_and_saved_again_and_deleted(root):
    output.check(root)
    output.save(root, "s/trials/00001/step-1", write("one"))
    output.save(root, "s/trials/00001/step-1", write("two"))
    with output.fetched(root, "s/trials/00001/step-1") as folder:
        assert (folder / "a.txt").read_text() == "two"
    output.delete(root, "s/trials/00001/step-1")
    output.delete(root, "s/trials/00001/step-1")
    with pytest.raises(OutputError, match="no folder s/trials/00001/step-1 in the output root, though the study names"):
        output.fetched(root, "s/trials/00001/step-1").__enter__()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        output.save(str(tmp_path), "s/step-1", fail)
    assert not list(tmp_path.rglob("*.txt"))
    assert not list(tmp_path.rglob("step-1*"))


@pytest.mark.parametrize("folder", ["../x", "a/../../x", "/etc"])
def test_paths_from_a_study_cannot_leave_the_root(tmp_path, folder):
    with pytest.raises(OutputError, match="which lies outside the output root"), output.fetched(str(tmp_path), folder):
        pass


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"^{tmp_path}/file: the output root can't be written: "):
        output.check(str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"^nosuch://x: this is no folder and no URL of a bucket: "):
        output.check("nosuch://x")


def test_a_root_that_has_to_be_there_is_not_made(tmp_path):
    with pytest.raises(OutputError, match=r"out: the output root of the study is not there; --output says where it"):
        output.check(str(tmp_path / "out"), create=False)
    assert not (tmp_path / "out").exists()
