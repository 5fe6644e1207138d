"""What a storage, a space file or a checkpoint can't do to who reads it, and where a password never gets."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search import output, records
from search.errors import OutputError
from search.progress import View
from search.storage import open_storage
from search.text import PlainConsole, printable
from vqvae import checkpoint
from vqvae.config import TrainConfig
from vqvae.conversion import to_dict

SECRET = "correct-horse-battery"


@pytest.fixture
def guarded(postgresql):
    """A PostgreSQL database whose URL holds a password."""
    url = sqlalchemy.make_url(postgresql()).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS searcher")
        connection.exec_driver_sql(f"CREATE ROLE searcher LOGIN SUPERUSER PASSWORD '{SECRET}'")
    engine.dispose()
    owned = url.set(drivername="postgresql", username="searcher", password=SECRET)
    return owned.render_as_string(hide_password=False)


def processes(word):
    """Processes whose command line or environment holds a word: their command lines and environments."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if word.encode() in command + environment:
                found[int(folder.name)] = (command, environment)
    return found


def holding(folder, word):
    """Files below a folder that hold a word."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [str(path) for path in files if word.encode() in path.read_bytes()]


@pytest.mark.ray
@pytest.mark.slow
def test_the_password_of_a_storage_gets_nowhere(guarded, tiny_file, tmp_path):
    sessions = tempfile.mkdtemp(prefix="ray")  # Its sockets' paths must be short.
    environment = {**os.environ, "VQSEARCH_STORAGE": guarded, "RAY_TMPDIR": sessions}
    command = [sys.executable, "-m", "search", "launch", str(tiny_file), "--trials", "2", "--output", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launch = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    seen, shown = set(), []
    try:
        while launch.poll() is None:
            for pid, (arguments, variables) in processes(sessions).items():
                seen.add(re.sub(rb"\0.*", b"", arguments).rpartition(b"/")[2].partition(b":")[0].decode())
                # A process that the driver starts is a copy of the driver for a moment.
                driver = not arguments or arguments.endswith(b"\0--output\0out\0")
                held = SECRET.encode() in arguments or (SECRET.encode() in variables and not driver)
                shown += [(pid, arguments)] if held else []
            time.sleep(0.2)
        printed = launch.communicate()[0]
        assert launch.returncode == 0, printed
        assert {"raylet", "gcs_server", "ray"} <= seen
        assert shown == []
        assert SECRET not in printed
        for arguments in (["status"], ["best"], ["resume"], ["export", "--to", "model"]):
            ran = subprocess.run(
                [sys.executable, "-m", "search", *arguments], cwd=tmp_path, env=environment, check=True, **pipes
            )
            assert SECRET not in ran.stdout
        assert holding(sessions, SECRET) == []
        assert holding(tmp_path, SECRET) == []
    finally:
        if launch.poll() is None:
            launch.kill()
            launch.wait()
        shutil.rmtree(sessions, ignore_errors=True)


def test_a_password_on_the_command_line_is_refused(refused, tiny_file):
    url = f"postgresql://me:{SECRET}@host/x"
    for command in (
        ["status", "--storage", url],
        ["launch", "tiny.yaml", "--storage", url],
        ["launch", "tiny.yaml", "--set", f"storage={url}"],
        ["resume", "--storage", "postgresql://host/x?user=me&password=a"],
    ):
        assert refused(*command) == (
            "vqsearch: a command line shows the storage's password to everyone on this machine; expected "
            "--storage-file FILE, $VQSEARCH_STORAGE, or a URL without one and ~/.pgpass"
        )


def test_a_storage_file_says_where_the_studies_are(studied, command, tmp_path):
    study = studied()
    finished(study)
    study._storage._backend.engine.dispose()
    (tmp_path / "vqsearch.db").rename(tmp_path / "other.db")
    (tmp_path / "where").write_text(f"sqlite:///{tmp_path}/other.db\nnothing else counts\n")
    code, out, err = command("status", "--storage-file", "where")
    assert (code, err) == (0, "")
    assert out.startswith("tiny: the budget is spent\n")


@pytest.mark.parametrize(
    ("text", "mode", "more", "problem"),
    [
        (None, 0, [], "can't be read: No such file or directory"),
        ("vqsearch.db\n", 0o600, [], "its first line is no storage URL, such as sqlite:///vqsearch.db"),
        (
            f"postgresql://me:{SECRET}@host/x\n",
            0o644,
            [],
            "holds a password that everyone on this machine may read; chmod o= 'where'",
        ),
        (
            "sqlite:///a.db\n",
            0o644,
            ["--storage", "sqlite:///b.db"],
            "both say where the studies are; expected one of them",
        ),
    ],
)
def test_a_storage_file_that_can_not_be_used_is_refused(refused, tmp_path, text, mode, more, problem):
    if text is not None:
        (tmp_path / "where").write_text(text)
        (tmp_path / "where").chmod(mode)
    both = "--storage and " if more else ""
    assert refused("status", "--storage-file", "where", *more) == f"vqsearch: {both}--storage-file where: {problem}"


def test_a_storage_file_that_its_group_may_read_is_good_and_its_password_is_not_shown(refused, tmp_path):
    (tmp_path / "where").write_text(f"postgresql://me:{SECRET}@127.0.0.1:1/x")
    (tmp_path / "where").chmod(0o440)
    assert refused("status", "--storage-file", "where").startswith("vqsearch: postgresql://me:***@127.0.0.1:1/x: ")


def test_a_storage_file_comes_before_the_space_file_and_the_environment(refused, tiny_file, tmp_path, monkeypatch):
    monkeypatch.setenv("VQSEARCH_STORAGE", "sqlite:///no/environment.db")
    (tmp_path / "where").write_text("sqlite:///no/file.db")
    space_file = ["launch", "tiny.yaml", "--set", "storage=sqlite:///no/space.db"]
    assert refused(*space_file, "--storage-file", "where") == "vqsearch: sqlite:///no/file.db: no such folder no"
    assert refused(*space_file) == "vqsearch: sqlite:///no/space.db: no such folder no"
    assert refused("launch", "tiny.yaml") == "vqsearch: sqlite:///no/environment.db: no such folder no"


@pytest.fixture
def studied(tmp_path):
    """A database with a study of ours, whose space and trials were written by someone else."""

    def make(name="tiny", **values):
        url = f"sqlite:///{tmp_path}/vqsearch.db"
        study = optuna.create_study(study_name=name, storage=open_storage(url), direction="maximize")
        source = {
            "study": "tiny",
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "budget": {"trials": 2, "steps": 18},
            "resources": {"gpus": 0, "cpus": 1},
            "train": TRAIN,
            "search": {"optimizer.lr": {"float": [5e-4, 5e-3], "log": True}},
        }
        (tmp_path / "out").mkdir()
        records.create(study, source | values, str(tmp_path / "out"), 10, {})
        return study

    return make


TRAIN = {
    "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 16, "patch": 16},
    "quantizer": {"codebook_size": 16, "code_dim": 4},
    "loss": {"perceptual": 0},
    "optimizer": {"warmup_steps": 1},
    "data": {"resolution": 64},
    "evaluation": {"lpips": False},
    "batch_size": 4,
    "micro_batch": 4,
}


def finished(study, reason="", folder="tiny/trials/00000/step-00000018"):
    """A trial that is complete, and one that is pruned for a reason."""
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 5e-4, 5e-3, log=True)
        records.set_checkpoint(trial, records.CheckpointRecord(step=18, folder=folder, metrics={}))
        records.set_reason(trial, reason)
        study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)


@pytest.mark.parametrize("folder", ["../../etc", "/etc", "tiny/../../elsewhere", ".."])
def test_a_checkpoint_outside_the_output_root_is_refused(refused, studied, tmp_path, folder):
    finished(studied(), folder=folder)
    expected = f"vqsearch: {tmp_path}/out: the study names {folder!r}, which lies outside the output root"
    assert refused("export", "--to", "model") == expected
    for act in (lambda: output.delete(str(tmp_path / "out"), folder), lambda: output.save(str(tmp_path), folder, None)):
        with pytest.raises(OutputError, match="which lies outside the output root"):
            act()


def test_a_link_below_the_output_root_is_not_followed_out_of_it(studied, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/model.safetensors").write_text("mine")
    finished(studied())
    (tmp_path / "out/tiny/trials/00000").mkdir(parents=True)
    (tmp_path / "out/tiny/trials/00000/step-00000018").symlink_to(tmp_path / "private")
    with pytest.raises(OutputError, match="is behind a symbolic link"):
        output.delete(str(tmp_path / "out"), "tiny/trials/00000/step-00000018")
    assert (tmp_path / "private/model.safetensors").exists()


@pytest.mark.parametrize("name", ["../../etc", "other", "a/b"])
def test_a_study_whose_name_is_not_that_of_its_space_is_refused(refused, studied, tmp_path, name):
    studied(name)
    for command in (["status"], ["resume"]):
        assert refused(*command, "--study", name) == (
            f"vqsearch: {name!r}: its space is that of tiny; a study must go by the name in its space"
        )


def test_a_name_in_a_stored_space_that_leads_elsewhere_is_refused(refused, studied, tmp_path):
    studied("../../etc", study="../../etc")
    assert "must be letters, digits, '.', '_' and '-'" in refused("status", "--study", "../../etc")


def test_no_code_is_taken_from_a_storage(refused, studied, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for number, train in enumerate(({"trainer": "evil.py"}, {"model": {"backbone": "evil:Backbone"}})):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "vqsearch.db").unlink(missing_ok=True)
        studied(train=TRAIN | train)
        refused(*(["status"], ["resume"])[number])
    assert not (tmp_path / "ran").exists()


def test_yaml_that_asks_for_code_is_refused(refused, tiny_file):
    tiny_file.write_text(f"{tiny_file.read_text()}seed: !!python/object/apply:os.mkdir [{tiny_file.parent}/ran]\n")
    assert "python/object/apply:os.mkdir" in refused("launch", "tiny.yaml")
    assert not (tiny_file.parent / "ran").exists()


class Harmful:
    """Pickled, it makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state.safetensors", "state.json"])
def test_checkpoints_are_never_unpickled(tmp_path, name):
    config = TrainConfig()
    for file in ("model.safetensors", "config.json", "state.safetensors", "state.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"format": checkpoint.FORMAT, "config": to_dict(config)}))
    (tmp_path / name).write_bytes(pickle.dumps(Harmful(str(tmp_path / "ran"))))
    for reading in (checkpoint.load, checkpoint.read, checkpoint.load_config):
        with contextlib.suppress(checkpoint.CheckpointError):
            reading(tmp_path)
    assert not (tmp_path / "ran").exists()


HOSTILE = ["[red]a[/]", "[/]", "[link=file:///]b", ":smile:", "\x1b[2J\x1b]0;title\x07", "back\rover", "\u202egnp"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_a_study_is_shown_as_text(command, studied, tmp_path, text):
    choice = {"optimizer.lr": {"choice": {"a": 0.001, text: 0.002}}}
    study = studied(search=choice)
    study.enqueue_trial({"optimizer.lr": text})
    trial = study.ask()
    trial.suggest_categorical("optimizer.lr", [text, "a"])
    trial.set_user_attr(f"val/{text}", 1.0)
    records.set_reason(trial, text)
    study.tell(trial, 1.0)
    visible = printable(re.sub("[\a\r]", "", text))  # which rich drops
    for name in ("status", "best"):
        code, out, err = command(name)
        assert code == 0, err
        assert visible[:8] in out.replace(r"\r", "")  # a table may be too narrow for more
        assert not set(out + err) & set("\x1b\a\r\u202e")
    console = PlainConsole()
    console.file = io.StringIO()
    View(console).message(f"trial 0 is pruned: {text}")
    assert visible in console.file.getvalue()


def test_a_hostile_name_in_an_error_is_shown_as_text(command, tmp_path):
    optuna.create_study(study_name="\x1b[2Jtheirs", storage=f"sqlite:///{tmp_path}/vqsearch.db")
    code, _, err = command("status", "--study", "\x1b[2Jtheirs")
    assert code == 2
    assert err.startswith("vqsearch: \\x1b[2Jtheirs: this study was not made by vqsearch")
