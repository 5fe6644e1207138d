import hashlib

import lpips
import pytest
import torch
import torchvision

from vqvae import perceptual
from vqvae.perceptual import LPIPS
from vqvae.weights import WeightsError


@pytest.fixture(scope="module")
def alex():
    return LPIPS("alex", "random")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def weights(tmp_path):
    """A file of alexnet's shapes, named by its checksum as torchvision's are."""
    model = torchvision.models.alexnet(weights=None)
    small = {key: value for key, value in model.state_dict().items() if key.startswith("features.")}
    torch.save(small, tmp_path / "new", _use_new_zipfile_serialization=False)  # as old as torchvision's file
    checksum = hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest()[:8]
    return (tmp_path / "new").rename(tmp_path / f"alexnet-{checksum}.pth")


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_it_equals_the_package_with_the_same_trunk(trunk, images):
    ours = LPIPS(trunk, "random")
    theirs = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    convolutions = [layer for layer in theirs.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for mine, other in zip((x for x in ours.layers if isinstance(x, torch.nn.Conv2d)), convolutions, strict=True):
        other.load_state_dict(mine.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(*images), theirs(*images).flatten(), rtol=1e-5, atol=1e-7)


def test_equal_images_have_distance_zero_and_others_more(alex, images):
    assert alex(images[0], images[0]).abs().max() == 0
    assert (alex(images[0], images[1]) > 0.001).all()


def test_activations_that_are_all_zero_have_finite_gradients(alex):
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    dead = LPIPS("alex", "random")
    with torch.no_grad():
        for layer in dead.layers:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
    distance = dead(image, torch.ones(1, 3, 64, 64))
    distance.sum().backward()
    assert distance.item() == 0
    assert image.grad.isfinite().all()
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    perceptual._unit(features).sum().backward()
    assert features.grad.isfinite().all()
    alive = torch.zeros(1, 3, 64, 64, requires_grad=True)
    alex(alive, torch.ones(1, 3, 64, 64)).sum().backward()
    assert alive.grad.isfinite().all()
    assert alive.grad.abs().max() > 0


def test_nothing_in_it_learns_and_only_the_image_gets_a_gradient(alex, images):
    assert not any(parameter.requires_grad for parameter in alex.parameters())
    assert alex.heads[0].shape == (64, 1, 1)
    made, reference = images[0].clone().requires_grad_(), images[1].clone().requires_grad_()
    alex(made, reference).sum().backward()
    assert made.grad is not None
    assert reference.grad is None


def test_a_step_down_the_gradient_comes_nearer(alex, images):
    made = images[0].clone().requires_grad_()
    before = alex(made, images[1]).sum()
    before.backward()
    with torch.no_grad():
        assert alex(made - made.grad / made.grad.norm() * 0.1, images[1]).sum() < before


def test_a_random_trunk_bears_another_name_and_is_always_the_same(alex, images):
    assert alex.name == "lpips_random"
    state = torch.get_rng_state()
    assert torch.equal(LPIPS("alex", "random")(*images), alex(*images))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_come_from_the_named_file(weights, images):
    found = LPIPS("alex", str(weights))
    assert found.name == "lpips_alex"
    wanted = torch.load(weights, weights_only=True)["features.0.weight"]
    assert torch.equal(found.layers[0].weight, wanted)
    assert found(*images).isfinite().all()


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(WeightsError) as caught:
        LPIPS("vgg", str(weights))
    assert str(caught.value) == f"{weights}: not the weights of vgg16 (RuntimeError)"
