import io
import socket
import time
from types import SimpleNamespace

import pytest
from pyarrow import fs
from rich.console import Console

from search import detach, launch, output, space, trainable
from search.errors import OutputError
from search.progress import View
from search.searcher import Assignment
from vqvae.checkpoint import CheckpointError


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


def test_a_root_that_vanished_is_not_made_anew(tmp_path):
    with pytest.raises(FileNotFoundError):
        output.save(str(tmp_path / "gone"), "s/trials/00001/step-1", write("one"))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("error", [None, CheckpointError("step-1: can't be written: I/O error"), OSError("I/O error")])
def test_a_root_that_vanishes_while_a_checkpoint_is_written_is_said_to_be_away(tmp_path, error):
    root = tmp_path / "out"
    root.mkdir()
    output.claim(str(root), "s", "1")

    def checkpoint(folder):
        root.rename(tmp_path / "away")
        if error is not None:
            raise error
        (folder / "a.txt").write_text("half")

    assignment = Assignment(
        number=1, study="s", root=str(root), checkpoint=None, config="{}", gpus=0.0, control="control"
    )
    progress = SimpleNamespace(checkpoint=checkpoint, pictures={})
    with pytest.raises(OutputError, match=r"out: the folder s, where the study has its files, is not there any more; "):
        trainable._save(assignment, "s/trials/00001/step-1", progress)
    assert not root.exists()


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


def test_a_bucket_that_does_not_answer_is_named_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        root = f"s3://b/x?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=us-east-1"
        began = time.monotonic()
        with pytest.raises(OutputError) as error:
            output.check(root, create=False, timeout_s=2.0)
    assert str(error.value) == f"{root}: the output root does not answer within 2 s"
    assert time.monotonic() - began < 10


def test_a_bucket_that_refuses_is_named_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    root = f"s3://b/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    with pytest.raises(OutputError) as error:
        output.check(root, create=False)
    assert str(error.value).startswith(f"{root}: the output root can't be written: ")
    assert "Could not connect to server" in str(error.value)


def test_a_file_url_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError) as error:
        output.check(f"file://{tmp_path}/gone", create=False)
    assert str(error.value) == (
        f"file://{tmp_path}/gone: the output root of the study is not there; --output says where it has moved"
    )


KEYS = [
    ("s3://ME:se/cr@et@bucket/x", "s3://ME:***@bucket/x"),
    ("s3://ME:secret@bucket/x?region=here", "s3://ME:***@bucket/x?region=here"),
    ("abfs://:secret@me.blob.core.windows.net/x", "abfs://:***@me.blob.core.windows.net/x"),
    ("abfs://me/x?client_secret=secret&tenant_id=5", "abfs://me/x?client_secret=***&tenant_id=5"),
    ("abfs://me/x?sv=2026&sig=secret", "abfs://me/x?sv=2026&sig=***"),
]


@pytest.mark.parametrize(("given", "shown"), KEYS)
def test_a_root_with_keys_is_refused_before_they_get_anywhere(given, shown, tmp_path, tiny_file):
    url = f"journal:///{tmp_path}/studies"
    view = View(Console(file=io.StringIO()))
    for use in (
        lambda: output.check(given),
        lambda: output.filesystem(given),
        lambda: launch.launch(space.load(tiny_file), url=url, root=given, view=view),
        lambda: launch.launch(space.load(tiny_file, ["parallel=3"]), url=url, root=given, view=view),
        lambda: detach.log_of(url, "tiny", given),
    ):
        with pytest.raises(OutputError) as error:
            use()
        assert str(error.value) == (
            f"{shown}: an output root is kept in the study and shown, and with it the keys in its URL; expected a URL "
            "without them, and keys where each node's client of the bucket looks for them, such as "
            "$AWS_SECRET_ACCESS_KEY or ~/.aws/credentials"
        )
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    "root",
    ["s3://bucket/a:b@c", "s3://b?endpoint_override=localhost:9000&scheme=http", "gs://anonymous@b/x", "/a/b:c@d"],
)
def test_a_root_without_keys_is_shown_as_it_is(root):
    assert output.shown(root) == root
    assert output.absolute(root) == root


def test_a_study_claims_its_files_once(root):
    output.check(root)
    assert output.owner(root, "s") == ""
    assert output.claim(root, "s", "a" * 32)
    assert output.claim(root, "s", "a" * 32)
    assert not output.claim(root, "s", "b" * 32)
    assert output.owner(root, "s") == "a" * 32


def test_files_are_listed_with_their_sizes_and_removed_one_by_one(root):
    output.check(root)
    output.save(root, "s/trials/00001/step-1", write("one"))
    assert output.files(root, "s") == [output.Entry(path="s/trials/00001/step-1/a.txt", size=3)]
    output.delete_file(root, "s/trials/00001/step-1/a.txt")
    output.delete_file(root, "s/trials/00001/step-1/a.txt")
    assert output.files(root, "s") == []
    assert output.files(root, "none") == []
