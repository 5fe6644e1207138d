"""A space that trains in seconds, for every test that needs a search."""

import pytest

TINY = """\
study: tiny
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 4, steps: 18}
resources: {gpus: 0, cpus: 1}
parallel: 2
train:
  model: {backbone: attention, width: 16, depth: 1, head_size: 16, patch: 16}
  quantizer: {code_dim: 4}
  loss: {perceptual: 0}
  optimizer: {warmup_steps: 1}
  data: {resolution: 64}
  evaluation: {lpips: false, images: 8}
  batch_size: 4
  micro_batch: 4
search:
  optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}
  quantizer.codebook_size: {choice: [16, 64, 256]}
"""


@pytest.fixture
def tiny_file(tmp_path):
    """A space file in a folder of its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_text():
    """The text of the space file, for fixtures that live longer than a test."""
    return TINY
