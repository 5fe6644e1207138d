"""The search for the nearest code, and gradients past the choice of one."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from vqvae import codes as codes_module
from vqvae.codes import Quantizer, nearest_codes, rotated, step_generator, straight_through


@pytest.mark.parametrize("held", [1, 50, 333, 2**22])
def test_the_nearest_code_is_found_however_few_products_are_held(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_SEARCH_ELEMENTS", held)
    vectors, codebook = torch.randn(141, 6), torch.randn(50, 6)
    indices = nearest_codes(vectors, codebook)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, torch.cdist(vectors.double(), codebook.double()).argmin(1))


def test_the_first_of_equally_near_codes_is_taken() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest_codes(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), codebook).tolist() == [1, 1]


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


ESTIMATORS = pytest.mark.parametrize("estimator", [straight_through, rotated])


@ESTIMATORS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_estimator_gives_the_codes_bit_for_bit(estimator, scale: float) -> None:
    vectors, codes = scale * torch.randn(4, 32, 6), torch.randn(4, 32, 6)
    assert torch.equal(estimator(vectors, codes), codes)


def test_straight_through_hands_the_gradient_on_as_it_is() -> None:
    vectors, weights = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 6)
    (straight_through(vectors, torch.randn(2, 5, 6)) * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


def _rotation(start: Tensor, end: Tensor) -> Tensor:
    """The rotation in the plane of two unit vectors that takes one to the other, as a product of two reflections."""
    reflections = [
        torch.eye(len(start), dtype=start.dtype) - 2 * torch.outer(normal, normal) / normal.dot(normal)
        for normal in (start + end, end)
    ]
    return reflections[1] @ reflections[0]


def test_rotated_passes_the_gradient_through_the_rotation_and_scale_from_vector_to_code() -> None:
    vectors = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    codes, weights = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    (rotated(vectors, codes) * weights).sum().backward()
    for vector, code, weight, gradient in zip(vectors.detach(), codes, weights, vectors.grad, strict=True):
        rotation = _rotation(vector / vector.norm(), code / code.norm())
        jacobian = code.norm() / vector.norm() * rotation
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(rotation.det(), torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(jacobian @ vector, code)
        torch.testing.assert_close(gradient, jacobian.T @ weight)


def test_the_rotated_gradient_keeps_its_angle_to_the_code() -> None:
    # A gradient along the code turns into one along the vector: descent then shortens it and does not turn it.
    vectors = torch.tensor([[0.0, 2.0]], requires_grad=True)
    (rotated(vectors, torch.tensor([[3.0, 0.0]])) * torch.tensor([[1.0, 0.0]])).sum().backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.0, 1.5]]))


def test_rotated_equals_vector_quantize_pytorch() -> None:
    vectors, codes, weights = torch.randn(3, 40, 6, requires_grad=True), torch.randn(3, 40, 6), torch.randn(3, 40, 6)
    theirs = rotate_to(vectors, codes)
    torch.testing.assert_close(rotated(vectors, codes), theirs)
    expected = torch.autograd.grad((theirs * weights).sum(), vectors)
    torch.testing.assert_close(torch.autograd.grad((rotated(vectors, codes) * weights).sum(), vectors), expected)


@pytest.mark.parametrize("vector", [[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], ids=["none", "opposite", "equal"])
def test_rotated_is_finite_where_there_is_no_one_rotation(vector: list[float]) -> None:
    vectors = torch.tensor([vector], requires_grad=True)
    codes = rotated(vectors, torch.tensor([[1.0, 0.0]]))
    codes.sum().backward()
    assert codes.tolist() == [[1.0, 0.0]]
    assert vectors.grad.isfinite().all()


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    def numbers(step: int, seed: int) -> list[float]:
        return torch.rand(4, generator=step_generator(step, seed, torch.device("cpu"))).tolist()

    assert numbers(3, 5) == numbers(3, 5)
    assert len({tuple(numbers(*each)) for each in [(2, 5), (3, 5), (5, 3), (3, 6), (4, 5), (3, 5 + 2**32)]}) == 6


def test_a_generator_is_copied_with_its_state() -> None:
    # What a deep copy of a quantizer in the middle of a step rests on.
    generator = step_generator(1, 0, torch.device("cpu"))
    again = copy.deepcopy(generator)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=again))


def test_a_quantizer_without_a_memory_of_its_own_needs_no_steps() -> None:
    quantizer = Quantizer()
    quantizer.begin_step(1, 10, 0)
    quantizer.end_step()
    assert quantizer.fast_parameters() == []
