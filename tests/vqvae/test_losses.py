import pytest
import torch

from vqvae.config import LossConfig
from vqvae.losses import Loss
from vqvae.model import Reconstruction
from vqvae.quantize import Quantized


def reconstruction(images, **losses):
    return Reconstruction(images, Quantized(torch.zeros(1), torch.zeros(1), losses))


@pytest.fixture
def pair():
    """Zeros, and a reconstruction that is 0.5 too bright in the first image and 0.25 too dark in the second."""
    images = torch.zeros(2, 3, 64, 64)
    made = torch.stack([images[0] + 0.5, images[1] - 0.25]).requires_grad_()
    return images, made


def test_l1_pulls_every_pixel_with_the_same_force(pair):
    images, made = pair
    total, terms = Loss(LossConfig(l1=2.0, l2=0, perceptual=0))(images, reconstruction(made))
    assert terms == {"l1": pytest.approx(0.375), "loss": pytest.approx(0.75)}
    total.backward()
    pixels = made.numel()
    torch.testing.assert_close(made.grad[0], torch.full_like(images[0], 2 / pixels))
    torch.testing.assert_close(made.grad[1], torch.full_like(images[0], -2 / pixels))


def test_l2_pulls_in_proportion_to_the_error(pair):
    images, made = pair
    total, terms = Loss(LossConfig(l2=3.0, perceptual=0))(images, reconstruction(made))
    assert terms == {"l2": pytest.approx(0.15625), "loss": pytest.approx(0.46875)}
    total.backward()
    torch.testing.assert_close(made.grad, 3 * 2 * made.detach() / made.numel())


def test_the_perceptual_term_is_named_and_weighted_and_going_down_it_comes_nearer(pair):
    images, made = pair
    loss = Loss(LossConfig(l2=0, perceptual=0.5, lpips_trunk="random"))
    total, terms = loss(images, reconstruction(made))
    assert set(terms) == {"lpips_random", "loss"}
    assert total.item() == pytest.approx(0.5 * terms["lpips_random"].item())
    total.backward()
    with torch.no_grad():
        nearer = made - 0.1 * made.grad / made.grad.norm()
    assert loss(images, reconstruction(nearer))[0] < total


def test_terms_of_the_quantizer_enter_as_they_are(pair):
    images, made = pair
    codebook, commitment = torch.tensor(0.25, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    total, terms = Loss(LossConfig(l2=0, perceptual=0))(
        images, reconstruction(made, codebook=codebook, commitment=commitment)
    )
    assert terms == {"codebook": 0.25, "commitment": 0.5, "loss": 0.75}
    total.backward()
    assert codebook.grad == commitment.grad == 1


def test_the_loss_is_taken_in_float32_and_its_terms_hold_no_graph(pair):
    images, made = pair
    total, terms = Loss(LossConfig(perceptual=0))(images, reconstruction(made.bfloat16()))
    assert total.dtype == torch.float32
    assert not any(term.requires_grad for term in terms.values())


def test_a_term_of_weight_zero_needs_no_trunk(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Loss(LossConfig(perceptual=0)).perceptual is None
