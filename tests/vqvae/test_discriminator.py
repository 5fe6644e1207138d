import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqvae.config import ConfigError, DataConfig, GanConfig, ModelConfig, TrainConfig
from vqvae.discriminator import Discriminator, Gan, adaptive_weight


def tiny(**settings):
    return Gan(GanConfig(weight=0.5, width=8, **settings))


def sharp(count, resolution=32):
    """Noise, and the same noise blurred: what a decoder makes without an adversary."""
    images = torch.rand(count, 3, resolution, resolution) * 2 - 1
    return images, F.avg_pool2d(images, 5, stride=1, padding=2)


def constant_logits(gan, logit):
    """Every logit is `logit`, whatever the image: the last layer's bias."""
    last = gan.discriminator.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, logit)
    return last.bias


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


# What it sees


@pytest.mark.parametrize(("depth", "pixels"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_as_many_pixels_as_the_config_says(depth, pixels):
    discriminator = Discriminator(GanConfig(width=2, depth=depth)).double()
    for index, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.GroupNorm):  # its mean and variance are taken over the whole image
            discriminator.layers[index] = nn.Identity()
    images = torch.rand(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = images.grad[0].abs().sum(0) > 0
    for axis in (0, 1):
        places = seen.any(axis).nonzero()
        assert places.max() - places.min() + 1 == len(places) == pixels


@pytest.mark.parametrize(("resolution", "rows"), [(24, 1), (32, 2), (33, 2), (256, 30)])
def test_logits_form_a_map(resolution, rows):
    images = torch.zeros(2, 3, resolution, resolution)
    assert Discriminator(GanConfig(width=2))(images).shape == (2, 1, rows, rows)


def test_channels_double_up_to_eight_times_the_width():
    layers = Discriminator(GanConfig(width=3, depth=5)).layers
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [3, 6, 12, 24, 24, 24, 1]
    assert [layer.num_channels for layer in layers if isinstance(layer, nn.GroupNorm)] == [6, 12, 24, 24, 24]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_images_too_small_for_the_depth_are_refused(depth):
    config, least = GanConfig(weight=0.1, width=2, depth=depth), 3 * 2**depth
    assert Discriminator(config)(torch.zeros(1, 3, least, least)).shape == (1, 1, 1, 1)
    with torch.device("meta"), pytest.raises(RuntimeError):
        Discriminator(config)(torch.zeros(1, 3, least - 1, least - 1))
    model = ModelConfig(patch=1)
    assert TrainConfig(model=model, data=DataConfig(resolution=least), gan=config).gan is config
    with pytest.raises(ConfigError, match=f"at least 3 x 2\\^depth = {least}, but got {depth}"):
        TrainConfig(model=model, data=DataConfig(resolution=least - 1), gan=config)


@pytest.mark.parametrize("width", [4, 16, 64])
def test_logits_begin_at_one_size_for_every_width(width):
    images = torch.randn(4, 3, 64, 64)
    assert 0.3 < Discriminator(GanConfig(width=width))(images).square().mean().sqrt() < 1.2


def test_a_logit_does_not_depend_on_the_other_images_of_the_batch():
    gan, (images, _) = tiny(), sharp(4)
    together = gan.discriminator(images)
    torch.testing.assert_close(torch.cat([gan.discriminator(image[None]) for image in images]), together)


# What it learns


def test_a_step_of_sgd_raises_the_logits_of_real_images_and_lowers_those_of_made_ones():
    gan, (images, made) = tiny(), sharp(4)
    loss, before = gan.discriminator_loss(images, made)
    loss.backward()
    with torch.no_grad():
        for parameter in gan.parameters():
            parameter -= 0.01 * parameter.grad
    _, after = gan.discriminator_loss(images, made)
    assert after["gan_real"] > before["gan_real"]
    assert after["gan_fake"] < before["gan_fake"]
    assert after["gan_discriminator"] < before["gan_discriminator"]


@pytest.mark.parametrize(
    ("logit", "expected", "slope"),
    [(0.25, 2.0, 0.0), (2.0, 3.0, 1.0), (-2.0, 3.0, -1.0)],
    ids=["inside both margins", "real is beyond its margin", "made is beyond its margin"],
)
def test_the_hinge_pulls_with_the_same_force_inside_its_margin_and_not_beyond(logit, expected, slope):
    gan = tiny()
    bias = constant_logits(gan, logit)
    loss, terms = gan.discriminator_loss(*sharp(2))
    assert terms == {"gan_discriminator": expected, "gan_real": logit, "gan_fake": logit}
    loss.backward()
    assert bias.grad.item() == pytest.approx(slope)


def test_the_two_halves_of_the_hinge_pull_in_opposite_directions():
    gan, (images, made) = tiny(), sharp(2)
    constant_logits(gan, 0.25)
    gan.discriminator_loss(images, made)[0].backward()
    features = [gan.discriminator.layers[:-1](part) for part in (images, made)]
    rows = [F.unfold(part, 4, padding=1).mean((0, 2)) for part in features]
    weight = gan.discriminator.layers[-1].weight
    torch.testing.assert_close(weight.grad.flatten(), rows[1] - rows[0])  # d/dw of mean(1 + fake) + mean(1 - real)


def test_the_discriminator_tells_real_from_made_within_fifty_steps():
    gan = tiny()
    optimizer = torch.optim.AdamW(gan.parameters(), lr=1e-3, betas=(0.5, 0.9), weight_decay=0)
    for _ in range(50):
        optimizer.zero_grad()
        gan.discriminator_loss(*sharp(8))[0].backward()
        optimizer.step()
    images, made = sharp(16)
    with torch.no_grad():
        real, fake = (gan.discriminator(part).mean((1, 2, 3)) for part in (images, made))
    assert real.min() > 0.5
    assert fake.max() < -0.5


def test_the_generator_is_to_raise_the_logits_of_what_it_makes():
    gan, (_, made) = tiny(), sharp(2)
    made.requires_grad_()
    term = gan.generator_term(made)
    assert term.item() == pytest.approx(-gan.discriminator(made).mean().item())
    term.backward()
    with torch.no_grad():
        better = made - 1e-3 * made.grad / made.grad.norm()
        rise = gan.discriminator(better).mean() + term
    assert rise.item() == pytest.approx(1e-3 * made.grad.norm().item(), rel=0.05)


def test_the_generator_term_pulls_as_hard_beyond_the_margin():
    gan, (_, made) = tiny(), sharp(2)
    forces = []
    for shift in (0.0, 5.0):
        gan.discriminator.layers[-1].bias.data += shift
        made.grad = None
        gan.generator_term(made.requires_grad_()).backward()
        forces.append(made.grad.norm().item())
    assert forces[1] == pytest.approx(forces[0])
    assert forces[0] > 0


# Who gets a gradient


@pytest.mark.parametrize("bfloat16", [False, True])
def test_neither_loss_reaches_the_other_side(bfloat16):
    gan, (images, blurred) = tiny(), sharp(2)
    generator = nn.Conv2d(3, 3, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):  # together, so that they share its cache of weights
        made = generator(blurred)
        judged, _ = gan.discriminator_loss(images, made)
        term = gan.generator_term(made)
    term.backward()
    assert all(gradient is None for gradient in gradients(gan))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(generator))
    generator.zero_grad()
    judged.backward()
    assert all(gradient is None for gradient in gradients(generator))
    assert all(gradient.isfinite().all() for gradient in gradients(gan))
    assert sum(gradient.abs().sum() for gradient in gradients(gan)) > 0


def test_the_discriminator_can_still_learn_after_the_generator_ran_out_of_memory():
    gan = tiny()

    def exhausted(*_):
        raise torch.OutOfMemoryError

    hook = gan.discriminator.layers[-1].register_forward_pre_hook(exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        gan.generator_term(torch.zeros(1, 3, 32, 32))
    hook.remove()
    assert all(parameter.requires_grad for parameter in gan.parameters())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_of_any_size_give_the_gradients_of_the_whole_batch(size):
    gan, (images, made) = tiny(), sharp(8)

    def accumulated(size):
        gan.zero_grad()
        leaf = made.clone().requires_grad_()
        for start in range(0, 8, size):
            some = slice(start, start + size)
            (gan.generator_term(leaf[some]) * (size / 8)).backward()
            (gan.discriminator_loss(images[some], leaf[some])[0] * (size / 8)).backward()
        return [leaf.grad, *copy.deepcopy(gradients(gan))]

    for found, expected in zip(accumulated(size), accumulated(8), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# How much it counts


def test_the_adaptive_weight_equals_its_formula():
    weight = torch.tensor([[1.0, 2.0]], requires_grad=True)  # a linear decoder: made = weight @ code
    made = weight @ torch.tensor([3.0, 4.0])  # 11
    reconstruction = 0.5 * (made - 8).square().sum()  # gradient (11 - 8) (3, 4), of length 15
    adversarial = -0.2 * made.sum()  # gradient -0.2 (3, 4), of length 1
    factor = adaptive_weight(reconstruction, adversarial, weight)
    assert factor.item() == pytest.approx(15 / (1 + 1e-6))
    assert factor.dtype == torch.float32
    assert not factor.requires_grad
    assert weight.grad is None
    (reconstruction + factor * adversarial).backward()  # both graphs are still there
    torch.testing.assert_close(weight.grad, torch.tensor([[9.0 - 9.0, 12.0 - 12.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("pull", "push", "expected"), [(1.0, 0.0, 1e4), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)])
def test_the_adaptive_weight_is_bounded_where_a_gradient_vanishes(pull, push, expected):
    weight = torch.ones(1, requires_grad=True)
    factor = adaptive_weight((pull * weight).sum(), (push * weight).sum(), weight)
    assert factor.item() == pytest.approx(expected)


def test_the_adaptive_weight_does_not_hide_a_divergence():
    weight = torch.ones(1, requires_grad=True)
    assert math.isnan(adaptive_weight((math.nan * weight).sum(), weight.sum(), weight).item())


def test_mixed_precision_leaves_the_hinge_and_the_gradient_norms_in_float32():
    gan, (images, blurred) = tiny(), sharp(4)
    last, head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = gan.discriminator(images)
        assert logits.dtype == torch.bfloat16
        made = last(blurred)
        loss, terms = gan.discriminator_loss(images, made)
        adversarial = gan.generator_term(made)
        with torch.autocast("cpu", enabled=False):
            reconstruction = head(made.float()).square().mean()
        inside = adaptive_weight(reconstruction, adversarial, last.weight)
    outside = adaptive_weight(reconstruction, adversarial, last.weight)
    assert loss.dtype == adversarial.dtype == inside.dtype == torch.float32
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms["gan_real"] == logits.float().mean()
    assert inside == outside


def test_a_checkpoint_of_it_holds_the_discriminator_alone():
    gan = tiny()
    assert set(gan.state_dict()) == {f"discriminator.{name}" for name, _ in gan.discriminator.named_parameters()}
    assert gan.weight == 0.5
