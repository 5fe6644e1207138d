"""Files of weights: which one is asked for, and what is refused."""

import hashlib

import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from vqvae import weights
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.weights import TRUNKS, WeightsError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def message(function, *arguments):
    with pytest.raises(WeightsError) as caught:
        function(*arguments)
    return str(caught.value)


def saved(folder, content):
    """A file named by its checksum, as torchvision's are."""
    torch.save(content, folder / "new")
    checksum = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    return (folder / "new").rename(folder / f"net-{checksum}.pth")


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=list(TRUNKS))
def test_the_files_asked_for_are_those_that_torchvision_keeps(trunk):
    weights_of = torchvision.models.get_model_weights(trunk.network).DEFAULT
    assert weights_of.url.rsplit("/")[-1] == trunk.file


def test_the_inception_asked_for_is_torch_fidelitys():
    assert URL_INCEPTION_V3.rsplit("/")[-1] == weights.INCEPTION


def test_a_default_run_asks_for_both_trunks_at_once_and_says_the_ways_on(hub):
    assert message(weights.require, TrainConfig()) == (
        f"{hub}/vgg16-397923af.pth and {hub}/alexnet-owt-7be5be79.pth: no such files; LPIPS needs torchvision's "
        "ImageNet weights of vgg16 and alexnet (vgg16-397923af.pth, alexnet-owt-7be5be79.pth), which nothing here "
        'downloads; on a machine with a network python -c "import torchvision; '
        "torchvision.models.vgg16(weights='DEFAULT'); torchvision.models.alexnet(weights='DEFAULT')\" puts them into "
        f"{hub}; copy them there, or name another place (loss.lpips_trunk, evaluation.lpips_trunk); or do without: "
        "loss.perceptual=0, evaluation.lpips=false"
    )


def test_a_missing_trunk_is_asked_for_by_name_and_folder(hub):
    assert message(weights.trunk_file, TRUNKS["alex"]) == (
        f"{hub}/alexnet-owt-7be5be79.pth: no such file; LPIPS needs torchvision's ImageNet weights of alexnet "
        "(alexnet-owt-7be5be79.pth), which nothing here downloads; on a machine with a network "
        "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\" puts it into "
        f"{hub}; copy it there, or name another place (evaluation.lpips_trunk); or do without: evaluation.lpips=false"
    )


def test_the_ways_to_do_without_are_enough(hub):
    with pytest.raises(WeightsError) as caught:
        weights.require(TrainConfig())
    settings = dict(each.split("=") for each in caught.value.without)
    assert settings == {"loss.perceptual": "0", "evaluation.lpips": "false"}
    weights.require(replace(TrainConfig(), {"loss.perceptual": 0, "evaluation.lpips": False}))


def test_only_what_a_run_reads_is_asked_for(hub, tmp_path):
    (tmp_path / "mine.pth").touch()
    settings = {"loss.lpips_trunk": "random", "evaluation.lpips_trunk": str(tmp_path / "mine.pth")}
    weights.require(replace(TrainConfig(), settings))
    settings["evaluation.lpips_trunk"] = f"{tmp_path}/yours.pth"
    said = message(weights.require, replace(TrainConfig(), settings))
    assert said.startswith(f"{tmp_path}/yours.pth: no such file; LPIPS needs torchvision's ImageNet weights of alexnet")
    assert said.endswith("; or do without: evaluation.lpips=false")


def test_a_missing_inception_is_asked_for_with_the_command_that_fetches_it(hub):
    config = replace(TrainConfig(), {"loss.perceptual": 0, "evaluation.lpips": False, "evaluation.rfid_weights": "x"})
    assert message(weights.require, config) == (
        "x: no such file; rfid needs weights-inception-2015-12-05-6726825d.pth, torch-fidelity's weights of Inception, "
        'which nothing here downloads; on a machine with a network python -c "import torch, '
        "torch_fidelity.feature_extractor_inceptionv3 as inception; "
        f'torch.hub.load_state_dict_from_url(inception.URL_INCEPTION_V3)" puts it into {hub}; copy it and name its '
        'place (evaluation.rfid_weights); or do without: evaluation.rfid_weights=""'
    )


def test_a_whole_file_gives_its_tensors(tmp_path):
    assert torch.equal(weights.read(saved(tmp_path, {"a": torch.ones(2)}), "net-01234567.pth")["a"], torch.ones(2))


def test_a_damaged_file_is_refused(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(2)})
    content = path.read_bytes() + b"x"
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:8]
    assert message(weights.read, path, "net-01234567.pth") == (
        f"{path}: damaged: its SHA-256 should begin with {path.stem[-8:]}, but begins with {found}; expected "
        "net-01234567.pth as it was published"
    )


def test_a_file_without_a_checksum_in_its_name_is_refused(tmp_path):
    path = saved(tmp_path, {}).rename(tmp_path / "mine.pth")
    assert message(weights.read, path, "net-01234567.pth") == (
        f"{path}: expected a name that ends in the checksum, such as net-01234567.pth"
    )


@pytest.mark.parametrize(
    ("content", "kind"), [({"a": hashlib.sha256}, "UnpicklingError"), ([1], "list")], ids=["code", "a list"]
)
def test_a_file_that_holds_no_weights_is_refused_and_no_code_in_it_run(tmp_path, content, kind):
    path = saved(tmp_path, content)
    assert message(weights.read, path, "net-01234567.pth") == f"{path}: not a file of weights ({kind})"
