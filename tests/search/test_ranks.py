"""One model trained by several processes: signals, deaths and errors; what they learn is tested in tests/vqvae."""

import multiprocessing
import os
import signal

import pytest
import torch
from click.testing import CliRunner

from search import models
from search.cli import cli
from search.errors import SearchError, UserError
from vqvae.config import TrainConfig, VqvaeError
from vqvae.conversion import replace

pytestmark = pytest.mark.ray  # it starts processes


def tiny(**settings):
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 16, "patch": 16},
        "quantizer": {"codebook_size": 16, "code_dim": 4, "update": "ema"},
        "loss.perceptual": 0.0,
        "optimizer": {"warmup_steps": 1},
        "data.resolution": 32,
        "evaluation": {"lpips": False, "images": 4},
        "steps": 4,
        "batch_size": 4,
        "micro_batch": 4,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | settings)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_run_of_two_processes_stops_at_a_signal_and_goes_on_in_one(tmp_path):
    def show(report):
        if report.step == 1 and not report.stopped:
            signal.raise_signal(signal.SIGTERM)

    # The report of the first step arrives while the next ones are taken, so the run is too long to end before it stops.
    long = tiny(steps=100_000, **{"optimizer.schedule": "constant"})
    said = []
    assert models.train(long, tmp_path / "long", said.append, show, processes=2) == signal.SIGTERM
    (stopped,) = checkpoints(tmp_path / "long")
    done = int(stopped.removeprefix("step-"))
    assert 1 <= done < 100_000
    assert multiprocessing.active_children() == []
    said.clear()
    again = tiny(steps=done + 1, **{"optimizer.schedule": "constant"})
    assert models.train(again, tmp_path / "long", said.append) == 0
    assert said[0] == f"going on from {tmp_path}/long/checkpoints/{stopped}"
    assert checkpoints(tmp_path / "long") == [f"step-{done + 1:08d}"]
    assert (tmp_path / "long" / "model" / "weights.safetensors").exists()


def test_a_process_that_dies_ends_all_with_one_line(tmp_path):
    def show(report):
        (member,) = [each for each in multiprocessing.active_children() if each.name == "rank 1"]
        os.kill(member.pid, signal.SIGKILL)

    with pytest.raises(SearchError) as caught:
        models.train(tiny(steps=100_000), tmp_path, show=show, processes=2)
    assert str(caught.value) == "process 1 of 2 was ended by SIGKILL; the same command begins anew"
    assert multiprocessing.active_children() == []


def test_what_a_user_can_mend_is_told_as_by_one_process(tmp_path):
    config = tiny(**{"optimizer.lr": 1e30})
    said = {}
    for count in (1, 2):
        with pytest.raises((UserError, VqvaeError)) as caught:
            models.train(config, tmp_path / str(count), processes=count)
        said[count] = str(caught.value)
    assert said[2] == said[1]
    assert "at optimizer.lr 1e+30; expected a finite value" in said[2]


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has eight GPUs")
def test_more_gpus_than_there_are_are_refused_before_a_folder_is_made(tmp_path):
    there = torch.cuda.device_count()
    found = {0: "no GPU", 1: "1 GPU"}.get(there, f"{there} GPUs")
    result = CliRunner().invoke(cli, ["train", "preset:mamba-tiny", "--gpus", "8", "--to", str(tmp_path / "run")])
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"--gpus: must be at most what torch finds here, {found}, but got 8"
    options = ["--set", "device=cpu", "--gpus", "2", "--to", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, ["train", "preset:mamba-tiny", *options])
    assert str(result.exception) == "--gpus: can't be given where device is cpu, but got 2"
    assert list(tmp_path.iterdir()) == []
