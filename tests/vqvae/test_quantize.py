"""The vector quantizer: nearest codes, gradients, terms, memory."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae import codes as codes_module
from vqvae.codes import nearest_codes
from vqvae.config import QuantizerConfig
from vqvae.quantize import VectorQuantizer

SPACES = pytest.mark.parametrize("l2_normalize", [True, False], ids=["sphere", "plane"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def _quantizer(l2_normalize: bool, codebook_size: int = 50, code_dim: int = 6, beta: float = 0.25) -> VectorQuantizer:
    return VectorQuantizer(
        QuantizerConfig(codebook_size=codebook_size, code_dim=code_dim, l2_normalize=l2_normalize, beta=beta)
    )


@SPACES
@pytest.mark.parametrize("held", [1, 50, 333, 2**22])
def test_indices_are_those_of_the_nearest_codes(l2_normalize: bool, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_SEARCH_ELEMENTS", held)
    quantizer = _quantizer(l2_normalize)
    vectors = torch.randn(3, 47, 6)
    codes = F.normalize(quantizer.codebook, dim=-1) if l2_normalize else quantizer.codebook
    points = F.normalize(vectors, dim=-1) if l2_normalize else vectors
    distances = (points[:, :, None].double() - codes.double()).norm(dim=-1)
    indices = quantizer(vectors).indices
    assert indices.dtype == torch.int64
    assert torch.equal(indices, distances.argmin(-1))


def test_lengths_matter_in_the_plane_and_not_on_the_sphere() -> None:
    for l2_normalize, expected in ((True, 0), (False, 1)):
        quantizer = _quantizer(l2_normalize, codebook_size=2, code_dim=2)
        quantizer.codebook.data = torch.tensor([[8.0, 0.0], [0.8, 0.5]])
        assert quantizer(torch.tensor([[[1.0, 0.1]]])).indices.item() == expected


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_the_search_never_holds_vectors_times_codes() -> None:
    vectors, codes = torch.randn(4096, 4), torch.randn(8192, 4)
    with _Largest() as largest:
        nearest_codes(vectors, codes)
    assert largest.elements <= 2**22 < len(vectors) * len(codes) / 7


def test_training_never_holds_vectors_times_codes() -> None:
    quantizer = _quantizer(True, codebook_size=8192, code_dim=4)
    vectors = torch.randn(4, 1024, 4, requires_grad=True)
    with _Largest() as largest:
        quantized = quantizer(vectors)
        (quantized.codes.sum() + sum(quantized.losses.values())).backward()
    assert largest.elements <= 2**22


class _Precisions(TorchDispatchMode):
    """Remembers the precisions in which matrices of float32 were multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "mm" in str(func):
            backends = torch.backends
            self.seen.add((backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision))
            assert not backends.cuda.matmul.allow_tf32  # the older getter, which raises where old and new differ
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _precision_kept() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision_kept")
@pytest.mark.parametrize("setting", ["high", "medium"])
def test_the_search_multiplies_without_tf32_and_bfloat16_whatever_is_set(setting: str) -> None:
    torch.set_float32_matmul_precision(setting)
    of_cuda, of_mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = (of_cuda.fp32_precision, of_mkldnn.fp32_precision)
    with _Precisions() as precisions:
        nearest_codes(torch.randn(9, 2), torch.randn(4, 2))
    assert precisions.seen == {("ieee", "ieee")}
    assert torch.get_float32_matmul_precision() == setting
    assert (of_cuda.fp32_precision, of_mkldnn.fp32_precision) == before != ("ieee", "ieee")
    assert of_cuda.allow_tf32


@pytest.mark.usefixtures("_precision_kept")
def test_a_precision_that_was_set_for_the_backends_alone_comes_back() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with _Precisions() as precisions:
        nearest_codes(torch.randn(9, 2), torch.randn(4, 2))
    assert precisions.seen == {("ieee", "ieee")}
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_the_search_is_in_float32_whatever_autocast_says() -> None:
    # Neighbors closer together than bfloat16 can tell.
    codebook = torch.linspace(1, 2, 200)[:, None]
    expected = torch.randperm(200)
    vectors = codebook[expected]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), expected)


@SPACES
def test_decoding_the_indices_gives_exactly_the_codes(l2_normalize: bool) -> None:
    quantizer = _quantizer(l2_normalize)
    quantized = quantizer(3 * torch.randn(4, 32, 6))
    assert torch.equal(quantizer.decode(quantized.indices), quantized.codes)
    every = torch.arange(50)[None]
    assert torch.equal(quantizer(quantizer.decode(every)).indices, every)


def test_codes_lie_on_the_unit_sphere() -> None:
    codes = _quantizer(True)(torch.randn(4, 32, 6)).codes
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(4, 32))


def test_the_gradient_of_the_codes_passes_straight_through() -> None:
    quantizer = _quantizer(False)
    vectors, weights = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6)
    (quantizer(vectors).codes * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)
    assert quantizer.codebook.grad is None


def test_on_the_sphere_the_gradient_turns_the_vector_and_does_not_stretch_it() -> None:
    vectors, weights = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6)
    (_quantizer(True)(vectors).codes * weights).sum().backward()
    torch.testing.assert_close((vectors.grad * vectors.detach()).sum(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    assert vectors.grad.abs().sum() > 0


def test_beta_weighs_the_commitment_term_and_each_term_moves_its_own_side() -> None:
    # One vector at 3, the nearer code at 1: the mean over two dimensions of (2, 0) squared is 2.
    quantizer = _quantizer(False, codebook_size=2, code_dim=2, beta=0.25)
    quantizer.codebook.data = torch.tensor([[1.0, 0.0], [-9.0, 0.0]])
    vectors = torch.tensor([[[3.0, 0.0]]], requires_grad=True)
    losses = quantizer(vectors).losses
    assert list(losses) == ["codebook", "commitment"]
    assert losses["codebook"].item() == 2.0
    assert losses["commitment"].item() == 0.25 * 2.0
    of_codebook = torch.autograd.grad(losses["codebook"], [vectors, quantizer.codebook], allow_unused=True)
    of_commitment = torch.autograd.grad(losses["commitment"], [vectors, quantizer.codebook], allow_unused=True)
    assert of_codebook[0] is None
    assert torch.equal(of_codebook[1], torch.tensor([[-2.0, 0.0], [0.0, 0.0]]))  # descent moves the code to the vector
    assert torch.equal(of_commitment[0], torch.tensor([[[0.5, 0.0]]]))  # and the vector to the code
    assert of_commitment[1] is None


def test_beta_is_a_tensor_that_no_checkpoint_carries() -> None:
    quantizer = _quantizer(True, beta=0.5)
    vectors = torch.randn(1, 3, 6)
    once = quantizer(vectors).losses["commitment"]
    quantizer.beta.fill_(1.0)
    torch.testing.assert_close(quantizer(vectors).losses["commitment"], 2 * once)
    assert list(quantizer.state_dict()) == ["codebook"]


@SPACES
def test_descending_the_terms_brings_codes_and_vectors_together(l2_normalize: bool) -> None:
    quantizer = _quantizer(l2_normalize, codebook_size=8, code_dim=2)
    vectors = torch.randn(1, 256, 2)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    terms = []
    for _ in range(100):
        loss = quantizer(vectors).losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terms.append(loss.item())
    assert terms[-1] < 0.7 * terms[0]
