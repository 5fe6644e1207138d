"""What holds for every quantizer of the registry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae import testing
from vqvae.codes import Quantizer
from vqvae.config import QuantizerConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.model import bits_per_image
from vqvae.quantize import QUANTIZERS

SETTINGS: dict[str, dict[str, object]] = {
    "vq": {},
    "vq plane": {"l2_normalize": False},
    "vq rotation": {"estimator": "rotation"},
    "vq ema": {"update": "ema"},
    "vq ema plane": {"update": "ema", "l2_normalize": False, "estimator": "rotation"},
    "vq revived": {"revive_below": 0.9},
    "vq ema revived": {"update": "ema", "revive_below": 0.9},
    "simvq": {},
    "simvq rotation": {"estimator": "rotation"},
    "fsq": {"levels": (8, 5, 4)},
    "fsq two": {"levels": (2, 2, 3)},
    "lfq": {},
    "bsq": {},
    "gumbel": {},
}
"""Of each kind, all that can be combined: label -> settings; its first word is the kind."""

EVERY = pytest.mark.parametrize("label", SETTINGS)

TERMS = {
    "vq": ["codebook", "commitment"],
    "simvq": ["codebook", "commitment"],
    "fsq": [],
    "lfq": ["commitment", "entropy"],
    "bsq": ["commitment", "entropy"],
    "gumbel": ["kl"],
}


def _config(label: str, **values: object) -> QuantizerConfig:
    common = {"kind": label.split()[0], "codebook_size": 32, "code_dim": 4}
    return QuantizerConfig(**{**common, **SETTINGS[label], **values})


def _build(label: str, **values: object) -> Quantizer:
    config = _config(label, **values)
    return QUANTIZERS[config.kind](config)


def test_every_kind_is_covered_here() -> None:
    assert {label.split()[0] for label in SETTINGS} == set(QUANTIZERS) == set(TERMS)


@EVERY
@given(
    images=st.integers(1, 3),
    tokens=st.integers(1, 9),
    bits=st.integers(1, 7),
    dim=st.integers(1, 7),
    levels=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_codes_round_trip_indices_are_in_range_and_gradients_finite(
    label: str, images: int, tokens: int, bits: int, dim: int, levels: list[int], scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    own = {"levels": tuple(levels)} if label.startswith("fsq") else {}
    quantizer = _build(label, codebook_size=2**bits, code_dim=dim, **own)
    testing.require_codes(quantizer, scale * torch.randn(images, tokens, quantizer.code_dim))


def _checks(label: str) -> list[testing.Check]:
    # A code of fsq, which bounds vectors first, and one of gumbel, whose codes and scores are apart, may get another.
    itself = [] if label.startswith(("fsq", "gumbel")) else ["codes_are_quantized_to_themselves"]
    settings = {f"quantizer.{name}": value for name, value in SETTINGS[label].items()}
    return testing.checks("quantizer", label.split()[0], settings, promises=[*itself, "indices_do_not_hang_on_tf32"])


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=f"{label}-{check}") for label in SETTINGS for check in _checks(label)]
)
def test_it_passes_the_checks_of_every_quantizer(check: testing.Check) -> None:
    check()


@EVERY
def test_terms_bear_their_names(label: str) -> None:
    expected = TERMS[label.split()[0]]
    losses = _build(label)(torch.randn(2, 9, _build(label).code_dim)).losses
    assert list(losses) == [name for name in expected if not (name == "codebook" and "ema" in label)]
    assert all(term.shape == () for term in losses.values())


def _run(label: str) -> TrainConfig:
    small = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8, "patch": 8}
    config = replace(TrainConfig(), {"model": small, "data.resolution": 32})
    return replace(config, {f"quantizer.{name}": value for name, value in vars(_config(label)).items()})


@pytest.mark.parametrize(
    ("label", "values", "size"),
    [
        ("vq", {"codebook_size": 1000}, 1000),
        ("simvq", {"codebook_size": 3}, 3),
        ("gumbel", {"codebook_size": 8192}, 8192),
        ("fsq", {"levels": (8, 8, 8, 6, 5)}, 15360),
        ("lfq", {"codebook_size": 2**18}, 2**18),
        ("bsq", {"codebook_size": 2**24}, 2**24),
    ],
)
def test_bits_per_image_are_exact(label: str, values: dict[str, object], size: int) -> None:
    config = replace(_run(label), {f"quantizer.{name}": value for name, value in values.items()})
    assert bits_per_image(config) == 16 * math.log2(size)
