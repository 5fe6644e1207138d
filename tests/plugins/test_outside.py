"""An outside package passes what our own parts pass: found by its entry points, and file by file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vqvae import metrics, model, plugins, quantize, testing
from vqvae.checkpoint import load, load_config, options
from vqvae.conversion import replace
from vqvae.train import train

OUTSIDE = Path(__file__).parent / "outside"
PARTS = {
    "backbone": ("token-mlp", {"model.options.ratio": 2.0}, ["every_token_reaches_every_other"]),
    "quantizer": (
        "residual",
        {"quantizer.options.stages": 3, "quantizer.options.codes": 4},
        testing.PROMISES["quantizer"][1:],
    ),
    "metric": ("gmsd", {}, []),
}
"""Of each kind: name, settings, promises."""

TRAINER = f"{OUTSIDE}/outside_tokenizers/components.py:train"
"""It is named by its file, and needs no entry point."""

CASES = [
    pytest.param(check, id=f"{name}-{check}")
    for kind, (name, settings, promises) in PARTS.items()
    for check in testing.checks(kind, name, settings, promises=promises)
] + [pytest.param(check, id=f"trainer-{check}") for check in testing.checks("trainer", TRAINER, {"options.lr": 0.1})]


@pytest.mark.parametrize("check", CASES)
def test_a_part_of_an_installed_package_passes_the_checks_of_ours(installed, check):
    check()


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_from_a_file_passes_them_too_with_its_defaults(kind):
    name, _, _ = PARTS[kind]
    plugins.load(OUTSIDE / "outside_tokenizers" / f"{name.replace('-', '_')}.py")
    assert str(testing.report(kind, name).failed) == "()"


def test_the_trainer_to_copy_passes_them_too():
    example = Path(__file__).parents[2] / "examples" / "own_trainer.py"
    report = testing.report("trainer", f"{example}:train", {"options.width": 4})
    assert not report.failed, str(report)


def test_a_run_with_all_parts_of_the_package_is_saved_and_loaded(installed, tmp_path):
    config = testing.checks(
        "backbone",
        "token-mlp",
        {
            "quantizer.kind": "residual",
            "quantizer.options.codes": 4,
            "evaluation.metrics": ["gmsd"],
            "data.crop_scale": 1.0,
            "steps": 2,
        },
    )[0].subject.config
    last = list(train(config))[-1]
    assert last.metrics["val/gmsd"] > 0
    last.checkpoint(tmp_path / "checkpoint")
    kept = options(config)
    assert {name.rpartition(".")[0] for name in kept} == {"model.options", "quantizer.options"}
    assert load_config(tmp_path / "checkpoint") == replace(config, kept)
    assert load(tmp_path / "checkpoint").quantizer.codebook_size == 4**2


def test_nothing_of_the_package_is_imported_before_it_is_asked_for(installed):
    model.build_model(testing.checks("backbone", "attention")[0].subject.config)
    assert not [name for name in sys.modules if name.startswith("outside_tokenizers")]
    assert {"token-mlp", "residual", "gmsd"}.isdisjoint({*model.BACKBONES, *quantize.QUANTIZERS, *metrics.MEASURES})


def test_the_package_uses_public_names_alone():
    for file in OUTSIDE.rglob("*.py"):
        imported = re.findall(r"^from (\S+) import (.+)$|^import (\S+)$", file.read_text(), re.MULTILINE)
        names = " ".join(" ".join(each) for each in imported)
        assert "search" not in names
        assert not re.search(r"(?:^|[\s.,])_\w", names)


def test_the_checks_need_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; from vqvae import testing; print(testing.report('metric', 'l1'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "6 of 6 checks passed"
