"""The coordinate check, on models that take their few steps in seconds."""

import dataclasses

import pytest
import torch

from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.coordinates import LIMITS, Coordinate, coordinates, trends

WIDTHS = (64, 256)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(kind="standard", **settings):
    values = {
        "model": {"backbone": "attention", "width": 64, "depth": 2, "head_size": 32, "state_size": 16},
        "quantizer": {"codebook_size": 256, "code_dim": 8},
        "data.resolution": 32,
        "optimizer.lr": 3e-3,
        "device": "cpu",
        "parametrization": {"kind": kind, "base_width": 64},
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


def slopes(rows):
    return {trend.role: trend.change for trend in trends(rows)}


def test_changes_grow_with_the_width_under_standard_and_not_under_full_alignment():
    standard, corrected = (list(coordinates(config(kind), WIDTHS)) for kind in ("standard", "sp-full-align"))
    found = trends(corrected)
    assert {trend.role for trend in found} == {"trunk", "input", "hidden", "bottleneck", "readout"}
    assert [trend for trend in found if not trend.holds] == []
    assert min(slopes(standard)[role] for role in ("hidden", "bottleneck", "readout")) >= 0.7
    assert slopes(standard)["trunk"] >= 0.35
    assert [trend.role for trend in trends(standard) if trend.holds] == ["input"]


def test_the_readout_of_mup_begins_smaller_and_its_changes_are_as_large():
    found = {
        trend.role: trend for trend in trends(coordinates(config("mup", model__backbone="mamba"), WIDTHS, seeds=1))
    }
    assert found.keys() == LIMITS.keys()
    assert all(trend.holds for trend in found.values())
    assert found["readout"].before == pytest.approx(-0.5, abs=0.2)
    assert found["hidden"].before == pytest.approx(0, abs=0.05)


def test_changes_of_the_trunk_grow_with_the_depth_unless_residuals_are_scaled():
    scaled = {"kind": "sp-full-align", "base_width": 64, "base_depth": 2}
    settings = {"optimizer__lr": 1e-4}
    growing = list(coordinates(config("sp-full-align", **settings), (2, 4, 8), 2, along="depth"))
    level = list(coordinates(config(parametrization=scaled, **settings), (2, 4, 8), 2, along="depth"))
    assert slopes(growing)["trunk"] >= 0.35
    assert abs(slopes(level)["trunk"]) <= 0.15


def test_a_layer_is_judged_by_its_own_weights_and_the_trunk_at_the_end_of_each_half():
    stuck = config(optimizer__lr=1e-30)  # no weight moves
    assert {row.change for row in coordinates(stuck, WIDTHS, 1, 1)} == {0.0}
    rows = list(coordinates(config(), WIDTHS, steps=1, seeds=1))
    assert {row.module for row in rows if row.role == "trunk"} == {"encoder.blocks.1", "decoder.blocks.1"}
    # Adam's first step moves each weight by the learning rate: what it adds is bounded.
    patches = [row for row in rows if row.module == "encoder.patches"]
    assert [row.role for row in patches] == ["input", "input"]
    assert all(0 < row.change <= 3e-3 * (3 * 8 * 8 + 1) for row in patches)


def test_it_asks_neither_for_weights_nor_for_a_schedule():
    given = config(
        loss__perceptual=0.1, gan__weight=0.1, gan__depth=2, optimizer__warmup_steps=1024, precision="bfloat16"
    )
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    plain = config(loss__perceptual=0.0, optimizer__warmup_steps=0)
    one, other = (list(coordinates(each, (64, 96), 1, 1, images=images)) for each in (given, plain))
    assert one == other


def test_slopes_are_those_of_the_last_step_over_all_modules():
    def row(size, step, change, module="a"):
        return Coordinate(
            size=size, seed=0, step=step, role="hidden", module=module, before=2.0, change=change, gain=1.0
        )

    rows = [row(10, 1, 5.0), row(20, 1, 5.0), row(10, 2, 1.0), row(20, 2, 2.0), row(40, 2, 4.0)]
    (trend,) = trends([*rows, row(10, 2, 0.0, "b")])
    assert (trend.change, trend.before, trend.modules) == (pytest.approx(1), pytest.approx(0), 1)
    assert not trend.holds
    assert trend.means == ((10, 1.0), (20, pytest.approx(2.0)), (40, pytest.approx(4.0)))
    assert [each.module for each in trend.each] == ["a"]
    (level,) = trends([dataclasses.replace(each, change=1.0) for each in rows])
    assert level.holds


def test_the_module_that_follows_the_size_most_comes_first():
    def rows(module, slope, role="hidden"):
        return [
            Coordinate(
                size=size, seed=0, step=1, role=role, module=module, before=3.0, change=size**slope, gain=size**0.5
            )
            for size in (10, 20)
        ]

    (trend,) = trends([*rows("little", 0.2), *rows("down", -0.9), *rows("up", 0.5)])
    assert [(each.module, round(each.change, 6)) for each in trend.each] == [
        ("down", -0.9),
        ("up", 0.5),
        ("little", 0.2),
    ]
    assert {round(each.gain, 6) for each in trend.each} == {0.5}
    # The last block has another name at another depth.
    deeper = [dataclasses.replace(row, module=f"encoder.blocks.{row.size}") for row in rows("", 1.0, "trunk")]
    (trunk,) = trends(deeper)
    assert [each.module for each in trunk.each] == ["encoder"]


def test_layers_of_ours_are_drawn_so_that_their_gain_follows_no_width():
    settings = {"model__backbone": "convolution", "model__width": 64}
    for trend in trends(coordinates(config(**settings), WIDTHS, steps=1, seeds=1)):
        assert max(abs(each.gain) for each in trend.each) <= 0.2, trend.role


def test_one_width_has_no_slope():
    with pytest.raises(ConfigError) as error:
        list(coordinates(config(), (64,)))
    assert str(error.value) == "sizes: must be two or more widths, but got (64,)"
