"""The config: what its errors say, and how it is taken apart and put together."""

import ast
import inspect
import json
import math
import subprocess
import sys
from typing import Any

import pytest

from vqvae import config as module
from vqvae.config import ConfigError, DataConfig, ModelConfig, TrainConfig, VqvaeError
from vqvae.conversion import fields, from_dict, nest, replace, to_dict


def test_the_defaults_are_the_setting_of_the_article() -> None:
    config = TrainConfig()
    assert (config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2) == (3e-4, 0.9, 0.95)
    assert (config.optimizer.weight_decay, config.optimizer.warmup_steps) == (0.05, 1024)
    assert (config.quantizer.codebook_size, config.quantizer.code_dim, config.quantizer.beta) == (16384, 16, 0.25)
    assert (config.loss.l2, config.loss.perceptual) == (1.0, 0.1)
    assert config.batch_size == 16 * 8
    assert (config.data.resolution, config.model.patch, config.tokens) == (256, 8, 1024)


def test_a_config_survives_json() -> None:
    config = replace(TrainConfig(), {"rungs": [10, 100], "model.channel_multipliers": [1, 1, 2, 4]})
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.rungs == (10, 100)


def test_every_field_is_followed_by_its_meaning() -> None:
    tree = ast.parse(inspect.getsource(module))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    assert len(classes) == 9
    parts = {"gan", "model", "quantizer", "loss", "optimizer", "parametrization", "data", "evaluation"}
    for owner in classes:
        for item, following in zip(owner.body, [*owner.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id not in parts:
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{owner.name}.{item.target.id} has no docstring"


def test_fields_are_found_by_their_dotted_names() -> None:
    found = fields()
    assert found["optimizer.lr"] is float
    assert found["rungs"] == tuple[int, ...]
    assert "model" not in found
    for name in found:
        assert nest({name: 1}) is not None
        value: Any = to_dict(TrainConfig())
        for part in name.split("."):
            value = value[part]


def test_dotted_names_nest() -> None:
    assert nest({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_fields_are_replaced_together_before_they_are_checked() -> None:
    # Either alone would break a rule: 48 is no multiple of patch 32, and 256 none of patch 12.
    config = replace(TrainConfig(), {"model.patch": 12, "data.resolution": 48})
    assert config.tokens == 16
    assert TrainConfig().model.patch == 8


def test_whole_numbers_pass_as_floats_and_whole_floats_as_integers() -> None:
    config = replace(TrainConfig(), {"loss.l2": 2, "steps": 1e4})
    assert isinstance(config.loss.l2, float)
    assert config.steps == 10000
    assert isinstance(config.steps, int)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (
            "optimizer.learning_rate",
            1.0,
            "unknown field; known are beta1, beta2, clip_norm, decay_fraction, epsilon, "
            "final_lr_ratio, lr, schedule, warmup_steps, weight_decay",
        ),
        ("optimizer.weight_decy", 1.0, "unknown field; did you mean weight_decay?"),
        ("model", 64, "must be a mapping of fields, but got 64"),
        ("model.width", "wide", "must be a whole number, but got 'wide'"),
        ("model.width", 64.5, "must be a whole number, but got 64.5"),
        ("model.width", True, "must be a whole number, but got True"),
        ("model.final_convolution", 1, "must be true or false, but got 1"),
        ("model.backbone", 3, "must be text, but got 3"),
        ("rungs", 3, "must be a list, but got 3"),
        ("optimizer.lr", "1e-3", "must be a number, but got '1e-3'"),
        ("optimizer.lr", math.nan, "must be a number, but got nan"),
        ("steps", math.inf, "must be a whole number, but got inf"),
        ("model.width", 0, "must be at least 1, but got 0"),
        ("model.overlap", 2.5, "must be from 0 to 2, but got 2.5"),
        (
            "model.overlap",
            0.1,
            "must be such that patch x overlap is an even number of pixels (patch is 8), but got 0.1",
        ),
        ("model.channel_multipliers", (1, 0), "must be above 0 and at most 65536 each, but got (1.0, 0.0)"),
        ("quantizer.codebook_size", 1, "must be at least 2, but got 1"),
        ("quantizer.beta", -0.1, "must be at least 0 and finite, but got -0.1"),
        ("quantizer.beta", math.inf, "must be at least 0 and finite, but got inf"),
        ("model.decoder_depth", -1, "must be from 0 to 1000, but got -1"),
        ("quantizer.update", "sgd", "must be one of gradient, ema, but got 'sgd'"),
        ("quantizer.estimator", "reinforce", "must be one of straight-through, rotation, but got 'reinforce'"),
        ("quantizer.ema_decay", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("quantizer.revive_below", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("quantizer.temperature", 0.0, "must be above 0 and finite, but got 0.0"),
        ("quantizer.levels", [8, 1], "must be at least 2 each, but got (8, 1)"),
        (
            "quantizer.levels",
            [4096, 8192],
            "must be at most 16777216 codes, their product, together, but got (4096, 8192)",
        ),
        (
            "parametrization.kind",
            "muP",
            "must be one of standard, mup, sp-full-align, sp-no-align, but got 'muP'",
        ),
        ("parametrization.base_width", 2**16, "must be from 0 to 32768, but got 65536"),
        ("parametrization.base_depth", -1, "must be from 0 to 1000, but got -1"),
        ("gan.weight", -0.5, "must be at least 0 and finite, but got -0.5"),
        ("gan.start", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("gan.depth", 9, "must be from 1 to 8, but got 9"),
        ("data.fit", "long-side", "must be one of short-side, crop, stretch, but got 'long-side'"),
        ("evaluation.perturbed", 1.5, "must be from 0 to 1, but got 1.5"),
        ("micro_batch", "all", "must be a whole number or auto, but got 'all'"),
        ("micro_batch", 0, "must be at least 1, but got 0"),
        ("loss.perceptual", -1.0, "must be at least 0 and finite, but got -1.0"),
        ("optimizer.lr", 0, "must be above 0 and finite, but got 0.0"),
        ("optimizer.beta2", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("optimizer.schedule", "linear", "must be one of cosine, wsd, constant, but got 'linear'"),
        ("optimizer.decay_fraction", 1.5, "must be from 0 to 1, but got 1.5"),
        ("data.crop_scale", 0.0, "must be above 0 and at most 1, but got 0.0"),
        ("data.validation_fraction", 1.0, "must be above 0 and below 1, but got 1.0"),
        (
            "data.test_fraction",
            0.95,
            "must be such that with validation_fraction (0.05) it stays below 1, but got 0.95",
        ),
        ("data.resolution", 100, "must be a multiple of model.patch (8), but got 100"),
        ("evaluation.images", 0, "must be at least 1, but got 0"),
        ("steps", 0, "must be at least 1, but got 0"),
        ("rungs", (100, 10), "must be increasing and from 1 to the number of steps (30000), but got (100, 10)"),
        ("rungs", (0, 10), "must be increasing and from 1 to the number of steps (30000), but got (0, 10)"),
        ("rungs", (10, 30001), "must be increasing and from 1 to the number of steps (30000), but got (10, 30001)"),
        ("micro_batch", 10, "must be a divisor of batch_size (128), but got 10"),
        ("ema_decay", 1.0, "must be from 0 to below 1, but got 1.0"),
        ("device", "tpu", "must be one of auto, cpu, cuda, but got 'tpu'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_dotted_key(key: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {key: value})
    assert str(error.value) == f"{key}: {problem}"
    assert error.value.key == key
    assert isinstance(error.value, VqvaeError)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {"modle.width": 64})
    assert str(error.value) == "modle: unknown field; did you mean model?"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fsq"}, "quantizer.levels: must be the values of each dimension, since kind is fsq, but got ()"),
        (
            {"kind": "lfq", "codebook_size": 1000},
            "quantizer.codebook_size: must be a power of two, since kind is lfq, but got 1000",
        ),
    ],
)
def test_a_quantizer_needs_the_settings_of_its_kind(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {"quantizer": values})
    assert str(error.value) == message


def test_a_parametrization_needs_the_width_that_was_tuned_and_a_small_epsilon() -> None:
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {"parametrization.kind": "mup"})
    assert str(error.value) == (
        "parametrization.base_width: must be the width of the model that was tuned, since kind is mup, but got 0"
    )
    chosen = {"parametrization": {"kind": "mup", "base_width": 64}}
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {**chosen, "optimizer.epsilon": 1e-6})
    assert str(error.value) == (
        "optimizer.epsilon: must be at most 1e-12, or left out, since parametrization.kind is mup: gradients shrink "
        "with the width, but got 1e-06"
    )
    assert replace(TrainConfig(), chosen).optimizer.epsilon == 1e-8


def test_images_must_be_large_enough_for_the_discriminator_if_there_is_one() -> None:
    small = {"data.resolution": 16, "gan.depth": 3}
    assert replace(TrainConfig(), small).gan.weight == 0
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), small | {"gan.weight": 0.1})
    expected = "must be such that data.resolution (16) is at least 3 x 2^depth = 24, but got 3"
    assert str(error.value) == f"gan.depth: {expected}"


@pytest.mark.parametrize(
    ("source", "what"),
    [("folder", "the folder of images"), ("huggingface", "the data set"), ("webdataset", "the tars")],
)
def test_a_source_needs_a_path(source: str, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(TrainConfig(), {"data.source": source})
    assert str(error.value) == f"data.path: must be {what}, since source is {source}, but got ''"
    assert replace(TrainConfig(), {"data.source": source, "data.path": "faces"}).data == DataConfig(
        source=source, path="faces"
    )


def test_parts_check_themselves() -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(depth=0)
    assert str(error.value) == "depth: must be at least 1, but got 0"


def test_the_config_needs_the_standard_library_alone() -> None:
    code = "import sys, vqvae.config; print(sorted({'torch', 'numpy', 'ray', 'optuna', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
