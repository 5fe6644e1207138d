import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqvae import metrics
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model
from vqvae.perceptual import LPIPS
from vqvae.pictures import to_images


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


def test_ssim_of_tiny_images_is_defined():
    assert metrics.ssim(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item() == pytest.approx(1)


def test_values_out_of_range_are_clipped_as_in_a_picture_file():
    white = torch.ones(1, 3, 16, 16)
    assert metrics.psnr(5 * white, white).item() == pytest.approx(100)
    assert metrics.l1(-7 * white, white).item() == 1
    assert metrics.ssim(5 * white, white).item() == pytest.approx(1)


def test_l1_is_on_a_range_of_one():
    assert metrics.l1(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 8, 8)).tolist() == [0.25, 0.25]


def test_not_a_number_stays_visible():
    broken, whole = torch.full((1, 3, 16, 16), float("nan")), torch.zeros(1, 3, 16, 16)
    for metric in (metrics.psnr, metrics.ssim, metrics.l1):
        assert metric(broken, whole).isnan().all()


def test_code_statistics_of_evenly_used_codes():
    found = metrics.code_statistics(torch.tensor([5, 5, 5, 5, 0, 0, 0, 0]), tokens_per_image=10)
    assert found == {
        "codebook_usage": 0.5,
        "perplexity": pytest.approx(4),
        "entropy_bits_per_image": pytest.approx(20),
        "codebook_tokens": 20,
    }


def test_rare_codes_cost_less_than_their_number_suggests():
    found = metrics.code_statistics(torch.tensor([8, 4, 2, 1, 1]), tokens_per_image=16)
    assert found["entropy_bits_per_image"] == pytest.approx(16 * 1.875)


def test_a_collapsed_codebook_shows():
    found = metrics.code_statistics(torch.tensor([0, 7, 0, 0]), tokens_per_image=7)
    assert (found["codebook_usage"], found["perplexity"], found["entropy_bits_per_image"]) == (0.25, 1, 0)


def test_evaluation_does_not_depend_on_the_micro_batch_and_counts_every_token():
    config = replace(
        TrainConfig(),
        {
            "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8},
            "quantizer": {"codebook_size": 32, "code_dim": 4},
            "data.resolution": 64,
        },
    )
    model = build_model(config).eval()
    held_out = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    found = metrics.evaluate(model, held_out, 2, LPIPS("alex", "random"))
    whole = metrics.evaluate(model, held_out, 5, LPIPS("alex", "random"))
    assert found == pytest.approx(whole, rel=1e-5)
    assert found["codebook_tokens"] == 5 * 64
    assert set(found) == {
        "psnr",
        "ssim",
        "l1",
        "lpips_random",
        "codebook_usage",
        "perplexity",
        "entropy_bits_per_image",
        "codebook_tokens",
    }
    images = to_images(held_out)
    with torch.no_grad():
        made = model(images).images
    assert found["psnr"] == pytest.approx(metrics.psnr(made, images).mean().item(), rel=1e-5)
    indices = model.encode(images)
    assert found["codebook_usage"] == len(indices.unique()) / 32
