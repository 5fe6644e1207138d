"""Perturbed codes: which are replaced, by what, and over which quantizers."""

import pytest
import torch

from vqvae import robustness
from vqvae.config import QuantizerConfig
from vqvae.quantize import QUANTIZERS
from vqvae.robustness import NEIGHBORS, Neighbors, images_within_reach, perturb

CPU = torch.device("cpu")


def quantizer(kind, codebook_size=64):
    torch.manual_seed(0)
    config = QuantizerConfig(kind=kind, codebook_size=codebook_size, code_dim=4, levels=(4, 4, 4))
    return QUANTIZERS[kind](config).eval()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_neighbors_are_the_nearest_other_codes_of_every_quantizer(kind):
    made = quantizer(kind)
    codes = made.decode(torch.arange(64)[None])[0].detach()
    found = Neighbors(made, CPU).of(torch.arange(64))
    assert found.shape == (64, NEIGHBORS)
    for code in range(64):
        distances = (codes - codes[code]).square().sum(1)
        distances[code] = torch.inf
        assert code not in found[code]
        assert len(set(found[code].tolist())) == NEIGHBORS
        wanted = distances.sort().values[:NEIGHBORS]  # several codes can be equally near
        torch.testing.assert_close(distances[found[code]], wanted, rtol=1e-4, atol=1e-6)


def test_neighbors_do_not_depend_on_what_was_asked_before_or_on_the_chunks(monkeypatch):
    whole = Neighbors(quantizer("vq"), CPU).of(torch.arange(64))
    monkeypatch.setattr(robustness, "_DISTANCES_AT_ONCE", 3 * 64)
    parts = Neighbors(quantizer("vq"), CPU)
    assert torch.equal(parts.of(torch.tensor([[5, 9], [9, 5]])), whole[torch.tensor([[5, 9], [9, 5]])])
    assert torch.equal(parts.of(torch.arange(64)), whole)


def test_of_two_codes_the_neighbor_is_the_other():
    assert Neighbors(quantizer("vq", 2), CPU).of(torch.tensor([0, 1, 0])).tolist() == [[1], [0], [1]]


def test_a_part_of_the_tokens_of_each_image_becomes_a_near_neighbor():
    neighbors = Neighbors(quantizer("vq"), CPU)
    indices = torch.randint(64, (3, 40), generator=torch.Generator().manual_seed(0))
    before = indices.clone()
    wrong = perturb(indices, 0.1, [0, 1, 2], neighbors)
    assert torch.equal(indices, before)
    assert (wrong != indices).sum(1).tolist() == [4, 4, 4]
    where = (wrong != indices).nonzero()
    assert len({tuple(place) for place in where[:, 1].view(3, 4).tolist()}) == 3  # other places in each image
    for image, place in where.tolist():
        assert wrong[image, place] in neighbors.of(indices[image, place])
    assert (perturb(indices, 1.0, [0, 1, 2], neighbors) != indices).all()


def test_every_neighbor_gets_its_turn():
    neighbors = Neighbors(quantizer("vq"), CPU)
    wrong = perturb(torch.zeros(1, 200, dtype=torch.long), 1.0, [0], neighbors)
    assert set(wrong.unique().tolist()) == set(neighbors.of(torch.tensor(0)).tolist())


def test_errors_are_always_the_same_whatever_images_come_along():
    neighbors = Neighbors(quantizer("vq"), CPU)
    indices = torch.randint(64, (3, 40), generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    whole = perturb(indices, 0.3, [4, 5, 9], neighbors)
    assert torch.equal(perturb(indices[2:], 0.3, [9], neighbors), whole[2:])
    assert torch.equal(torch.get_rng_state(), state)


def test_at_least_one_token_is_replaced():
    indices = torch.zeros(1, 4, dtype=torch.long)
    assert (perturb(indices, 0.1, [0], Neighbors(quantizer("vq"), CPU)) != indices).sum() == 1


def test_with_very_many_codes_fewer_images_are_perturbed():
    assert images_within_reach(2**15, 1024, 0.1) is None
    assert images_within_reach(2**18, 1024, 0.1) == 40
    assert images_within_reach(2**24, 1024, 1.0) == 1
