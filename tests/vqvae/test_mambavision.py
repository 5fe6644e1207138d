"""MambaVision's mixer on the SSD scan: its equations, and what each of its halves sees."""

import pytest
import torch
from torch import Tensor, nn

from vqvae.config import ConfigError
from vqvae.mambavision import MambaVisionMixer
from vqvae.ssd import ssd_reference

TOKENS, CHANGED = 90, 70


@pytest.fixture
def mixer() -> MambaVisionMixer:
    """16 channels in each half, two heads, four state dimensions."""
    return MambaVisionMixer(16, head_size=8, state_size=4)


def _reached(mixer: nn.Module) -> Tensor:
    """Which tokens change with token CHANGED."""
    x = torch.randn(1, TOKENS, 16)
    changed = x.clone()
    changed[:, CHANGED] += 1
    return (mixer(x) - mixer(changed)).abs().amax(-1)[0] > 0


def test_the_mixer_follows_its_equations(mixer: MambaVisionMixer) -> None:
    mixer = mixer.double()
    nn.init.normal_(mixer.conv1d.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    mixed, dt = mixer.in_proj(x).split([40, 2], dim=-1)
    padded = torch.cat([torch.zeros(2, 1, 40), mixed, torch.zeros(2, 1, 40)], dim=1)
    mixed = sum(padded[:, k : k + 9] * mixer.conv1d.weight[:, 0, k] for k in range(3)) + mixer.conv1d.bias
    local, inputs, into, out_of = (mixed * mixed.sigmoid()).split([16, 16, 4, 4], dim=-1)
    inputs = inputs.unflatten(-1, (2, 8))
    dt = torch.log1p(torch.exp(dt + mixer.dt_bias))
    scanned = ssd_reference(inputs, dt, -mixer.A_log.exp(), into, out_of) + mixer.D[:, None] * inputs
    both = torch.cat([scanned.flatten(2), local], dim=-1)
    both = both / (both.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x), both @ mixer.out_proj.weight.T)


def test_a_token_reaches_every_later_one_and_its_left_neighbor(mixer: MambaVisionMixer) -> None:
    assert torch.equal(_reached(mixer), torch.arange(TOKENS) >= CHANGED - 1)


def test_the_half_without_a_scan_sees_the_neighbors_alone(mixer: MambaVisionMixer) -> None:
    with torch.no_grad():
        mixer.in_proj.weight[36:40] = 0  # C: nothing is read from the state
        mixer.D.zero_()
    assert torch.equal(_reached(mixer), (torch.arange(TOKENS) - CHANGED).abs() <= 1)


def test_the_scan_alone_sees_what_was_before(mixer: MambaVisionMixer) -> None:
    with torch.no_grad():
        mixer.in_proj.weight[:16] = 0  # the other half is silent
        mixer.conv1d.weight[..., [0, 2]] = 0  # and so are the neighbors
    assert torch.equal(_reached(mixer), torch.arange(TOKENS) >= CHANGED)


def test_both_halves_start_about_as_large_at_any_width() -> None:
    for width in (64, 256):
        mixer = MambaVisionMixer(width, head_size=64, state_size=128)
        entering: list[Tensor] = []
        mixer.norm.register_forward_pre_hook(lambda _, inputs, entering=entering: entering.extend(inputs))
        mixer(torch.randn(2, 256, width))
        scanned, local = (half.square().mean().sqrt().item() for half in entering[0].chunk(2, dim=-1))
        assert 0.5 < scanned / local < 2


def test_bfloat16_stays_near(mixer: MambaVisionMixer) -> None:
    x = torch.randn(2, TOKENS, 16)
    expected = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = mixer(x)
    assert narrow.dtype == torch.bfloat16
    assert ((narrow - expected).norm() / expected.norm()).item() < 0.02


def test_a_head_size_that_does_not_divide_the_scanned_half_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        MambaVisionMixer(24, head_size=16, state_size=4)
    assert str(error.value) == "model.head_size: must divide the 24 channels that MambaVision scans, but got 16"
