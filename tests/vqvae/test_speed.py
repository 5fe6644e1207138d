"""Parameters, time and memory of a model."""

import time

import pytest
import torch

from vqvae import speed
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model, count_parameters

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    model = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8}
    quantizer = {"codebook_size": 32, "code_dim": 4}
    return replace(TrainConfig(), {"model": model, "quantizer": quantizer, "data.resolution": 32})


def test_the_costs_of_a_model(config):
    model = build_model(config).eval().requires_grad_(False)
    state = torch.get_rng_state()
    started = time.perf_counter()
    found = speed.costs(model, 4)
    spent = time.perf_counter() - started
    assert found["parameters"] == count_parameters(config)
    assert found["encode_images_per_s"] > 4 / spent
    assert found["decode_images_per_s"] > 4 / spent
    assert torch.equal(torch.get_rng_state(), state)


def test_time_is_the_median_after_a_first_pass():
    naps = iter([0.1, *[0.002] * 8, 0.2])
    assert 0.002 <= speed.seconds(lambda: time.sleep(next(naps)), CPU) < 0.1


def test_slow_work_is_done_once():
    calls = []

    def work():
        calls.append(1)
        time.sleep(speed.TIMED_S + 0.01)

    assert speed.seconds(work, CPU) >= speed.TIMED_S
    assert len(calls) == 1


def test_timing_ends_within_its_time():
    calls = []

    def work():
        calls.append(1)
        time.sleep(speed.TIMED_S / 3)

    speed.seconds(work, CPU)
    assert len(calls) <= 1 + 3


def test_peak_memory_is_left_out_on_the_cpu(config):
    speed.forget_peak_memory(CPU)
    assert speed.peak_memory_gib(CPU) is None
    assert "peak_memory_gib" not in speed.costs(build_model(config).eval(), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_a_gpu_is_that_of_the_run(config):
    device = torch.device("cuda")
    torch.empty(2**28, dtype=torch.uint8, device=device)
    speed.forget_peak_memory(device)
    before = speed.peak_memory_gib(device)
    torch.empty(2**28, dtype=torch.uint8, device=device)
    assert speed.peak_memory_gib(device) == pytest.approx(before + 0.25, abs=0.01)
    assert speed.costs(build_model(config).eval().to(device), 4)["peak_memory_gib"] >= before + 0.25
