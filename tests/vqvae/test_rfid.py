"""rFID through torchmetrics, on a file of Inception weights that were drawn at random."""

import hashlib
import importlib.util

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from vqvae.config import EvaluationConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.metrics import evaluate
from vqvae.model import build_model
from vqvae.pictures import to_images
from vqvae.rfid import Rfid, RfidError
from vqvae.weights import WeightsError

FEATURES = 64


class Drawn(FeatureExtractorInceptionV3):
    """The network as it is before its weights are read."""

    def load_state_dict(self, *_):
        pass


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = Drawn("inception-v3-compat", [str(FEATURES)], str(folder / "empty"))
    torch.save(drawn.state_dict(), folder / "new")
    checksum = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    return str((folder / "new").rename(folder / f"inception-{checksum}.pth"))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(12, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    return smooth * 2 - 1


@pytest.fixture(scope="module")
def network(file):
    return Rfid(file, FEATURES)


@pytest.fixture
def rfid(network):
    network.begin()
    return network


def frechet(x, y):
    """The distance of two sets of features (n, d), from scipy's root of a matrix."""
    means, covariances = [z.mean(0) for z in (x, y)], [np.cov(z, rowvar=False) for z in (x, y)]
    jitter = np.eye(x.shape[1]) * 1e-12
    root = scipy.linalg.sqrtm((covariances[0] + jitter) @ (covariances[1] + jitter)).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def levels(images):
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def test_it_equals_the_distance_of_the_features(rfid, images):
    made = (images * 0.7 + 0.2).roll(5, 3)
    for part in (slice(0, 5), slice(5, 12)):
        rfid.add(made[part], images[part])
    found = rfid.result()
    features = [rfid.distance.inception(levels(part)).double().numpy() for part in (images, made)]
    assert found == {"rfid": pytest.approx(frechet(*features), rel=1e-4), "rfid_images": 12}
    assert found["rfid"] > 0


def test_an_evaluation_measures_it_over_its_pictures(rfid):
    model = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8}
    built = build_model(replace(TrainConfig(), {"model": model, "data.resolution": 32})).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    rfid.add(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))  # of an evaluation that was broken off
    found = evaluate(built, pictures, EvaluationConfig(images=3), 2, rfid=rfid).metrics
    rfid.begin()
    with torch.no_grad():
        measured = to_images(pictures[[0, 2, 4]])
        rfid.add(built(measured).images, measured)
    wanted = rfid.result()
    assert {name: found[name] for name in wanted} == {"rfid": pytest.approx(wanted["rfid"], rel=1e-3), "rfid_images": 3}


def test_equal_images_have_no_distance(rfid, images):
    rfid.add(images[:4].flip(2), images[:4])
    other = rfid.result()["rfid"]
    rfid.begin()
    rfid.add(images[:4], images[:4])
    assert abs(rfid.result()["rfid"]) < 1e-3 * other


def test_values_out_of_range_are_clipped_as_in_a_picture_file(rfid):
    rfid.add(torch.tensor([5.0, -5.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
    clipped = rfid.result()
    rfid.begin()
    rfid.add(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
    assert rfid.result() == clipped


def test_pictures_are_resized_as_the_first_definition_does(rfid, images):
    assert torch.equal(
        rfid.distance.inception(levels(images[:2])),
        FeatureExtractorInceptionV3.forward(rfid.distance.inception, levels(images[:2]))[0],
    )


def test_one_image_is_too_few(rfid, images):
    rfid.add(images[:1], images[:1])
    with pytest.raises(RfidError) as caught:
        rfid.result()
    assert str(caught.value) == "rfid: must be over at least 2 held-out images, but got 1 (evaluation.images)"


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torchmetrics",) else find(name))
    with pytest.raises(RfidError) as caught:
        Rfid("anything")
    assert str(caught.value) == "rfid needs torchmetrics: pip install 'vqsearch[metrics]'"


def test_a_missing_file_is_asked_for():
    with pytest.raises(WeightsError, match=r"^nowhere\.pth: no such file; rfid needs weights-inception-2015-12-05"):
        Rfid("nowhere.pth")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "inception-01234567.pth"
    path.write_bytes(b"x")
    with pytest.raises(WeightsError, match="damaged: its SHA-256 should begin with 01234567, but begins with 2d711642"):
        Rfid(str(path))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "new")
    checksum = hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest()[:8]
    path = (tmp_path / "new").rename(tmp_path / f"inception-{checksum}.pth")
    with pytest.raises(WeightsError) as caught:
        Rfid(str(path))
    assert str(caught.value) == f"{path}: not the weights of Inception (RuntimeError)"
