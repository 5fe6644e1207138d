"""An outside package, installed for a test as pip would leave it, and taken away again."""

import sys
import tomllib
from pathlib import Path

import pytest

from vqvae import config, losses, metrics, model, plugins, quantize, sources

OUTSIDE = Path(__file__).parent / "outside"


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is gone after it, and may be registered again."""
    tables = (
        model.BACKBONES, quantize.QUANTIZERS, losses.TERMS, metrics.MEASURES, sources.SOURCES, config.METRICS,
        plugins._ENTERED, plugins._LOADED,
    )  # fmt: skip
    before = [dict(each) for each in tables]
    yield
    for each, old in zip(tables, before, strict=True):
        each.clear()
        each.update(old)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package on the path, its entry points beside it: those that its pyproject.toml declares."""
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(OUTSIDE)
    yield project["entry-points"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside_tokenizers"]:
        del sys.modules[name]
