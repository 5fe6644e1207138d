"""The scan against its recurrence, and Mamba2 against mamba_ssm's names and transformers' numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from vqvae import ssd as module
from vqvae.config import ConfigError
from vqvae.ssd import Mamba2, ssd, ssd_reference

GRADIENTS = ("x", "dt", "A", "B", "C")


def _inputs(
    length: int, dtype: torch.dtype = torch.float64, step: float = 0.3, sizes: tuple[int, ...] = (2, 3, 4, 5)
) -> list[Tensor]:
    images, heads, channels, states = sizes
    x = torch.randn(images, length, heads, channels, dtype=dtype)
    dt = step * torch.rand(images, length, heads, dtype=dtype)
    decay = -1 - 15 * torch.rand(heads, dtype=dtype)
    into, out_of = torch.randn(2, images, length, states, dtype=dtype)
    return [x, dt, decay, into, out_of]


def _relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("length", [1, 7, 16, 65, 131])
@pytest.mark.parametrize("chunk_size", [1, 13, 16, 64, 256])
def test_the_scan_equals_the_recurrence_with_its_gradients(length: int, chunk_size: int) -> None:
    inputs = [t.requires_grad_() for t in _inputs(length)]
    expected, value = ssd_reference(*inputs), ssd(*inputs, chunk_size=chunk_size)
    torch.testing.assert_close(value, expected)
    weights = torch.randn_like(expected)
    for name, gradient, oracle in zip(
        GRADIENTS,
        torch.autograd.grad((value * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, oracle, msg=lambda text, name=name: f"gradient of {name}: {text}")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 50),
    chunk_size=st.integers(1, 60),
    sizes=st.tuples(*[st.integers(1, 3)] * 4),
    step=st.sampled_from([0.01, 0.3, 5.0]),
)
def test_the_scan_equals_the_recurrence_at_any_shape(
    length: int, chunk_size: int, sizes: tuple[int, ...], step: float
) -> None:
    images, heads, channels, states = sizes
    x, dt, decay, into, out_of = _inputs(length, step=step, sizes=sizes)
    assert x.shape == (images, length, heads, channels)
    assert into.shape == (images, length, states)
    value = ssd(x, dt, decay, into, out_of, chunk_size=chunk_size)
    torch.testing.assert_close(value, ssd_reference(x, dt, decay, into, out_of))


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
def test_float32_stays_within_a_ten_thousandth(chunk_size: int) -> None:
    inputs = _inputs(200)
    narrow = [t.float() for t in inputs]
    assert _relative_error(ssd(*narrow, chunk_size=chunk_size).double(), ssd_reference(*inputs)) < 1e-4


def test_the_scan_works_in_float32_under_autocast() -> None:
    inputs = [t.bfloat16() for t in _inputs(70)]
    expected = ssd_reference(*(t.double() for t in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = ssd(*(t.float() for t in inputs))
        narrow = ssd(*inputs)
    assert wide.dtype == torch.float32
    assert narrow.dtype == torch.bfloat16
    assert _relative_error(wide.double(), expected) < 1e-5
    assert _relative_error(narrow.double(), expected) < 4e-3  # the rounding of the result alone


def test_extreme_steps_stay_finite() -> None:
    inputs = [t.requires_grad_() for t in _inputs(130, torch.float32, step=200.0)]
    value = ssd(*inputs)
    assert _relative_error(value, ssd_reference(*inputs)) < 1e-3  # sums of decays near 1e5 cost three digits
    for gradient in torch.autograd.grad(value.sum(), inputs):
        assert gradient.isfinite().all()


def test_steps_of_size_zero_leave_the_state_alone() -> None:
    x, dt, decay, into, out_of = _inputs(40)
    dt[:, 10:30] = 0
    short = ssd_reference(
        *(torch.cat([t[:, :10], t[:, 30:]], dim=1) for t in (x, dt)),
        decay,
        *(torch.cat([t[:, :10], t[:, 30:]], dim=1) for t in (into, out_of)),
    )
    torch.testing.assert_close(ssd(x, dt, decay, into, out_of, chunk_size=8)[:, 30:], short[:, 10:])


def test_mamba2_loads_the_state_dict_of_mamba_ssm() -> None:
    # Names and shapes of mamba_ssm.Mamba2(256, d_state=128, headdim=64), version 2.2.
    shapes = {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 512 + 2 * 128 + 8, 256),
        "conv1d.weight": (512 + 2 * 128, 1, 4),
        "conv1d.bias": (512 + 2 * 128,),
        "norm.weight": (512,),
        "out_proj.weight": (256, 512),
    }
    layer = Mamba2(256, head_size=64, state_size=128)
    layer.load_state_dict({name: torch.zeros(shape) for name, shape in shapes.items()}, strict=True)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == shapes


@pytest.mark.parametrize(("length", "chunk_size"), [(1, 16), (16, 16), (37, 8), (64, 64), (131, 16), (131, 256)])
def test_mamba2_equals_the_mixer_of_transformers_with_its_gradients(length: int, chunk_size: int) -> None:
    sizes = {"hidden_size": 64, "state_size": 16, "head_dim": 32, "num_heads": 4, "n_groups": 1, "expand": 2}
    oracle = Mamba2Mixer(Mamba2Config(**sizes, chunk_size=chunk_size), 0)
    layer = Mamba2(64, head_size=32, state_size=16)
    oracle.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, length, 64, requires_grad=True)
    weights = torch.randn(2, length, 64)
    found = {}
    for name, mixer in (("ours", layer), ("oracle", oracle)):
        y = mixer(x)
        parameters = dict(mixer.named_parameters())
        gradients = torch.autograd.grad((y * weights).sum(), [x, *parameters.values()])
        found[name] = {"y": y} | dict(zip(["x", *parameters], gradients, strict=True))
    assert set(found["ours"]) == set(found["oracle"])
    for name, expected in found["oracle"].items():
        if expected.norm() == 0:  # the decay of the only token
            assert found["ours"][name].norm() == 0, name
        else:
            assert _relative_error(found["ours"][name], expected) < 1e-4, name


@pytest.mark.skipif(not torch.cuda.is_available() or module._cuda_scan is None, reason="needs CUDA and mamba_ssm")
@pytest.mark.parametrize("length", [37, 300])
def test_the_kernel_of_mamba_ssm_equals_our_scan(length: int) -> None:
    layer = Mamba2(256, head_size=64, state_size=128)
    x = torch.randn(2, length, 256)
    expected = layer(x)
    assert _relative_error(layer.cuda()(x.cuda()).cpu(), expected) < 1e-2  # its products are TF32


def test_mamba2_follows_its_equations() -> None:
    layer = Mamba2(16, head_size=8, state_size=4).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    gate, mixed, dt = layer.in_proj(x).split([32, 40, 4], dim=-1)
    padded = torch.cat([torch.zeros(2, 3, 40), mixed], dim=1)
    mixed = sum(padded[:, k : k + 9] * layer.conv1d.weight[:, 0, k] for k in range(4)) + layer.conv1d.bias
    inputs, into, out_of = (mixed * mixed.sigmoid()).split([32, 4, 4], dim=-1)
    inputs = inputs.unflatten(-1, (4, 8))
    dt = torch.log1p(torch.exp(dt + layer.dt_bias))
    y = ssd_reference(inputs, dt, -layer.A_log.exp(), into, out_of) + layer.D[:, None] * inputs
    y = y.flatten(2) * gate * gate.sigmoid()
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    torch.testing.assert_close(layer(x), y @ layer.out_proj.weight.T)


def test_a_token_of_mamba2_sees_only_itself_and_what_was_before() -> None:
    layer = Mamba2(16, head_size=8, state_size=4)
    x = torch.randn(1, 90, 16)
    changed = x.clone()
    changed[:, 70] += 1
    difference = (layer(x) - layer(changed)).abs().amax(-1)[0]
    assert (difference[:70] == 0).all()
    assert (difference[70:] > 0).all()


@pytest.mark.parametrize("width", [32, 512])
def test_decay_and_step_sizes_start_in_the_ranges_of_the_paper_at_any_width(width: int) -> None:
    layer = Mamba2(width, head_size=4, state_size=4)
    decay, step = layer.A_log.exp(), torch.nn.functional.softplus(layer.dt_bias)
    assert 1 <= decay.min() < 4
    assert 12 < decay.max() <= 16
    assert 0.999e-3 < step.min() < 3e-3
    assert 3e-2 < step.max() < 1.001e-1


def test_a_head_size_that_does_not_divide_the_inner_width_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Mamba2(24, head_size=32, state_size=16)
    assert str(error.value) == "model.head_size: must divide Mamba2's inner width of 48 channels, but got 32"
