"""The Gumbel-softmax quantizer: draws, gradients, annealing."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from vqvae.config import QuantizerConfig
from vqvae.gumbel import GumbelQuantizer


def _quantizer(**values: object) -> GumbelQuantizer:
    return GumbelQuantizer(QuantizerConfig(**{"kind": "gumbel", "codebook_size": 12, "code_dim": 5, **values}))


def test_the_decoder_sees_codes_alone_in_training_too() -> None:
    quantizer, vectors = _quantizer(), torch.randn(3, 20, 5)
    for mode in (True, False):
        quantized = quantizer.train(mode)(vectors)
        assert torch.equal(quantized.codes, quantizer.decode(quantized.indices))


def test_evaluation_takes_the_likeliest_code_each_time() -> None:
    quantizer, vectors = _quantizer().eval(), torch.randn(3, 20, 5)
    expected = (vectors @ quantizer.to_logits.weight.T + quantizer.to_logits.bias).argmax(-1)
    for _ in range(2):
        assert torch.equal(quantizer(vectors).indices, expected)


def test_training_draws_codes_as_often_as_their_probability_says() -> None:
    quantizer = _quantizer(codebook_size=4, temperature=0.1)
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    nn.init.zeros_(quantizer.to_logits.weight)
    quantizer.to_logits.bias.data = probabilities.log()
    counts = torch.bincount(quantizer(torch.zeros(1, 40000, 5)).indices.flatten())
    torch.testing.assert_close(counts / 40000, probabilities, atol=0.01, rtol=0)


def _drawn(quantizer: GumbelQuantizer, vectors: Tensor, step: int, seed: int) -> Tensor:
    quantizer.begin_step(step, 100, seed)
    indices: Tensor = quantizer(vectors).indices
    return indices


def test_draws_are_a_function_of_seed_and_step() -> None:
    quantizer, vectors = _quantizer(), torch.zeros(2, 50, 5)
    first = _drawn(quantizer, vectors, 3, 7)
    torch.manual_seed(99)
    assert torch.equal(_drawn(copy.deepcopy(quantizer), vectors, 3, 7), first)
    assert not torch.equal(_drawn(quantizer, vectors, 4, 7), first)
    assert not torch.equal(_drawn(quantizer, vectors, 3, 8), first)


def test_micro_batches_draw_as_one_batch_does() -> None:
    quantizer, vectors = _quantizer(), torch.randn(8, 10, 5)
    whole = _drawn(quantizer, vectors, 1, 0)
    quantizer.begin_step(1, 100, 0)
    assert torch.equal(torch.cat([quantizer(part).indices for part in vectors.split(4)]), whole)


def test_a_copy_in_the_middle_of_a_step_goes_on_alike() -> None:
    quantizer, vectors = _quantizer(), torch.randn(2, 10, 5)
    quantizer.begin_step(1, 100, 0)
    quantizer(vectors)
    again = copy.deepcopy(quantizer)
    assert torch.equal(quantizer(vectors).indices, again(vectors).indices)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_gradient_is_that_of_the_soft_draw(temperature: float) -> None:
    quantizer = _quantizer(temperature=temperature)
    vectors, weights = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    quantizer.begin_step(1, 100, 0)
    quantized = quantizer(vectors)
    leaves = [vectors, quantizer.to_logits.weight, quantizer.codebook]
    ours = torch.autograd.grad((quantized.codes * weights).sum(), leaves)
    quantizer.begin_step(1, 100, 0)
    noise = -torch.empty(2, 7, 12).exponential_(generator=quantizer._generator).log()
    soft = ((quantizer.to_logits(vectors) + noise) / temperature).softmax(-1)
    expected = torch.autograd.grad((soft @ quantizer.codebook * weights).sum(), leaves[:2])
    torch.testing.assert_close(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])
    hard = torch.zeros_like(quantizer.codebook).index_add_(0, quantized.indices.flatten(), weights.flatten(0, 1))
    torch.testing.assert_close(ours[2], hard)  # a code learns from the vectors that drew it


def test_the_temperature_falls_exponentially_over_the_whole_run() -> None:
    quantizer = _quantizer(temperature=1.0, final_temperature=1 / 16)
    found = []
    for step in (1, 3, 5):
        quantizer.begin_step(step, 5, 0)
        found.append(quantizer.temperature.item())
    assert found == pytest.approx([1, 1 / 4, 1 / 16])
    quantizer.begin_step(1, 1, 0)
    assert quantizer.temperature.item() == 1


def test_kl_is_zero_for_even_codes_and_log_k_for_a_certain_one() -> None:
    quantizer, vectors = _quantizer(kl_weight=0.5), torch.zeros(1, 3, 5)
    nn.init.zeros_(quantizer.to_logits.bias)
    losses = quantizer(vectors).losses
    assert list(losses) == ["kl"]
    assert losses["kl"].item() == pytest.approx(0, abs=1e-6)
    quantizer.to_logits.bias.data[3] = 200.0
    assert quantizer(vectors).losses["kl"].item() == pytest.approx(0.5 * math.log(12))


def test_descending_kl_evens_the_codes() -> None:
    quantizer, vectors = _quantizer(codebook_size=2, kl_weight=1.0), torch.zeros(1, 1, 5)
    quantizer.to_logits.bias.data = torch.tensor([1.0, 0.0])
    quantizer(vectors).losses["kl"].backward()
    # d/dx of p log p + (1 - p) log(1 - p) at log-odds x is x p (1 - p).
    p = 1 / (1 + math.exp(-1))
    assert quantizer.to_logits.bias.grad.tolist() == pytest.approx([p * (1 - p), -p * (1 - p)])


def test_kl_and_its_gradient_are_finite_where_codes_are_impossible() -> None:
    quantizer = _quantizer()
    quantizer.to_logits.bias.data[0] = 1e4
    quantizer(torch.randn(1, 3, 5)).losses["kl"].backward()
    assert all(p.grad.isfinite().all() for p in quantizer.to_logits.parameters())


def test_settings_are_tensors_that_no_checkpoint_carries() -> None:
    quantizer, vectors = _quantizer(), torch.randn(1, 9, 5)
    once = quantizer(vectors).losses["kl"]
    quantizer.kl_weight.mul_(2)
    torch.testing.assert_close(quantizer(vectors).losses["kl"], 2 * once)
    assert sorted(quantizer.state_dict()) == ["codebook", "to_logits.bias", "to_logits.weight"]
    assert [id(parameter) for parameter in quantizer.fast_parameters()] == [id(quantizer.codebook)]


def test_the_choice_of_codes_is_learned() -> None:
    quantizer = _quantizer(codebook_size=8, code_dim=2, kl_weight=0.0)
    vectors = torch.randn(1, 256, 2)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.03)

    def error() -> float:
        return (quantizer.eval()(vectors).codes - vectors).square().mean().item()

    before = error()
    for step in range(1, 201):
        quantizer.train().begin_step(step, 200, 0)
        optimizer.zero_grad()
        (quantizer(vectors).codes - vectors).square().mean().backward()
        optimizer.step()
    assert error() < 0.3 * before
