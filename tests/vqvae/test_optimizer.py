import copy

import pytest
import torch
from torch import nn

from vqvae import optimizer
from vqvae.config import OptimizerConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model


def config(**settings):
    return TrainConfig(steps=100, optimizer=OptimizerConfig(warmup_steps=10, **settings))


def factors(settings):
    return [optimizer.learning_rate_factor(update, settings) for update in range(1, settings.steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_warm_up_is_linear_and_reaches_the_peak(schedule):
    assert factors(config(schedule=schedule))[:10] == pytest.approx([update / 10 for update in range(1, 11)])


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_final_ratio():
    found = factors(config(final_lr_ratio=0.1))
    assert found[54] == pytest.approx(0.55)
    assert found[99] == pytest.approx(0.1)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_wsd_stays_then_falls_in_a_line():
    found = factors(config(schedule="wsd", decay_fraction=0.2))
    assert found[9:80] == [1.0] * 71
    assert found[80:] == pytest.approx([1 - done / 20 for done in range(1, 21)])


def test_constant_stays():
    assert factors(config(schedule="constant"))[9:] == [1.0] * 91


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    short = TrainConfig(steps=4, optimizer=OptimizerConfig(warmup_steps=8))
    assert factors(short) == [1 / 8, 2 / 8, 3 / 8, 4 / 8]


def test_no_warm_up_starts_at_the_peak():
    assert factors(TrainConfig(steps=3, optimizer=OptimizerConfig(warmup_steps=0, schedule="constant"))) == [1, 1, 1]


@pytest.mark.parametrize("backbone", ["convolution", "attention", "mamba", "bimamba"])
def test_matrices_alone_decay(backbone):
    small = {"backbone": backbone, "width": 16, "depth": 1, "head_size": 8, "state_size": 8, "final_convolution": True}
    model = build_model(replace(TrainConfig(), {"model": small, "data.resolution": 16}))
    decayed = optimizer.decayed(model)
    parameters = dict(model.named_parameters())
    assert decayed <= set(parameters)
    assert all(parameters[name].ndim >= 2 and parameters[name].shape[1] > 1 for name in decayed)
    spared = {name for name, parameter in parameters.items() if parameter.ndim >= 2} - decayed
    allowed = ("codebook", "positions", "conv1d.weight", "mixer.weight")  # the last two are depthwise
    assert "quantizer.codebook" in spared
    assert [name for name in spared if not name.endswith(allowed)] == []
    assert all(parameters[name].shape[1] == 1 for name in spared if name.endswith(allowed[2:]))


def test_decay_shrinks_a_matrix_and_leaves_its_bias():
    model = nn.Sequential(nn.Linear(3, 3))
    before = copy.deepcopy(model)
    adam = optimizer.build_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    torch.testing.assert_close(model[0].weight, before[0].weight * 0.95)
    assert torch.equal(model[0].bias, before[0].bias)


def test_a_codebook_has_its_own_rate_and_no_decay():
    model = build_model(replace(TrainConfig(), {"model": {"width": 16, "depth": 1, "head_size": 8, "state_size": 8}}))
    fast = [model.quantizer.codebook, model.to_code.weight]  # the second would decay if it were not apart
    adam = optimizer.build_optimizer(model, OptimizerConfig(lr=0.5, weight_decay=0.1), fast, multiplier=0.1)
    optimizer.set_learning_rate(adam, 0.5)
    (own,) = [group for group in adam.param_groups if group["lr"] == pytest.approx(0.025)]
    assert [id(parameter) for parameter in own["params"]] == [id(parameter) for parameter in fast]
    assert own["weight_decay"] == 0
    assert {round(group["lr"].item(), 6) for group in adam.param_groups} == {0.025, 0.25}
    assert sum(len(group["params"]) for group in adam.param_groups) == len(list(model.parameters()))


def test_the_learning_rate_is_set_in_place():
    adam = optimizer.build_optimizer(nn.Linear(2, 2), OptimizerConfig(lr=0.5))
    tensors = [group["lr"] for group in adam.param_groups]
    optimizer.set_learning_rate(adam, 0.5)
    optimizer.set_learning_rate(adam, 0.25)
    assert [tensor.item() for tensor in tensors] == [0.125]
    assert all(group["lr"] is tensor for group, tensor in zip(adam.param_groups, tensors, strict=True))


def test_moments_travel_by_name():
    model, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    twin.load_state_dict(model.state_dict())
    adam, other = (optimizer.build_optimizer(each, OptimizerConfig()) for each in (model, twin))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    tensors = {name: tensor.clone() for name, tensor in optimizer.optimizer_tensors(adam, model).items()}
    assert set(tensors) == {f"{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    twin.load_state_dict(model.state_dict())
    optimizer.restore_optimizer(other, twin, tensors)
    for each, steps in ((model, adam), (twin, other)):
        for parameter in each.parameters():
            parameter.grad = torch.full_like(parameter, -0.5)
        steps.step()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)


def test_the_average_warms_up_and_copies_buffers():
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)
    optimizer.update_average(average, model, 1, decay=0.999)
    assert average.weight.item() == pytest.approx(1 + (1 - 2 / 11) * 2)
    assert average.running_mean.item() == 7
    optimizer.update_average(average, model, 10**6, decay=0.5)
    assert average.weight.item() == pytest.approx((1 + (1 - 2 / 11) * 2 + 3) / 2)
    optimizer.update_average(average, model, 10, decay=0.0)
    assert average.weight.item() == 3
