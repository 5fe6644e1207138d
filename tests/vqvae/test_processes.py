"""Several processes that train one model learn what one process learns from the same batches.

Two processes train everything in one go, since starting them is what takes long:
``python tests/vqvae/test_processes.py RANK FOLDER`` is one of them.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vqvae import processes, speed
from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.conversion import replace
from vqvae.model import BACKBONES, QUANTIZERS
from vqvae.processes import ALONE, joined
from vqvae.train import check, train
from vqvae.vector import VectorQuantizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # it starts processes


def tiny(**settings):
    """A model of 32-pixel photographs, its batch two micro-batches; settings by dotted names, with __ for the dot."""
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
        "quantizer": {"codebook_size": 32, "code_dim": 4},
        "loss": {"l1": 0.5, "perceptual": 0.0},
        "optimizer": {"lr": 2e-3, "warmup_steps": 2, "clip_norm": 0.5},
        "data.resolution": 32,
        "evaluation": {"images": 12, "lpips": False},
        "steps": 4,
        "rungs": [2],
        "batch_size": 8,
        "micro_batch": 4,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


GAN = {"weight": 0.5, "start": 0.25, "width": 8, "depth": 1, "lr": 1e-2}
EMA = tiny(quantizer={"update": "ema", "ema_decay": 0.9, "revive_below": 0.5}, gan=GAN)
RUNS = {
    "gradient": tiny(quantizer={"l2_normalize": False, "revive_below": 0.5, "codebook_size": 256}),
    "ema": EMA,
    "entropy": tiny(quantizer={"kind": "bsq", "codebook_size": 64, "entropy_temperature": 0.1}),
    "gumbel": tiny(quantizer={"kind": "gumbel"}),
    "auto": tiny(micro_batch="auto", batch_size=32, steps=2),
}
"""Each is trained by one process and by two."""


def trained(config, folder, resume=None, stop=None, group=ALONE):
    """Trains and saves; step -> metrics, of the evaluations."""
    metrics = {}
    for progress in train(config, resume, stop, group):
        if progress.checkpoint:
            progress.checkpoint(folder / str(progress.step))
        if progress.evaluated:
            metrics[progress.step] = progress.metrics
    (folder / f"{group.rank}.json").write_text(json.dumps(metrics)) if folder.exists() else None
    return metrics


class Cramped(nn.Module):
    """The encoder of a device with too little memory for more than two images."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.encoder(images)


class Selfish(VectorQuantizer):
    """Its codebook follows the vectors of its own process alone."""

    def begin_step(self, step, steps, seed):
        self.processes = ALONE
        super().begin_step(step, steps, seed)


def one_of_two(rank, folder):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    speed.TIMED_S = 0.0
    processes.DRIFT = 0.0  # nothing differs, not even by rounding
    two = folder / "two"
    with joined(rank, 2, torch.device("cpu"), folder / "meeting") as group:
        for name, config in RUNS.items():
            trained(config, two / name, group=group)
        trained(EMA, two / "resumed", resume=folder / "one" / "ema" / "2", group=group)
        asked = itertools.count()
        trained(tiny(), two / "stopped", stop=lambda: rank == 1 and next(asked) == 1, group=group)
        attention = BACKBONES["attention"]
        BACKBONES["cramped"] = attention._replace(
            encoder=lambda config, size: (
                Cramped(attention.encoder(config, size)) if rank else attention.encoder(config, size)
            )
        )
        cramped = tiny(model__backbone="cramped", micro_batch="auto")
        trained(cramped, two / "cramped", group=group)
        QUANTIZERS["selfish"] = Selfish
        config = tiny(quantizer={"kind": "selfish", "update": "ema", "ema_decay": 0.5})
        try:
            trained(config, two / "selfish", group=group)
        except VqvaeError as error:
            (folder / "said").write_text(str(error))
            raise


@pytest.fixture(scope="module", autouse=True)
def _untimed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "TIMED_S", 0.0)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, config in RUNS.items():
        trained(config, folder / "one" / name)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    with (folder / "log").open("w") as log:
        pair = [
            subprocess.Popen([*command, str(rank), str(folder)], stdout=log, stderr=log, env=environment)
            for rank in range(2)
        ]
        try:
            ends = [process.wait(timeout=120) for process in pair]
        finally:
            for process in pair:
                process.kill()
    assert ends[1] == 1, (folder / "log").read_text()  # as is asserted below
    return folder


def require_close(folder, other, **tolerances):
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        torch.testing.assert_close(load_file(other / name), load_file(folder / name), **tolerances)


def close(folder, other):
    """Equal but for float32 rounding."""
    require_close(folder, other, rtol=1e-3, atol=2e-6)


def measured(folder):
    """Step -> what was measured, but for speed."""
    found = json.loads((folder / "0.json").read_text())
    return {
        (step, name): value
        for step, metrics in found.items()
        for name, value in metrics.items()
        if not name.endswith("_per_s")
    }


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(runs, name):
    one, two = runs / "one" / name, runs / "two" / name
    for step in {*RUNS[name].rungs, RUNS[name].steps}:
        close(one / str(step), two / str(step))
    assert measured(two) == pytest.approx(measured(one), rel=1e-3)


def test_a_run_goes_on_with_another_number_of_processes(runs):
    close(runs / "one" / "ema" / "4", runs / "two" / "resumed" / "4")
    trained(EMA, runs / "one" / "resumed", resume=runs / "two" / "ema" / "2")
    close(runs / "one" / "ema" / "4", runs / "one" / "resumed" / "4")


def test_the_images_at_once_are_those_of_all_processes_so_that_a_checkpoint_fits_any_number(runs):
    for name, expected in (("auto", 16), ("gradient", 4), ("cramped", 4)):
        state = json.loads((runs / "two" / name / "2" / "state.json").read_text())
        assert state["progress"]["micro_batch"] == expected


def test_all_stop_at_the_same_step_when_one_is_asked_to(runs):
    assert [path.name for path in (runs / "two" / "stopped").iterdir() if path.is_dir()] == ["1"]


def test_memory_that_ends_in_one_process_halves_the_micro_batch_of_all(runs, tmp_path):
    trained(tiny(), tmp_path)  # four at once, as two processes have with two images each
    close(tmp_path / "4", runs / "two" / "cramped" / "4")


def test_processes_that_no_longer_train_one_model_are_told_apart(runs):
    assert (runs / "said").read_text() == (
        "model.quantizer.codebook: differs between processes 0 and 1 after step 2; expected that a part which learns "
        "without gradients learns from all processes, see Quantizer.processes"
    )


def test_the_first_process_alone_reports(runs):
    found = json.loads((runs / "two" / "gradient" / "1.json").read_text())
    assert found == {"2": {}, "4": {}}


@pytest.mark.parametrize(
    ("settings", "count", "problem"),
    [
        ({}, 3, "batch_size: must be a multiple of the 3 processes that share it, but got 8"),
        ({"batch_size": 32}, 8, "micro_batch: must be a multiple of the 8 processes that share it, but got 4"),
    ],
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused(settings, count, problem):
    with pytest.raises(ConfigError) as caught:
        check(tiny(**settings), count)
    assert str(caught.value) == problem
    check(tiny(batch_size=96, micro_batch="auto"), 3)


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
