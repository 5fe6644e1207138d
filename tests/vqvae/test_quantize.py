"""What holds for every quantizer of the registry."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae.codes import Quantizer
from vqvae.config import QuantizerConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.model import bits_per_image, build_model, count_parameters
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


def _loss(quantizer: Quantizer, vectors: Tensor) -> Tensor:
    quantized = quantizer(vectors)
    return (quantized.codes - 0.3).square().mean() + sum(quantized.losses.values())


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
    vectors = (scale * torch.randn(images, tokens, quantizer.code_dim)).requires_grad_()
    for training in (True, False):
        quantizer.train(training).begin_step(1, 10, seed)
        quantized = quantizer(vectors)
        assert quantized.codes.shape == vectors.shape
        assert quantized.codes.dtype == torch.float32
        assert quantized.indices.shape == (images, tokens)
        assert quantized.indices.dtype == torch.int64
        assert 0 <= quantized.indices.min() <= quantized.indices.max() < quantizer.codebook_size
        assert torch.equal(quantizer.decode(quantized.indices), quantized.codes)
    leaves = [vectors, *quantizer.parameters()]
    for gradient in torch.autograd.grad(_loss(quantizer.train(), vectors), leaves, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
    quantizer.end_step()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@EVERY
def test_every_index_has_a_code_of_its_own(label: str) -> None:
    quantizer = _build(label)
    codes = quantizer.decode(torch.arange(quantizer.codebook_size)[None])[0]
    assert codes.shape == (quantizer.codebook_size, quantizer.code_dim)
    assert len(codes.unique(dim=0)) == quantizer.codebook_size


@EVERY
def test_the_code_of_an_index_does_not_depend_on_the_others(label: str) -> None:
    quantizer = _build(label)
    indices = torch.randint(quantizer.codebook_size, (7, 11))
    codes = quantizer.decode(indices)
    assert all(torch.equal(quantizer.decode(row[None])[0], code) for row, code in zip(indices, codes, strict=True))


@pytest.mark.parametrize("label", [label for label in SETTINGS if not label.startswith(("fsq", "gumbel"))])
def test_a_code_is_quantized_to_itself(label: str) -> None:
    # Not so fsq, which bounds vectors first, nor gumbel, whose codes and scores are apart.
    quantizer = _build(label).eval()
    every = torch.arange(quantizer.codebook_size)[None]
    assert torch.equal(quantizer(quantizer.decode(every)).indices, every)


@EVERY
def test_terms_bear_their_names(label: str) -> None:
    expected = TERMS[label.split()[0]]
    losses = _build(label)(torch.randn(2, 9, _build(label).code_dim)).losses
    assert list(losses) == [name for name in expected if not (name == "codebook" and "ema" in label)]
    assert all(term.shape == () for term in losses.values())


@EVERY
def test_the_decoder_reaches_the_vectors(label: str) -> None:
    quantizer = _build(label)
    vectors = (0.3 * torch.randn(2, 9, quantizer.code_dim)).requires_grad_()
    (quantizer(vectors).codes * torch.randn(2, 9, quantizer.code_dim)).sum().backward()
    assert vectors.grad.isfinite().all()
    assert (vectors.grad.abs().sum(-1) > 0).all()


@EVERY
def test_the_seed_settles_a_quantizer(label: str) -> None:
    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        quantizer = _build(label)
        vectors = torch.randn(2, 30, quantizer.code_dim)
        return [*quantizer.state_dict().values(), quantizer(vectors).codes]

    assert all(torch.equal(one, other) for one, other in zip(run(1), run(1), strict=True))


def _trained(quantizer: Quantizer, steps: range, batches: Tensor) -> Quantizer:
    """A few optimizer steps, driven as the trainer does."""
    for step in steps:
        quantizer.begin_step(step, 40, 7)
        _loss(quantizer, batches[step].clone().requires_grad_()).backward()
        for parameter in quantizer.parameters():
            parameter.data -= 0.05 * parameter.grad
            parameter.grad = None
        quantizer.end_step()
    return quantizer


def _by_copy(quantizer: Quantizer, label: str) -> Quantizer:
    return copy.deepcopy(quantizer)


def _by_state_dict(quantizer: Quantizer, label: str) -> Quantizer:
    fresh = _build(label)
    fresh.load_state_dict(quantizer.state_dict(), strict=True)
    return fresh


@EVERY
@pytest.mark.parametrize("way", [_by_copy, _by_state_dict])
def test_a_copy_and_a_state_dict_go_on_bit_for_bit(label: str, way: Callable[[Quantizer, str], Quantizer]) -> None:
    quantizer = _build(label)
    batches = torch.randn(41, 2, 60, quantizer.code_dim)
    _trained(quantizer, range(1, 15), batches)
    again = way(quantizer, label)
    torch.manual_seed(1)
    for each in (quantizer, again):
        _trained(each, range(15, 41), batches)
    before, after = quantizer.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(quantizer.eval()(batches[0]).codes, again.eval()(batches[0]).codes)


@EVERY
def test_a_copy_has_buffers_of_the_same_shapes_at_any_time(label: str) -> None:
    # The moving average of the weights copies them, one by one.
    quantizer = _build(label)
    copied = copy.deepcopy(quantizer)
    _trained(quantizer, range(1, 4), torch.randn(4, 2, 60, quantizer.code_dim))
    shapes = [[(name, buffer.shape) for name, buffer in each.named_buffers()] for each in (quantizer, copied)]
    assert shapes[0] == shapes[1]


class _Precisions(TorchDispatchMode):
    """Remembers in which precision matrices of float32 were multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "mm" in str(func):
            self.seen.add(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@EVERY
def test_indices_and_codes_do_not_hang_on_tf32(label: str) -> None:
    quantizer = _build(label).eval()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with _Precisions() as precisions:
            quantizer.decode(quantizer(torch.randn(2, 9, quantizer.code_dim)).indices)
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions.seen <= {"ieee"}
    assert bool(precisions.seen) != label.startswith("fsq")


@EVERY
def test_the_meta_device_holds_a_quantizer_without_memory(label: str) -> None:
    with torch.device("meta"):
        quantizer = _build(label)
    assert all(tensor.is_meta for tensor in (*quantizer.parameters(), *quantizer.buffers()))
    assert quantizer.codebook_size == _build(label).codebook_size


def _run(label: str) -> TrainConfig:
    small = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8, "patch": 8}
    config = replace(TrainConfig(), {"model": small, "data.resolution": 32})
    return replace(config, {f"quantizer.{name}": value for name, value in vars(_config(label)).items()})


@EVERY
def test_a_model_decodes_the_indices_to_what_it_reconstructed(label: str) -> None:
    config, images = _run(label), torch.rand(2, 3, 32, 32) * 2 - 1
    model = build_model(config).eval()
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(images)), model(images).images)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


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
