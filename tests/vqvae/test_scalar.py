"""FSQ, LFQ and BSQ: levels, signs, and entropies without a table of codes."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as reference_package
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae.config import QuantizerConfig
from vqvae.scalar import BSQ, FSQ, LFQ, assignment_entropies


def _fsq(*levels: int) -> FSQ:
    return FSQ(QuantizerConfig(kind="fsq", levels=levels))


LEVELS = pytest.mark.parametrize(
    "levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (3,), (7, 4), (16, 3, 9)], ids=lambda levels: "x".join(map(str, levels))
)


@LEVELS
def test_fsq_equals_vector_quantize_pytorch(levels: tuple[int, ...]) -> None:
    quantizer, reference = _fsq(*levels), reference_package.FSQ(levels)
    assert (quantizer.code_dim, quantizer.codebook_size) == (len(levels), reference.codebook_size)
    vectors = 2 * torch.randn(4, 500, len(levels))
    weights = torch.randn(4, 500, len(levels))
    results = []
    for module in (quantizer, reference):
        points = vectors.clone().requires_grad_()
        codes, indices = module(points)[:2]
        (codes * weights).sum().backward()
        results.append((codes, indices.long(), points.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-5)
    every = torch.arange(quantizer.codebook_size)
    assert torch.equal(quantizer.decode(every[None])[0], reference.implicit_codebook)


def _preimages(quantizer: FSQ) -> Tensor:
    """A vector for each code: the inverse of the bound, at the middle of the code's bin."""
    levels = quantizer.decode(torch.arange(quantizer.codebook_size)[None]).double() * quantizer.half_width
    return (((levels + quantizer.offset) / quantizer.reach).atanh() - quantizer.shift).float()


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (2, 3), (2, 2, 2), (1001,), (5000,)])
def test_every_code_of_fsq_is_reached_by_a_finite_vector(levels: tuple[int, ...]) -> None:
    quantizer = _fsq(*levels)
    vectors = _preimages(quantizer)
    assert vectors.isfinite().all()
    assert torch.equal(quantizer(vectors).indices[0], torch.arange(quantizer.codebook_size))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (1001,), (5000,), (2**24,)])
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, -1e30])
def test_fsq_stays_among_its_codes_however_far_a_vector_is(levels: tuple[int, ...], value: float) -> None:
    quantizer = _fsq(*levels)
    indices = quantizer(torch.full((1, 1, len(levels)), value)).indices
    assert indices.item() == (quantizer.codebook_size - 1 if value > 0 else 0)


def test_the_codes_of_fsq_are_fractions_from_minus_one() -> None:
    assert _fsq(5).decode(torch.arange(5)[None]).flatten().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert _fsq(4).decode(torch.arange(4)[None]).flatten().tolist() == [-1, -0.5, 0, 0.5]
    assert _fsq(2).decode(torch.arange(2)[None]).flatten().tolist() == [-1, 0]


def test_the_first_dimension_of_fsq_is_the_fastest_digit() -> None:
    digits = _fsq(3, 4).decode(torch.arange(12)[None])[0] * torch.tensor([1.0, 2.0])
    expected = [(first, second) for second, first in product([-2, -1, 0, 1], [-1, 0, 1])]
    assert digits.tolist() == [list(pair) for pair in expected]


def test_zero_is_the_middle_of_a_bin_of_fsq_and_the_border_of_two_levels() -> None:
    for levels in (3, 4, 5, 8):
        quantizer = _fsq(levels)
        near = torch.tensor([[[-0.1], [0.0], [0.1]]]) / levels
        assert quantizer(near).codes.flatten().tolist() == [0, 0, 0]
    assert _fsq(2)(torch.tensor([[[-1e-3], [1e-3]]])).indices.tolist() == [[0, 1]]


def test_fsq_is_in_float32_whatever_autocast_says() -> None:
    quantizer = _fsq(1001)
    vectors = _preimages(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(vectors).indices[0], torch.arange(1001))


def test_the_gradient_of_fsq_is_that_of_its_bound() -> None:
    vectors = torch.tensor([[[0.3, -0.7]]], requires_grad=True)
    _fsq(5, 8)(vectors).codes.sum().backward()
    reach = torch.tensor([2.002, 3.5035])
    shift = torch.tensor([0.0, math.atanh(0.5 / 3.5035)])
    expected = (1 - torch.tanh(vectors.detach() + shift).square()) * reach / torch.tensor([2.0, 4.0])
    torch.testing.assert_close(vectors.grad, expected)
    assert _fsq(5)(torch.zeros(1, 1, 1)).losses == {}


BINARY = pytest.mark.parametrize("kind", [LFQ, BSQ])


def _binary(kind: type[LFQ] | type[BSQ], bits: int = 6, **values: object) -> LFQ | BSQ:
    return kind(QuantizerConfig(**{"kind": kind.__name__.lower(), "codebook_size": 2**bits, **values}))


@BINARY
def test_lfq_and_bsq_equal_vector_quantize_pytorch(kind: type[LFQ] | type[BSQ]) -> None:
    # Whose first dimension is the highest bit of an index; ours is the lowest, as in the paper's eq. 4.
    quantizer = _binary(kind, beta=0.3, entropy_weight=0.1, diversity=0.7, entropy_temperature=0.5)
    reference = reference_package.LFQ(
        codebook_size=64,
        spherical=kind is BSQ,
        commitment_loss_weight=0.3,
        entropy_loss_weight=0.1,
        diversity_gamma=0.7,
    )
    vectors, weights = torch.randn(4, 50, 6), torch.randn(4, 50, 6)
    ours, theirs = (vectors.clone().requires_grad_() for _ in range(2))
    codes, indices, losses = quantizer(ours)
    their_codes, their_indices, their_loss = reference(theirs.flip(-1), inv_temperature=1 / 0.5)
    assert torch.equal(indices, their_indices.long())
    torch.testing.assert_close(codes, their_codes.flip(-1))
    # It cuts logarithms off at 1e-5.
    torch.testing.assert_close(sum(losses.values()), their_loss, rtol=1e-3, atol=1e-4)
    ((codes * weights).sum() + sum(losses.values())).backward()
    ((their_codes * weights.flip(-1)).sum() + their_loss).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@BINARY
def test_a_code_is_the_nearest_of_all_and_its_first_sign_the_lowest_bit(kind: type[LFQ] | type[BSQ]) -> None:
    quantizer = _binary(kind)
    every = quantizer.decode(torch.arange(64)[None])[0]
    assert (every[1] > 0).tolist() == [True] + 5 * [False]
    vectors = torch.randn(3, 40, 6)
    quantized = quantizer(vectors)
    points = F.normalize(vectors, dim=-1) if kind is BSQ else vectors
    assert torch.equal(quantized.indices, torch.cdist(points, every.expand(3, 64, 6)).argmin(-1))
    assert every.abs().unique().tolist() == [pytest.approx(1.0 if kind is LFQ else 6**-0.5)]


@BINARY
def test_zero_counts_as_negative(kind: type[LFQ] | type[BSQ]) -> None:
    assert _binary(kind)(torch.zeros(1, 1, 6)).indices.item() == 0


def _naive(vectors: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both entropies by a softmax over all codes."""
    logits = -torch.cdist(vectors, codes).square() / temperature
    soft = logits.softmax(-1)
    mean = soft.mean(0)
    return -(soft * logits.log_softmax(-1)).sum(-1).mean(), -torch.special.xlogy(mean, mean).sum()


@BINARY
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_entropy_term_equals_a_softmax_over_all_codes(
    kind: type[LFQ] | type[BSQ], bits: int, temperature: float
) -> None:
    quantizer = _binary(kind, bits, entropy_weight=0.3, diversity=0.7, entropy_temperature=temperature)
    vectors = torch.randn(2, 20, bits).double()
    ours, theirs = (vectors.clone().requires_grad_() for _ in range(2))
    term = quantizer.double()(ours).losses["entropy"]
    points = F.normalize(theirs, dim=-1) if kind is BSQ else theirs
    codes = quantizer.decode(torch.arange(2**bits)[None])[0].double()
    each, of_mean = _naive(points.flatten(0, 1), codes, temperature)
    # The code's length and the settings are float32.
    torch.testing.assert_close(term, 0.3 * (each - 0.7 * of_mean), rtol=1e-5, atol=1e-7)
    for loss in (term, 0.3 * (each - 0.7 * of_mean)):
        loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@given(rows=st.integers(1, 30), bits=st.integers(1, 11), scale=st.sampled_from([0.0, 0.1, 1.0, 50.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_entropies_are_in_range_and_their_gradients_finite(rows: int, bits: int, scale: float) -> None:
    log_odds = (scale * torch.randn(rows, bits)).requires_grad_()
    mean_entropy, entropy_of_mean = assignment_entropies(log_odds)
    most = bits * math.log(2) * (1 + 1e-5)
    assert -1e-5 <= mean_entropy.item() <= most
    assert mean_entropy.item() - 1e-4 <= entropy_of_mean.item() <= most
    (mean_entropy - entropy_of_mean).backward()
    assert log_odds.grad.isfinite().all()


def test_bits_that_go_together_lower_the_entropy_of_the_mean() -> None:
    # What an approximation by the product of the bits' means would not see.
    together = 100 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    apart = 100 * torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    assert assignment_entropies(together)[1].item() == pytest.approx(math.log(2))
    assert assignment_entropies(apart)[1].item() == pytest.approx(math.log(4))


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_the_entropy_term_never_holds_vectors_times_codes() -> None:
    quantizer, vectors = _binary(LFQ, 14), torch.randn(4, 1024, 14, requires_grad=True)
    with _Largest() as largest:
        quantizer(vectors).losses["entropy"].backward()
    assert largest.elements == 4096 * 2**7


@BINARY
def test_the_commitment_term_draws_a_vector_to_its_code(kind: type[LFQ] | type[BSQ]) -> None:
    quantizer = _binary(kind, 1, beta=0.25, entropy_weight=0.0)
    vectors = torch.tensor([[[0.4], [-3.0]]], requires_grad=True)
    losses = quantizer(vectors).losses
    assert list(losses) == ["commitment", "entropy"]
    losses["commitment"].backward()
    if kind is LFQ:  # the mean of 0.6^2 and 2^2
        assert losses["commitment"].item() == pytest.approx(0.25 * (0.36 + 4) / 2)
        assert vectors.grad.flatten().tolist() == pytest.approx([0.25 * -0.6, 0.25 * -2.0])
    else:  # on the sphere of one dimension they are codes
        assert losses["commitment"].item() == 0


def test_the_entropy_of_a_vector_falls_as_it_leaves_the_border() -> None:
    quantizer = _binary(LFQ, 1, entropy_weight=0.5, diversity=0.0, entropy_temperature=2.0)
    vectors = torch.tensor([[[0.4]]], requires_grad=True)
    entropy = quantizer(vectors).losses["entropy"]
    log_odds = 4 * 0.4 / 2.0
    p = 1 / (1 + math.exp(-log_odds))
    assert entropy.item() == pytest.approx(-0.5 * (p * math.log(p) + (1 - p) * math.log(1 - p)))
    entropy.backward()
    # dH / d log-odds is - log-odds p (1 - p), and the log-odds grow by 4 / T.
    assert vectors.grad.item() == pytest.approx(-0.5 * log_odds * p * (1 - p) * 2)


def test_diversity_pulls_vectors_of_one_code_apart() -> None:
    settings = {"entropy_weight": 1.0, "entropy_temperature": 1.0}
    vectors = torch.tensor([[[0.5], [0.1]]], requires_grad=True)
    _binary(LFQ, 1, diversity=3.0, **settings)(vectors).losses["entropy"].backward()
    assert (vectors.grad > 0).all()  # descent takes both towards the other code
    balanced = torch.tensor([[[0.5], [-0.5]]], requires_grad=True)
    _binary(LFQ, 1, diversity=3.0, **settings)(balanced).losses["entropy"].backward()
    assert balanced.grad[0, 0] < 0 < balanced.grad[0, 1]  # once the codes are even, away from the border


@BINARY
def test_the_weights_of_the_terms_are_tensors_that_no_checkpoint_carries(kind: type[LFQ] | type[BSQ]) -> None:
    quantizer, vectors = _binary(kind), torch.randn(1, 9, 6)
    once = quantizer(vectors).losses
    quantizer.beta.mul_(2)
    quantizer.entropy_weight.mul_(3)
    again = quantizer(vectors).losses
    torch.testing.assert_close(again["commitment"], 2 * once["commitment"])
    torch.testing.assert_close(again["entropy"], 3 * once["entropy"])
    assert quantizer.state_dict() == {}
    assert list(quantizer.parameters()) == []


@BINARY
def test_the_entropy_term_spreads_vectors_over_the_codes(kind: type[LFQ] | type[BSQ]) -> None:
    quantizer = _binary(kind, 4, entropy_weight=1.0, entropy_temperature=1.0, diversity=2.0)
    vectors = (torch.randn(1, 200, 4) * 0.3 + 1).requires_grad_()
    before = quantizer(vectors).indices.unique().numel()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sum(quantizer(vectors).losses.values()).backward()
        optimizer.step()
    assert before < 5
    assert quantizer(vectors).indices.unique().numel() > 12
