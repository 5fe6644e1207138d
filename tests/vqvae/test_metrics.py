import copy

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqvae import metrics, robustness, testing
from vqvae.config import EvaluationConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model
from vqvae.perceptual import LPIPS
from vqvae.pictures import to_images
from vqvae.robustness import Neighbors, perturb


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 24, 20, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator) * torch.tensor([0.05, 0.2, 0.5]).view(3, 1, 1, 1)
    return images, (images + noise).clamp(-1, 1)


def arrays(pair):
    return [((part.double() + 1) / 2).permute(0, 2, 3, 1).numpy() for part in pair]


def test_psnr_equals_scikit_image_image_by_image(pair):
    expected = [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in zip(*arrays(pair), strict=True)]
    assert metrics.psnr(*pair).tolist() == pytest.approx(expected, rel=1e-5)


def test_ssim_equals_scikit_image(pair):
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural_similarity(x, y, channel_axis=-1, **settings) for x, y in zip(*arrays(pair), strict=True)]
    assert metrics.ssim(*pair).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 53), (5, 60), (17, 16), (26, 12)])
def test_ssim_of_a_large_image_in_blocks_is_that_of_the_whole(shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, references = (torch.rand(2, 3, *shape, generator=generator) * 2 - 1 for _ in range(2))
    whole = metrics.ssim(images, references)
    monkeypatch.setattr(metrics, "BLOCK", 16)
    assert torch.allclose(metrics.ssim(images, references), whole, atol=1e-6)


def test_ssim_of_tiny_images_is_defined():
    assert metrics.ssim(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item() == pytest.approx(1)


def test_values_out_of_range_are_clipped_as_in_a_picture_file():
    white = torch.ones(1, 3, 16, 16)
    assert metrics.psnr(5 * white, white).item() == pytest.approx(100)
    assert metrics.l1(-7 * white, white).item() == 1
    assert metrics.ssim(5 * white, white).item() == pytest.approx(1)


def test_l1_is_on_a_range_of_one():
    assert metrics.l1(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8)).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{name}-{check}")
        for name in metrics.MEASURES
        for check in testing.checks("metric", name)
    ],
)
def test_it_passes_the_checks_of_every_metric(check):
    check()


def test_code_statistics_of_evenly_used_codes():
    found = metrics.code_statistics(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0]), tokens_per_image=10)
    assert found == {
        "codebook_usage": 0.5,
        "perplexity": pytest.approx(4),
        "entropy_bits_per_image": pytest.approx(20),
        "codebook_tokens": 20,
        "codebook_undersampled": 1,
    }
    assert metrics.code_statistics(torch.full((8,), 10), tokens_per_image=10)["codebook_undersampled"] == 0


def test_rare_codes_cost_less_than_their_number_suggests():
    found = metrics.code_statistics(torch.tensor([8, 4, 2, 1, 1]), tokens_per_image=16)
    assert found["entropy_bits_per_image"] == pytest.approx(16 * 1.875)


def test_a_collapsed_codebook_shows():
    found = metrics.code_statistics(torch.tensor([0, 7, 0, 0]), tokens_per_image=7)
    assert (found["codebook_usage"], found["perplexity"], found["entropy_bits_per_image"]) == (0.25, 1, 0)


@pytest.fixture(scope="module")
def model():
    config = replace(
        TrainConfig(),
        {
            "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
            "quantizer": {"codebook_size": 32, "code_dim": 4},
            "data.resolution": 64,
        },
    )
    torch.manual_seed(0)
    return build_model(config).eval()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lpips():
    return LPIPS("alex", "random")


def test_evaluation_does_not_depend_on_the_micro_batch_and_counts_every_token(model, pictures, lpips):
    held_out = pictures[:5]
    found = metrics.evaluate(model, held_out, EvaluationConfig(), 2, lpips).metrics
    whole = metrics.evaluate(model, held_out, EvaluationConfig(), 5, lpips).metrics
    assert found == pytest.approx(whole, rel=1e-5)
    assert found["codebook_tokens"] == 5 * 64
    assert set(found) == {
        "psnr",
        "ssim",
        "l1",
        "lpips_random",
        "lpips_random_perturbed",
        "codebook_usage",
        "perplexity",
        "entropy_bits_per_image",
        "codebook_tokens",
        "codebook_undersampled",
    }
    images = to_images(held_out)
    with torch.no_grad():
        made = model(images).images
    assert found["psnr"] == pytest.approx(metrics.psnr(made, images).mean().item(), rel=1e-5)
    indices = model.encode(images)
    assert found["codebook_usage"] == len(indices.unique()) / 32


def test_perturbed_lpips_is_that_of_decoded_codes_with_errors(model, pictures, lpips):
    found = metrics.evaluate(model, pictures[:3], EvaluationConfig(perturbed=0.5), 2, lpips).metrics
    images = to_images(pictures[:3])
    indices = model.encode(images)
    wrong = perturb(indices.flatten(1), 0.5, [0, 1, 2], Neighbors(model.quantizer, torch.device("cpu")))
    decoded = model.decode(wrong.view_as(indices)).clamp(-1, 1)
    assert found["lpips_random_perturbed"] == pytest.approx(lpips(decoded, images).mean().item(), rel=1e-5)
    assert found["lpips_random_perturbed"] != pytest.approx(found["lpips_random"], rel=1e-3)


def test_perturbed_lpips_of_very_many_codes_is_of_fewer_images(model, pictures, lpips, monkeypatch):
    monkeypatch.setattr(robustness, "DISTANCES", 32 * 6 * 2)  # two images of six replaced tokens
    found = metrics.evaluate(model, pictures[:3], EvaluationConfig(), 2, lpips).metrics
    images = to_images(pictures[:3])
    indices = model.encode(images)[[0, 2]]
    wrong = perturb(indices.flatten(1), 0.1, [0, 2], Neighbors(model.quantizer, torch.device("cpu")))
    decoded = model.decode(wrong.view_as(indices)).clamp(-1, 1)
    assert found["lpips_random_perturbed"] == pytest.approx(lpips(decoded, images[[0, 2]]).mean().item(), rel=1e-5)


def test_perturbed_lpips_bears_its_plain_name_with_real_weights_and_can_be_off(model, pictures, lpips, monkeypatch):
    monkeypatch.setattr(lpips, "name", "lpips_alex")
    assert "lpips_perturbed" in metrics.evaluate(model, pictures[:2], EvaluationConfig(), 2, lpips).metrics
    without = metrics.evaluate(model, pictures[:2], EvaluationConfig(perturbed=0), 2, lpips).metrics
    assert not [name for name in without if name.endswith("perturbed")]
    assert not [
        name for name in metrics.evaluate(model, pictures[:2], EvaluationConfig(), 2).metrics if "lpips" in name
    ]


def test_further_pictures_are_encoded_until_there_are_tokens_enough_for_the_codebook(model, pictures):
    config = EvaluationConfig(images=2)
    found = metrics.evaluate(model, pictures, config, 2).metrics
    assert (found["codebook_tokens"], found["codebook_undersampled"]) == (5 * 64, 0)  # 10 tokens a code
    counted = model.encode(to_images(pictures[[0, 8, 1, 4, 7]]))  # two that are measured, three between them
    counts = torch.bincount(counted.flatten(), minlength=32)
    assert found == pytest.approx(found | metrics.code_statistics(counts, 64))
    measured = metrics.evaluate(model, pictures[[0, 8]], config, 2).metrics
    assert found["psnr"] == pytest.approx(measured["psnr"], rel=1e-5)
    assert (measured["codebook_tokens"], measured["codebook_undersampled"]) == (2 * 64, 1)


def test_the_worst_pictures_come_first_by_lpips_if_it_is_measured_else_by_psnr(model, pictures, lpips):
    images = to_images(pictures[[0, 3, 5, 8]])
    with torch.no_grad():
        made = model(images).images
    by_psnr = metrics.psnr(made, images).argsort().tolist()
    by_lpips = lpips(made.clamp(-1, 1), images).argsort(descending=True).tolist()
    assert by_psnr != by_lpips
    config = EvaluationConfig(images=4, perturbed=0)
    assert metrics.evaluate(model, pictures, config, 3).worst == [[0, 3, 5, 8][place] for place in by_psnr]
    assert metrics.evaluate(model, pictures, config, 3, lpips).worst == [[0, 3, 5, 8][place] for place in by_lpips]


def test_evaluation_reads_a_micro_batch_of_pictures_at_a_time(model, pictures):
    read = []

    class Watched:
        def __len__(self):
            return len(pictures)

        def __getitem__(self, rows):
            read.append(len(rows))
            return pictures[rows]

    metrics.evaluate(model, Watched(), EvaluationConfig(images=3), 2)
    assert read == [2, 1, 2]


def test_pictures_are_spread_evenly():
    assert metrics.spread(10, 4).tolist() == [0, 3, 6, 9]
    assert metrics.spread(10, 99).tolist() == list(range(10))
    assert metrics.spread(10, -3).tolist() == metrics.spread(0, 3).tolist() == []


def test_codes_that_are_never_drawn_show_in_an_evaluation(model, pictures):
    collapsed = copy.deepcopy(model)
    with torch.no_grad():
        collapsed.to_code.weight.zero_()
    found = metrics.evaluate(collapsed, pictures[:5], EvaluationConfig(), 5).metrics
    assert (found["codebook_usage"], found["perplexity"], found["entropy_bits_per_image"]) == (1 / 32, 1, 0)
    assert found["codebook_undersampled"] == 0
