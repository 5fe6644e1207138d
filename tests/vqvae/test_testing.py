"""How checks are asked for, and what they say: what each of them looks at is in tests/plugins/test_broken.py."""

from pathlib import Path

import pytest
import torch

from vqvae import testing
from vqvae.config import ConfigError, VqvaeError
from vqvae.plugins import KINDS


def test_a_report_has_a_line_for_each_check_and_one_for_what_went_wrong():
    report = testing.report("quantizer", "fsq", {"quantizer.levels": [8, 5]}, promises=testing.PROMISES["quantizer"])
    lines = str(report).splitlines()
    assert lines[0] == "ok      codes_and_indices_agree"
    assert lines[-4:] == [
        "FAILED  codes_are_quantized_to_themselves",
        "        expected each code to have its own index, but 20 of 40 get another",
        "ok      indices_do_not_hang_on_tf32",
        f"{len(report.outcomes) - 1} of {len(report.outcomes)} checks passed",
    ]
    assert [outcome.check.name for outcome in report.failed] == ["codes_are_quantized_to_themselves"]


def test_a_check_that_fails_names_part_and_promise_and_is_an_assertion():
    promise = "codes_are_quantized_to_themselves"
    check = testing.checks("quantizer", "gumbel", promises=[promise])[-1]
    with pytest.raises(AssertionError) as error:
        check()
    assert str(error.value) == (
        "quantizer gumbel: codes_are_quantized_to_themselves: expected each code to have its own index, "
        "but 32 of 32 get another"
    )
    assert isinstance(error.value, testing.CheckFailed)
    assert isinstance(error.value, VqvaeError)


def test_what_a_part_raises_comes_through_with_a_note():
    check = testing.checks("backbone", "attention", {"model.head_size": 7})[0]
    with pytest.raises(ConfigError, match=r"model\.head_size: must divide") as error:
        check()
    assert error.value.__notes__ == [
        f"backbone attention: one_token_for_each_patch: {check.promise}",
        "The checks make small models; give them sizes that this part takes, as settings.",
    ]


def test_a_check_draws_the_same_every_time_and_leaves_the_generator_alone():
    check = testing.checks("quantizer", "gumbel")[0]
    drawn = []
    object.__setattr__(check, "trial", lambda _subject: drawn.append(torch.rand(()).item()))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    check()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", [*KINDS, "trainer"])
def test_every_check_says_what_it_promises_under_a_name_of_its_own(kind):
    checks = testing.checks(kind, "any", promises=testing.PROMISES.get(kind, ()))
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.promise.endswith(".") and len(check.promise) > 20 for check in checks)


def test_the_guide_lists_every_check():
    guide = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    for kind in (*KINDS, "trainer"):
        for check in testing.checks(kind, "any", promises=testing.PROMISES.get(kind, ())):
            assert f"`{check.name}`" in guide


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sampler", "a"), "kind: must be one of backbone, quantizer, loss, metric, data, trainer, but got 'sampler'"),
        (("metric", "a", {"model.widht": 3}), "model.widht: unknown field; did you mean width?"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, message):
    with pytest.raises(VqvaeError) as error:
        testing.checks(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", "promises: of a loss must be it_is_a_mean_over_images, but got 'fast'"),
        ("metric", "promises: of a metric must be left out, but got 'fast'"),
    ],
)
def test_a_promise_that_there_is_not_is_refused(kind, message):
    with pytest.raises(VqvaeError) as error:
        testing.checks(kind, "a", promises=["fast"])
    assert str(error.value) == message
