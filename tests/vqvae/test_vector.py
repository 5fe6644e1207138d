"""The vector quantizers: nearest codes, gradients, terms, moving averages, restarts, memory."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vector_quantize_pytorch import SimVQ as ReferenceSimVQ
from vector_quantize_pytorch import VectorQuantize

from vqvae.codes import Quantizer
from vqvae.config import QuantizerConfig
from vqvae.vector import USAGE_DECAY, SimVQ, VectorQuantizer

SPACES = pytest.mark.parametrize("l2_normalize", [True, False], ids=["sphere", "plane"])


def _quantizer(l2_normalize: bool = False, **settings: object) -> VectorQuantizer:
    return VectorQuantizer(
        QuantizerConfig(**{"codebook_size": 50, "code_dim": 6, "l2_normalize": l2_normalize, **settings})
    )


def _step(quantizer: Quantizer, *micro_batches: Tensor, step: int = 1, seed: int = 0) -> None:
    """An optimizer step, but for the optimizer."""
    quantizer.begin_step(step, 1000, seed)
    for vectors in micro_batches:
        quantizer(vectors)
    quantizer.end_step()


@SPACES
def test_indices_are_those_of_the_nearest_codes(l2_normalize: bool) -> None:
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


def test_the_rotation_trick_gives_the_same_codes_and_another_gradient() -> None:
    vectors, weights = torch.randn(2, 30, 6, requires_grad=True), torch.randn(2, 30, 6)
    gradients = []
    for estimator in ("straight-through", "rotation"):
        torch.manual_seed(1)
        quantizer = _quantizer(estimator=estimator)
        quantized = quantizer(vectors)
        assert torch.equal(quantized.codes, quantizer.decode(quantized.indices))
        gradients += torch.autograd.grad((quantized.codes * weights).sum(), vectors)
    codes = quantized.codes.detach()
    # Rotated and rescaled: by |q| / |e|, at the same angle to the vector as the gradient of the code to the code.
    lengths = codes.norm(dim=-1) / vectors.detach().norm(dim=-1)
    torch.testing.assert_close(gradients[1].norm(dim=-1), lengths * weights.norm(dim=-1))
    cosines = [F.cosine_similarity(*pair, dim=-1) for pair in ((gradients[1], vectors), (weights, codes))]
    torch.testing.assert_close(cosines[0], cosines[1])
    assert torch.equal(gradients[0], weights)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_learning_rate_of_its_own_is_for_a_codebook_that_learns_by_gradient(update: str) -> None:
    quantizer = _quantizer(update=update)
    assert [id(parameter) for parameter in quantizer.fast_parameters()] == [id(p) for p in quantizer.parameters()]
    assert len(quantizer.fast_parameters()) == (update == "gradient")


@pytest.mark.parametrize("l2_normalize", [True, False], ids=["sphere", "plane"])
def test_moving_averages_equal_vector_quantize_pytorch(l2_normalize: bool) -> None:
    # Its smoothing of empty clusters is off: it pulls codes towards zero that draw nothing; ours keep their place.
    # Its averages begin with a weight of 1 for the random first codes, ours with none.
    quantizer = _quantizer(l2_normalize, update="ema", ema_decay=0.9)
    reference = VectorQuantize(
        dim=6, codebook_size=50, use_cosine_sim=l2_normalize, decay=0.9, eps=0.0, rotation_trick=False
    )
    quantizer.codebook.copy_(reference.codebook)
    quantizer.counts.fill_(1)
    for step in range(1, 9):
        vectors = torch.randn(4, 32, 6) + 1  # far from some codes
        theirs, indices, _ = reference(vectors)
        quantizer.begin_step(step, 1000, 0)
        quantized = quantizer(vectors)
        quantizer.end_step()
        assert torch.equal(quantized.indices, indices)
        torch.testing.assert_close(quantized.codes, theirs)
        codes = quantizer.decode(torch.arange(50)[None])[0]
        torch.testing.assert_close(codes, reference.codebook, rtol=1e-5, atol=1e-6)
    assert 0 < (quantizer.counts < 0.5).sum() < 50


def test_the_commitment_term_equals_vector_quantize_pytorch() -> None:
    quantizer = _quantizer(update="ema", beta=0.3)
    reference = VectorQuantize(dim=6, codebook_size=50, commitment_weight=0.3, rotation_trick=False)
    quantizer.codebook.copy_(reference.codebook)
    vectors = torch.randn(4, 32, 6)
    losses = quantizer(vectors).losses
    assert list(losses) == ["commitment"]
    torch.testing.assert_close(losses["commitment"], reference(vectors)[2].squeeze())


def test_a_code_is_the_mean_of_all_vectors_it_has_drawn_the_older_the_less() -> None:
    quantizer = _quantizer(codebook_size=2, code_dim=1, update="ema", ema_decay=0.75)
    quantizer.codebook.copy_(torch.tensor([[1.0], [-50.0]]))
    _step(quantizer, torch.tensor([[[2.0], [4.0]]]))
    assert quantizer.codebook.tolist() == [[3.0], [-50.0]]  # its random first place counts nothing
    _step(quantizer, torch.tensor([[[10.0]]]))
    torch.testing.assert_close(quantizer.codebook[0, 0].item(), (0.75 * (2 + 4) + 10) / (0.75 * 2 + 1))


def test_a_code_that_draws_nothing_keeps_its_place_for_ever() -> None:
    quantizer = _quantizer(codebook_size=2, code_dim=1, update="ema", ema_decay=0.0)
    quantizer.codebook.copy_(torch.tensor([[1.0], [-50.0]]))
    _step(quantizer, torch.tensor([[[-52.0]]]))
    for _ in range(3):
        _step(quantizer, torch.tensor([[[2.0]]]))
    assert quantizer.codebook.tolist() == [[2.0], [-52.0]]
    assert quantizer.counts.tolist() == [1, 0]
    _step(quantizer, torch.tensor([[[-54.0]]]))
    assert quantizer.codebook.tolist() == [[2.0], [-54.0]]


def test_codes_that_are_averages_lie_on_the_unit_sphere() -> None:
    quantizer = _quantizer(True, update="ema")
    for step in range(3):
        _step(quantizer, torch.randn(4, 32, 6), step=step + 1)
    torch.testing.assert_close(quantizer.decode(torch.arange(50)[None]).norm(dim=-1), torch.ones(1, 50))


LEARNING = pytest.mark.parametrize(
    "settings",
    [
        {"update": "ema"},
        {"update": "ema", "revive_below": 0.9},
        {"update": "gradient", "revive_below": 0.9},
    ],
    ids=["ema", "ema revived", "gradient revived"],
)


@SPACES
@LEARNING
def test_accumulation_equals_one_batch(l2_normalize: bool, settings: dict[str, object]) -> None:
    once = _quantizer(l2_normalize, **settings)
    often = copy.deepcopy(once)
    first = once.codebook.detach().clone()
    for step in range(1, 21):
        vectors = torch.randn(8, 9, 6)
        _step(once, vectors, step=step)
        _step(often, *vectors.split([4, 3, 1]), step=step)
    assert all(torch.equal(value, often.state_dict()[name]) for name, value in once.state_dict().items())
    assert not torch.equal(once.codebook, first)


@LEARNING
def test_a_repeated_step_counts_once(settings: dict[str, object]) -> None:
    once, twice = (_quantizer(**settings) for _ in range(2))
    twice.load_state_dict(once.state_dict())
    for step in range(1, 21):
        vectors = torch.randn(2, 60, 6)
        twice.begin_step(step, 1000, 0)
        twice(torch.randn(1, 60, 6))  # then memory ran out
        for each in (once, twice):
            _step(each, vectors, step=step)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


@LEARNING
def test_nothing_moves_outside_of_a_step_in_evaluation_and_without_vectors(settings: dict[str, object]) -> None:
    quantizer = _quantizer(**settings)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(2, 60, 6))
    quantizer.end_step()
    _step(quantizer)
    _step(quantizer.eval(), torch.randn(2, 60, 6))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    _step(quantizer.train(), torch.randn(2, 60, 6))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(2, 60, 6))
    quantizer.end_step()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@LEARNING
def test_a_resumed_run_equals_one_that_never_stopped(settings: dict[str, object]) -> None:
    batches = torch.randn(20, 2, 60, 6)
    quantizer, stopped = _quantizer(**settings), _quantizer(**settings)
    stopped.load_state_dict(quantizer.state_dict())
    for step, vectors in enumerate(batches, 1):
        _step(quantizer, vectors, step=step, seed=7)
        if step == 12:
            resumed = _quantizer(**settings)
            resumed.load_state_dict(stopped.state_dict())
            stopped = resumed
        _step(stopped, vectors, step=step, seed=7)
    assert all(torch.equal(value, stopped.state_dict()[name]) for name, value in quantizer.state_dict().items())


UPDATES = pytest.mark.parametrize("update", ["gradient", "ema"])


@UPDATES
@SPACES
def test_starving_codes_restart_at_vectors_of_the_batch_each_at_another(l2_normalize: bool, update: str) -> None:
    quantizer = _quantizer(l2_normalize, update=update, revive_below=0.1)
    drawn = _one_sided(quantizer)
    quantizer.usage[~drawn] = 0.0
    vectors = torch.randn(4, 32, 6).abs()
    before = quantizer.codebook.detach().clone()
    _step(quantizer, vectors)
    candidates = F.normalize(vectors, dim=-1) if l2_normalize else vectors
    equal = (quantizer.codebook[~drawn][:, None] == candidates.flatten(0, 1)).all(-1)
    assert equal.any(1).all()
    assert equal.sum(0).max() == 1
    assert quantizer.usage[~drawn].tolist() == [1.0] * 40
    if update == "gradient":
        assert torch.equal(quantizer.codebook[drawn], before[drawn])
        assert quantizer.codebook.requires_grad


def _one_sided(quantizer: VectorQuantizer) -> Tensor:
    """Ten codes where the vectors of the tests are, the others opposite; which those ten are."""
    drawn = torch.arange(50) % 5 == 0
    with torch.no_grad():
        quantizer.codebook.abs_()
        quantizer.codebook[~drawn] -= 9
    return drawn


def test_a_restarted_average_weighs_as_one_vector_and_forgets_what_it_was() -> None:
    quantizer = _quantizer(codebook_size=2, code_dim=1, update="ema", ema_decay=0.75, revive_below=0.5)
    quantizer.codebook.copy_(torch.tensor([[1.0], [-50.0]]))
    quantizer.counts.fill_(8)
    quantizer.usage[1] = 0
    _step(quantizer, torch.full((1, 5, 1), 2.0))
    assert (quantizer.codebook[1].item(), quantizer.counts[1].item()) == (2, 0.25)
    quantizer.codebook[0] = -50
    _step(quantizer, torch.full((1, 1, 1), 4.0))
    torch.testing.assert_close(quantizer.codebook[1, 0].item(), (0.75 * 2 + 4) / (0.75 + 1))


def test_restarts_differ_by_seed_and_step_alone() -> None:
    def restarted(step: int, seed: int) -> Tensor:
        torch.manual_seed(step + seed)
        quantizer.load_state_dict(state)
        _step(quantizer, vectors, step=step, seed=seed)
        return quantizer.codebook.detach().clone()

    quantizer, vectors = _quantizer(revive_below=0.1), torch.randn(4, 32, 6).abs()
    quantizer.usage[~_one_sided(quantizer)] = 0.0
    state = copy.deepcopy(quantizer.state_dict())
    assert torch.equal(restarted(3, 5), restarted(3, 5))
    assert not torch.equal(restarted(3, 5), restarted(4, 5))
    assert not torch.equal(restarted(3, 5), restarted(3, 6))


def test_where_vectors_are_fewer_than_starving_codes_the_rest_wait() -> None:
    quantizer = _quantizer(revive_below=0.1)
    drawn = _one_sided(quantizer)
    quantizer.usage[~drawn] = 0.0
    _step(quantizer, torch.randn(1, 15, 6).abs())
    assert (quantizer.usage == 1).sum() == 15
    _step(quantizer, torch.randn(1, 25, 6).abs())
    assert (quantizer.usage[~drawn] == 1).sum() >= 25


@pytest.mark.parametrize("revive_below", [0.1, 0.5])
def test_a_code_has_the_time_to_be_forgotten_before_it_restarts(revive_below: float) -> None:
    quantizer = _quantizer(update="ema", revive_below=revive_below)
    drawn = _one_sided(quantizer)
    quantizer.codebook[0] = 0.5
    before = quantizer.codebook.clone()
    steps = 0
    while torch.equal(quantizer.codebook[~drawn], before[~drawn]):
        steps += 1
        _step(quantizer, torch.randn(2, 100, 6).abs(), step=steps)
    assert USAGE_DECAY**steps < revive_below <= USAGE_DECAY ** (steps - 1)


def test_usage_is_the_share_of_the_vectors_that_a_code_draws() -> None:
    quantizer = _quantizer(codebook_size=4, code_dim=1, revive_below=1e-6)
    quantizer.codebook.data = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    vectors = torch.tensor([[[0.0], [0.1], [1.0], [2.0], [2.1], [2.2], [0.2], [0.3]]])
    for step in range(1, 100):
        _step(quantizer, vectors, step=step)
    torch.testing.assert_close(quantizer.usage, torch.tensor([2.0, 0.5, 1.5, 0.0]), atol=1e-4, rtol=0)


@UPDATES
def test_restarts_fill_a_codebook_that_has_collapsed(update: str) -> None:
    used = {}
    for revive_below in (0.0, 0.1):
        torch.manual_seed(0)
        quantizer = _quantizer(True, update=update, revive_below=revive_below)
        narrow = torch.randn(1, 400, 6) * 0.1 + 1
        for step in range(1, 150):
            _step(quantizer, narrow, step=step)
        used[revive_below] = quantizer(narrow).indices.unique().numel()
    assert used[0.0] < 10
    assert used[0.1] > 45


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["codebook"]),
        ({"revive_below": 0.1}, ["codebook", "usage"]),
        ({"update": "ema"}, ["codebook", "counts"]),
        ({"update": "ema", "revive_below": 0.1}, ["codebook", "counts", "usage"]),
    ],
)
def test_a_checkpoint_carries_what_the_settings_need(settings: dict[str, object], names: list[str]) -> None:
    assert sorted(_quantizer(**settings).state_dict()) == names


def test_the_sample_for_restarts_is_no_larger_than_the_codebook() -> None:
    quantizer = _quantizer(codebook_size=8, revive_below=0.5)
    quantizer.begin_step(1, 10, 0)
    for _ in range(5):
        quantizer(torch.randn(2, 60, 6))
    assert quantizer._tally.sample.shape == (8, 6)


class _Peak(TorchDispatchMode):
    """Adds up the bytes of all living tensors, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._living: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._living:
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self._living[key] = weakref.finalize(storage, self._freed, key, size)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, key: int, size: int) -> None:
        del self._living[key]
        self.bytes -= size


def _peak(build, dim: int = 16) -> int:
    """Bytes of a training step over 16384 vectors, on tensors that have shapes and no values."""
    with FakeTensorMode():
        module, vectors = build(), torch.randn(16, 1024, dim, requires_grad=True)
        with _Peak() as peak:
            codes, _, losses = module(vectors)
            (codes.sum() + sum(losses.values() if isinstance(losses, dict) else [losses.sum()])).backward()
    return peak.peak


def test_memory_is_at_most_a_tenth_of_that_of_vector_quantize_pytorch() -> None:
    size = 16384
    theirs = _peak(lambda: VectorQuantize(dim=16, codebook_size=size, use_cosine_sim=True))
    assert theirs > 3 * size * size * 4  # its distances and its one-hot vectors
    settings = {"codebook_size": size, "code_dim": 16}
    assert 16 * 2**20 < _peak(lambda: _quantizer(True, **settings)) < theirs / 10
    assert _peak(lambda: _quantizer(True, update="ema", revive_below=0.01, **settings)) < theirs / 10
    assert _peak(lambda: _simvq(**settings)) < theirs / 10


def _simvq(**settings: object) -> SimVQ:
    return SimVQ(QuantizerConfig(**{"codebook_size": 50, "code_dim": 6, **settings}))


@pytest.mark.parametrize("estimator", ["straight-through", "rotation"])
def test_simvq_equals_vector_quantize_pytorch(estimator: str) -> None:
    quantizer = _simvq(estimator=estimator, beta=0.25)
    reference = ReferenceSimVQ(dim=6, codebook_size=50, rotation_trick=estimator == "rotation")
    reference.frozen_codebook.copy_(quantizer.basis)
    reference.code_transform.load_state_dict(quantizer.map.state_dict())
    vectors = torch.randn(4, 32, 6)
    results = []
    for module in (quantizer, reference):
        points = vectors.clone().requires_grad_()
        codes, indices, losses = module(points)
        loss = sum(losses.values()) if isinstance(losses, dict) else losses
        ((codes * torch.linspace(0, 1, 6)).sum() + loss).backward()
        results.append((codes, indices, loss, points.grad, *(p.grad for p in module.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(results[0][1], results[1][1])


def test_simvq_learns_its_map_and_keeps_its_random_vectors() -> None:
    quantizer = _simvq()
    assert sorted(quantizer.state_dict()) == ["basis", "map.weight"]
    assert [name for name, _ in quantizer.named_parameters()] == ["map.weight"]
    assert [id(parameter) for parameter in quantizer.fast_parameters()] == [id(quantizer.map.weight)]


def test_simvq_moves_every_code_by_the_gradient_of_a_few() -> None:
    quantizer, vectors = _simvq(), torch.randn(1, 3, 6)
    before = quantizer.decode(torch.arange(50)[None]).detach()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    first = quantizer(vectors).losses["codebook"]
    first.backward()
    optimizer.step()
    moved = (quantizer.decode(torch.arange(50)[None]) - before).norm(dim=-1)
    assert (moved > 1e-4).all()
    assert quantizer(vectors).losses["codebook"] < first


def test_each_term_of_simvq_moves_its_own_side() -> None:
    quantizer = _simvq(codebook_size=2, code_dim=2, beta=0.25)
    quantizer.basis.copy_(torch.tensor([[1.0, 0.0], [-9.0, 0.0]]))
    nn.init.eye_(quantizer.map.weight)
    vectors = torch.tensor([[[3.0, 0.0]]], requires_grad=True)
    losses = quantizer(vectors).losses
    assert {name: term.item() for name, term in losses.items()} == {"codebook": 2.0, "commitment": 0.25 * 2.0}
    leaves = [vectors, quantizer.map.weight]
    of_codebook = torch.autograd.grad(losses["codebook"], leaves, allow_unused=True)
    of_commitment = torch.autograd.grad(losses["commitment"], leaves, allow_unused=True)
    assert of_codebook[0] is None
    assert of_codebook[1].tolist() == [[-2.0, 0.0], [0.0, 0.0]]  # descent stretches the map towards the vector
    assert of_commitment[0].tolist() == [[[0.5, 0.0]]]
    assert of_commitment[1] is None


@given(
    count=st.integers(1, 40),
    size=st.integers(2, 70),
    dim=st.integers(1, 8),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    update=st.sampled_from(["gradient", "ema"]),
    revive_below=st.sampled_from([0.0, 0.3, 0.99]),
    l2_normalize=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_codebook_stays_finite_whatever_is_drawn(count, size, dim, scale, update, revive_below, l2_normalize):
    quantizer = _quantizer(
        l2_normalize, codebook_size=size, code_dim=dim, update=update, revive_below=revive_below, ema_decay=0.5
    )
    for step in range(1, 6):
        _step(quantizer, scale * torch.randn(2, count, dim), torch.zeros(1, 1, dim), step=step)
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    indices = quantizer(scale * torch.randn(2, count, dim)).indices
    assert 0 <= indices.min() <= indices.max() < size
