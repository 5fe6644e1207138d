"""Copies of curves: read back from the files that TensorBoard and wandb would read."""

import importlib.util
import struct
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from search import curves, records, space, study
from search.errors import SpaceError, StudyError, UserError
from search.schema import Log
from search.study import Flight, Outcome


@pytest.fixture
def opened(tiny_file, tmp_path):
    """What `curves` sees of a study, with a trial in flight; and the lines that were said."""
    made = optuna.create_study(study_name="tiny", direction="maximize")
    records.set_identity(made, "0123456789abcdef0123456789abcdef")
    said = []
    loaded = replace(space.load(tiny_file), log=Log(tensorboard=True))
    return SimpleNamespace(
        study=made, space=loaded, output=str(tmp_path / "out"), notify=said.append, said=said, reported=None, ended=None
    )


def flight_of(opened, **labels):
    return Flight(trial=opened.study.ask(), labels=labels, started=0.0, before=0.0)


def report(opened, flight, step, **metrics):
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    flight.step, flight.metrics = step, flight.metrics | named
    opened.reported(flight, named)


def end(opened, flight, state):
    opened.ended(flight, Outcome(state=state))


def events(folder):
    """All events of a trial, in the order in which TensorBoard reads the files."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            found.append(Event.FromString(data[place + 12 : place + 12 + size]))
            place += 12 + size + 4
    return found


def scalars(folder):
    """Curves as a reader shows them: what a file before wrote from the first step of the next one on is dropped."""
    points = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            points = {key: value for key, value in points.items() if key[1] < event.step}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                assert (value.tag, event.step) not in points, "a point twice"
                points[value.tag, event.step] = value.simple_value
    return points


def hparams(folder):
    """Settings and names of metrics as TensorBoard's HPARAMS page reads them."""
    settings, names = {}, []
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                names += [info.name.tag for info in data.experiment.metric_infos]
                for key, found in data.session_start_info.hparams.items():
                    settings[key] = getattr(found, found.WhichOneof("kind"))
    return settings, names


def folder_of(opened, number):
    return curves.Path(opened.output, "tiny", "tensorboard", f"{number:05d}")


def test_event_files_have_light_reports_evaluations_and_at_the_end_settings_and_metrics(opened):
    labels = {"optimizer.lr": 0.002, "quantizer.codebook_size": 64, "quantizer.update": "ema", "x": None}
    with curves.written(opened):
        flight = flight_of(opened, **labels)
        report(opened, flight, 3, train__loss=0.5, images_per_s=100.0)
        report(opened, flight, 6, train__loss=0.25, val__psnr=20.5)
        end(opened, flight, TrialState.COMPLETE)
    folder = folder_of(opened, 0)
    assert scalars(folder) == {
        ("train/loss", 3): 0.5, ("images_per_s", 3): 100.0, ("train/loss", 6): 0.25, ("val/psnr", 6): 20.5,
    }  # fmt: skip
    settings, names = hparams(folder)
    assert settings == labels | {"x": "None"}
    assert names == ["images_per_s", "val/psnr"]
    assert opened.said == []


def test_a_trial_that_goes_on_repeats_no_point_and_keeps_those_before(opened):
    flight = flight_of(opened)
    for steps in ((3, 6, 9), (6, 12)):  # a driver dies after step 9; the checkpoint of step 6 is the last
        with curves.written(opened):
            for step in steps:
                report(opened, flight, step, val__psnr=step + 0.5)
    assert scalars(folder_of(opened, 0)) == {("val/psnr", step): step + 0.5 for step in (3, 6, 12)}
    assert len(list(folder_of(opened, 0).iterdir())) == 2
    assert hparams(folder_of(opened, 0)) == ({}, [])


def test_a_trial_that_is_handed_back_goes_on_in_a_new_file(opened):
    with curves.written(opened):
        flight = flight_of(opened, x=1)
        report(opened, flight, 3, val__psnr=1.0)
        end(opened, flight, TrialState.WAITING)
        report(opened, flight, 6, val__psnr=2.0)
        end(opened, flight, TrialState.PRUNED)
    assert scalars(folder_of(opened, 0)) == {("val/psnr", 3): 1.0, ("val/psnr", 6): 2.0}
    assert hparams(folder_of(opened, 0)) == ({"x": 1}, ["val/psnr"])


def test_a_trial_that_reported_nothing_leaves_nothing(opened):
    with curves.written(opened):
        end(opened, flight_of(opened), TrialState.FAIL)
    assert not folder_of(opened, 0).exists()


def test_without_a_log_nothing_is_started(opened):
    opened.space = replace(opened.space, log=Log())
    before = threading.active_count()
    with curves.written(opened):
        assert threading.active_count() == before
        assert opened.reported is None


def test_what_goes_wrong_is_said_once_and_ends_the_copies_alone(opened, tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    with curves.written(opened):
        flight = flight_of(opened)
        for step in range(3):
            report(opened, flight, step, val__psnr=1.0)
        end(opened, flight, TrialState.COMPLETE)
    assert len(opened.said) == 1
    assert opened.said[0].startswith(
        "curves for TensorBoard are not written any more, and the search goes on: [Errno 20] Not a directory:"
    )


def test_a_writer_that_hangs_holds_up_neither_reports_nor_the_end(opened, monkeypatch):
    monkeypatch.setattr(curves, "LONGEST", 3)
    monkeypatch.setattr(curves, "CLOSE_S", 0.1)
    hangs = threading.Event()
    monkeypatch.setattr(curves.EventFiles, "write", lambda sink, point: hangs.wait())
    with curves.written(opened):
        flight = flight_of(opened)
        for step in range(9):
            report(opened, flight, step, val__psnr=1.0)
    assert opened.said == [
        "curves: 3 reports wait to be written, so no more are taken; the search goes on",
        "curves: the last ones are not written after 0.1 s, and nobody waits any more",
    ]
    hangs.set()


def test_wandb_has_a_run_for_each_trial_whose_id_is_that_of_the_trial(opened, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb, an extra, is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    opened.space = replace(opened.space, log=Log(wandb="tokenizers"))
    curves.check(opened.space, "")
    with curves.written(opened):
        flights = [flight_of(opened, **{"optimizer.lr": 0.002}) for _ in range(2)]
        for flight in flights:
            report(opened, flight, 3, train__loss=0.5)
        for flight in flights:
            report(opened, flight, 6, val__psnr=20.5)
        end(opened, flights[0], TrialState.COMPLETE)
    assert opened.said == []
    files = sorted(tmp_path.glob("out/tiny/wandb/offline-run-*/run-*.wandb"))
    assert sorted(path.name for path in files) == [f"run-0123456789abcdef-0000{number}.wandb" for number in (0, 1)]
    words = (b"tokenizers", b"tiny", b"optimizer.lr", b"train/loss", b"val/psnr", b"20.5")
    for path in files:
        deadline = time.monotonic() + 20  # wandb's own process writes them
        while not all(word in path.read_bytes() for word in words) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [word for word in words if word not in path.read_bytes()] == []


def test_a_missing_package_is_said_before_anything_runs(opened, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    opened.space = replace(opened.space, log=Log(wandb="tokenizers"))
    with pytest.raises(UserError) as caught:
        curves.check(opened.space, "")
    assert str(caught.value) == "log.wandb: the package wandb is not installed; pip install 'vqsearch[wandb]'"


def test_without_a_login_wandb_is_refused_at_once(opened, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb, an extra, is not installed")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    opened.space = replace(opened.space, log=Log(wandb="tokenizers"))
    with pytest.raises(UserError, match=r"^log\.wandb: nobody is logged in to Weights & Biases; wandb login, "):
        curves.check(opened.space, "")


def test_event_files_need_a_folder(opened):
    curves.check(opened.space, "/no/such/folder")
    with pytest.raises(UserError) as caught:
        curves.check(opened.space, "s3://bucket/vqsearch?region=eu-west-1")
    assert str(caught.value) == (
        "log.tensorboard: event files need a folder, but the output root is s3://bucket/vqsearch?region=eu-west-1; "
        "expected --output DIR, or --set log.tensorboard=false"
    )


def test_log_may_change_when_a_study_goes_on(tiny_file):
    loaded = space.load(tiny_file)
    assert loaded.log == Log(tensorboard=False, wandb=None)
    on = study.operational(loaded, {"log.tensorboard": True, "log.wandb": "tokenizers"})
    assert on.log == Log(tensorboard=True, wandb="tokenizers")
    assert study.operational(on, {"log.wandb": None}).log == Log(tensorboard=True)
    with pytest.raises(SpaceError, match=r"log\.tensorboard: must be true or false, but got 1$"):
        study.operational(loaded, {"log.tensorboard": 1})
    with pytest.raises(SpaceError, match=r"log\.wandb: must not be empty, but got ''$"):
        study.operational(loaded, {"log.wandb": ""})
    with pytest.raises(StudyError, match=r"--set log: a study that goes on can change "):
        study.operational(loaded, {"log": {"tensorboard": True}})
