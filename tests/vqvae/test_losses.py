import math

import pytest
import torch

from vqvae import testing
from vqvae.codes import Quantized
from vqvae.config import GanConfig, LossConfig, QuantizerConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.discriminator import Gan
from vqvae.losses import Loss
from vqvae.model import Reconstruction, build_model
from vqvae.quantize import QUANTIZERS

TERMS = {
    "vq": {"codebook", "commitment"},
    "simvq": {"codebook", "commitment"},
    "fsq": set(),
    "lfq": {"commitment", "entropy"},
    "bsq": {"commitment", "entropy"},
    "gumbel": {"kl"},
}


def reconstruction(images, **losses):
    return Reconstruction(images, Quantized(torch.zeros(1), torch.zeros(1), losses))


def tiny(**settings):
    """A model of 32-pixel images and its adversary; settings by their dotted names, with __ for the dot."""
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
        "quantizer": {"codebook_size": 32, "code_dim": 4},
        "loss.perceptual": 0.0,
        "gan": {"weight": 0.5, "width": 8},
        "data.resolution": 32,
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


def stripes(count):
    """Stripes of any direction and color: sharp, and easy to learn."""
    angle, phase = torch.rand(2, count, 1, 1, 1) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return torch.sign(torch.sin(0.6 * (angle.cos() * x + angle.sin() * y) + phase)) * torch.rand(count, 3, 1, 1)


@pytest.fixture
def pair():
    """Zeros, and a reconstruction that is 0.5 too bright in the first image and 0.25 too dark in the second."""
    images = torch.zeros(2, 3, 64, 64)
    made = torch.stack([images[0] + 0.5, images[1] - 0.25]).requires_grad_()
    return images, made


EVERY = [check for name in ("l1", "l2") for check in testing.checks("loss", name, promises=testing.PROMISES["loss"])]


@pytest.mark.parametrize("check", EVERY, ids=lambda check: f"{check.subject.name}-{check}")
def test_a_term_passes_the_checks_of_every_term(check):
    check()


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


def test_every_quantizer_has_its_terms_listed():
    assert set(QUANTIZERS) <= set(TERMS)


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
def test_the_terms_of_every_quantizer_are_reported_by_name_and_add_up(kind):
    torch.manual_seed(0)
    levels = (4, 4, 2) if kind == "fsq" else ()
    quantizer = QUANTIZERS[kind](QuantizerConfig(kind=kind, codebook_size=32, code_dim=4, levels=levels))
    quantizer.begin_step(1, 10, 0)
    images = torch.rand(2, 3, 8, 8)
    vectors = torch.randn(2, 16, quantizer.code_dim, requires_grad=True)
    total, terms = Loss(LossConfig(perceptual=0))(images, Reconstruction(images * 0.9, quantizer(vectors)))
    assert set(terms) == {"l2", "loss"} | TERMS[kind]
    assert total.item() == pytest.approx(sum(value.item() for name, value in terms.items() if name != "loss"))
    if TERMS[kind]:
        total.backward()
        assert vectors.grad.abs().sum() > 0


def test_a_gan_enters_by_its_weight_and_is_reported_before_it(pair):
    images, made = pair
    gan = Gan(GanConfig(weight=0.3, adaptive=False, width=8))
    total, terms = Loss(LossConfig(l2=2.0, perceptual=0))(images, reconstruction(made), gan, last_weight=made)
    assert set(terms) == {"l2", "gan_generator", "gan_weight", "loss"}
    assert terms["gan_generator"] == gan.generator_term(made)
    assert terms["gan_weight"] == pytest.approx(0.3)
    assert total.item() == pytest.approx(2 * 0.15625 + 0.3 * terms["gan_generator"].item())
    total.backward()
    (pull,) = torch.autograd.grad(gan.generator_term(made), made)
    torch.testing.assert_close(made.grad, 2 * 2 * made.detach() / made.numel() + 0.3 * pull)


def test_an_adaptive_gan_pulls_at_the_last_layer_its_weight_times_as_hard_as_the_reconstruction():
    config = tiny(loss__l1=0.5, loss__l2=2.0, gan__weight=0.25)
    model, gan, loss = build_model(config), Gan(config.gan), Loss(config.loss)
    images, last = stripes(2), model.last_weight()

    def pull(*adversary):
        model.zero_grad()
        total, terms = loss(images, model(images), *adversary)
        total.backward()
        return last.grad.clone(), terms

    both, terms = pull(gan, last)
    alone, _ = pull()
    assert (both - alone).norm() == pytest.approx(0.25 * alone.norm().item(), rel=1e-3)
    model.zero_grad()
    (terms["gan_weight"] * gan.generator_term(model(images).images)).backward()
    torch.testing.assert_close(both - alone, last.grad)
    assert all(parameter.grad is None for parameter in gan.parameters())


def test_the_weight_of_a_gan_is_not_compiled_in():
    one, other = (Gan(GanConfig(weight=weight, width=8)) for weight in (0.1, 0.2))
    assert isinstance(one.weight, torch.Tensor)
    assert set(dict(one.named_buffers())) == {"weight"}
    assert one.weight != other.weight


def test_under_bfloat16_the_loss_and_every_term_are_float32():
    config = tiny(loss__l1=1.0, loss__perceptual=0.1, loss__lpips_trunk="random")
    model, gan, loss = build_model(config), Gan(config.gan), Loss(config.loss)
    images = stripes(2)
    with torch.autocast("cpu", torch.bfloat16):
        made = model(images)
        assert made.images.dtype == torch.bfloat16
        total, terms = loss(images, made, gan, model.last_weight())
    assert {total.dtype, *(term.dtype for term in terms.values())} == {torch.float32}
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_of_any_size_give_the_gradients_of_the_whole_batch(size):
    config = tiny(loss__l1=1.0, loss__perceptual=0.1, loss__lpips_trunk="random", gan__adaptive=False)
    model, gan, loss = build_model(config), Gan(config.gan), Loss(config.loss)
    images = stripes(4)

    def accumulated(size):
        model.zero_grad()
        for part in images.split(size):
            (loss(part, model(part), gan)[0] * (size / 4)).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for found, expected in zip(accumulated(size), accumulated(4), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_tiny_model_with_its_gan_stays_finite_and_comes_nearer_to_its_images():
    config = tiny()
    model, gan, loss = build_model(config), Gan(config.gan), Loss(config.loss)
    optimizers = [torch.optim.AdamW(part.parameters(), lr=lr) for part, lr in ((model, 3e-3), (gan, 1e-3))]
    rows = []
    for _ in range(30):
        images = stripes(8)
        made = model(images)
        total, terms = loss(images, made, gan, model.last_weight())
        total.backward()
        judged, own = gan.discriminator_loss(images, made.images)
        judged.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        rows.append({name: value.item() for name, value in {**terms, **own}.items()})
    assert all(math.isfinite(value) for row in rows for value in row.values())
    first, last = (sum(row["l2"] for row in some) / 5 for some in (rows[:5], rows[-5:]))
    assert last < 0.7 * first
    assert rows[-1]["gan_real"] > rows[-1]["gan_fake"]
    assert rows[-1]["gan_discriminator"] < rows[0]["gan_discriminator"]
