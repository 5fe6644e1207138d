import json

import pytest
import torch

import vqvae
from vqvae import checkpoint
from vqvae.checkpoint import CheckpointError, TrainingState
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model


@pytest.fixture(scope="module")
def config():
    small = {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8}
    quantizer = {"codebook_size": 16, "code_dim": 4}
    return replace(TrainConfig(), {"model": small, "quantizer": quantizer, "data.resolution": 16, "rungs": [7, 9]})


@pytest.fixture(scope="module")
def models(config):
    torch.manual_seed(0)
    return build_model(config), build_model(config)


@pytest.fixture
def state(config, models):
    model, average = models
    return TrainingState(
        step=7,
        config=config,
        tensors={
            "model": model.state_dict(),
            "ema": average.state_dict(),
            "optimizer": {
                "quantizer.codebook/exp_avg": torch.randn(16, 4),
                "quantizer.codebook/step": torch.tensor(7.0),
            },
            "discriminator": {},
        },
        progress={"metrics": {"val/psnr": 1 / 3}},
    )


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_comes_back_whole(state, tmp_path):
    (tmp_path / "a").mkdir()  # as Ray hands it out: there, and empty
    checkpoint.save(state, tmp_path / "a")
    found = checkpoint.read(tmp_path / "a")
    assert (found.step, found.config, found.progress) == (7, state.config, state.progress)
    assert list(found.tensors) == list(state.tensors)
    for part, tensors in state.tensors.items():
        assert equal(found.tensors[part], tensors)


def test_a_folder_holds_safetensors_and_json_only_and_nothing_is_left_beside_it(state, tmp_path):
    checkpoint.save(state, tmp_path / "new" / "a")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "new" / "a").iterdir()) == [
        "discriminator.safetensors",
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_an_export_loads_and_encodes_as_the_model_did(config, models, tmp_path):
    model = models[0]
    checkpoint.save_model(model, config, tmp_path / "a", {"val/psnr": 20.5})
    loaded = vqvae.load(str(tmp_path / "a"))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), model.decode(model.encode(images)))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert json.loads((tmp_path / "a" / "config.json").read_text())["metrics"] == {"val/psnr": 20.5}


def test_of_a_checkpoint_the_average_is_loaded(state, tmp_path):
    checkpoint.save(state, tmp_path / "a")
    assert equal(vqvae.load(tmp_path / "a").state_dict(), state.tensors["ema"])


def test_loading_leaves_the_global_generator_alone(config, models, tmp_path):
    checkpoint.save_model(models[0], config, tmp_path / "a", {})
    before = torch.get_rng_state()
    vqvae.load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_that_holds_something_is_not_touched(state, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(state, tmp_path)
    assert str(caught.value) == f"{tmp_path}: not empty; expected an empty folder, or none"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_is_named(state, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(state, tmp_path / "file" / "a")
    assert str(caught.value) == f"{tmp_path}/file/a: cannot be written: Not a directory"


def test_an_error_half_way_leaves_nothing(state, tmp_path):
    broken = TrainingState(**{**vars(state), "progress": {"not": {"json"}}})
    with pytest.raises(TypeError):
        checkpoint.save(broken, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        vqvae.load(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path}/none: no such folder; expected a model or a checkpoint of vqsearch"


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        vqvae.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no config.json in it; expected a model or a checkpoint of vqsearch"
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError) as caught:
        vqvae.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}/config.json: format is None; expected 'vqsearch 2'"


def test_an_export_is_no_checkpoint(config, models, tmp_path):
    checkpoint.save_model(models[0], config, tmp_path / "a", {})
    with pytest.raises(CheckpointError, match=r"/a: no state.json in it; expected a model or a checkpoint"):
        checkpoint.read(tmp_path / "a")


@pytest.mark.parametrize("name", ["state.json", "ema.safetensors", "model.safetensors", "optimizer.safetensors"])
def test_a_damaged_file_is_named(state, tmp_path, name):
    checkpoint.save(state, tmp_path / "a")
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=rf"/a/{name}: .*damaged: "):
        checkpoint.read(tmp_path / "a")


def test_a_missing_entry_is_named(state, tmp_path):
    checkpoint.save(state, tmp_path / "a")
    file = tmp_path / "a" / "state.json"
    file.write_text(file.read_text().replace('"step"', '"pets"'))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path / "a")
    assert str(caught.value) == f"{file}: damaged: no step in it"


def test_weights_of_another_shape_are_refused(config, models, tmp_path):
    checkpoint.save_model(models[0], replace(config, {"model.width": 24}), tmp_path / "a", {})
    with pytest.raises(CheckpointError, match=r"/a/weights.safetensors: does not fit the model of config.json: "):
        vqvae.load(tmp_path / "a")


def test_weights_that_lack_a_tensor_are_refused(state, tmp_path):
    lacking = {name: value for name, value in state.tensors["ema"].items() if name != "quantizer.codebook"}
    checkpoint.save(TrainingState(**{**vars(state), "tensors": {**state.tensors, "ema": lacking}}), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"/a/ema.safetensors: does not fit the model of state.json: "):
        vqvae.load(tmp_path / "a")


def test_a_config_with_an_unknown_field_is_refused(config, models, tmp_path):
    checkpoint.save_model(models[0], config, tmp_path / "a", {})
    file = tmp_path / "a" / "config.json"
    file.write_text(file.read_text().replace('"width"', '"widht"'))
    with pytest.raises(CheckpointError) as caught:
        vqvae.load(tmp_path / "a")
    assert str(caught.value) == f"{file}: model.widht: unknown field; did you mean width?"


@pytest.mark.parametrize("tensors", [3, ["model"], None])
def test_a_checkpoint_without_the_names_of_its_parts_is_damaged(state, tmp_path, tensors):
    checkpoint.save(state, tmp_path / "a")
    path = tmp_path / "a" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": tensors}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path / "a")
    assert str(caught.value) == f"{path}: damaged: tensors is {tensors!r}; expected the names of the parts"
