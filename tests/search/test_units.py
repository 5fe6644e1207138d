import pytest

from search import units
from vqvae.config import COSTS, METRICS


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("val/psnr", 22.971, "22.97 dB"),
        ("psnr", 22.971, "22.97 dB"),
        ("val/ssim", 0.54345, "0.5434"),
        ("val/rfid", 1234.567, "1,234.57"),
        ("val/codebook_usage", 0.3877, "38.8 %"),
        ("val/entropy_bits_per_image", 14336.4, "14,336 bits/image"),
        ("val/perplexity", 1198.32, "1,198.3"),
        ("val/codebook_undersampled", 1.0, "yes"),
        ("val/codebook_undersampled", 0.0, "no"),
        ("parameters", 425664.0, "425,664"),
        ("images_per_s", 165.33, "165 images/s"),
        ("images_per_s", 1205.4, "1,205 images/s"),
        ("images_per_s", 9.876, "9.88 images/s"),
        ("peak_memory_gib", 1.2345, "1.23 GiB"),
        ("seconds", 200.4, "3 min 20 s"),
        ("seconds", None, "unknown"),
        ("val/psnr", None, "-"),
        ("val/psnr", float("nan"), "nan dB"),
        ("codebook_usage", float("inf"), "inf %"),
    ],
)
def test_numbers_are_written_with_their_unit(name, value, words):
    assert units.text(name, value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1234567.0, "1,234,567"),
        (123456.78, "123,457"),
        (0.0123456, "0.012346"),
        (1e-9, "1e-09"),
        (-3, "-3"),
        (1e20, "1e+20"),
    ],
)
def test_a_number_of_which_nothing_is_known_is_written_plainly(value, words):
    assert units.text("no such metric", value) == words
    assert (units.label("no such metric"), units.unit("no such metric")) == ("no such metric", "")
    assert units.better("no such metric") == ""


def test_a_column_with_its_unit_in_the_heading_holds_numbers_alone():
    assert (units.unit("val/psnr"), units.figure("val/psnr", 22.971)) == ("dB", "22.97")
    assert (units.unit("seconds"), units.figure("seconds", 4000)) == ("s", "4,000")


def test_every_metric_and_cost_has_a_label_of_its_own():
    labels = [units.label(name) for name in (*METRICS, *COSTS)]
    assert not {*labels} & {*METRICS, *COSTS} - {"parameters"}
    assert len({*labels}) == len(labels)


def test_what_is_better_is_what_the_metric_says():
    assert {name: units.better(name) for name in METRICS} == {
        "val/lpips_alex": "lower",
        "val/psnr": "higher",
        "val/ssim": "higher",
        "val/l1": "lower",
        "val/lpips_perturbed": "lower",
        "val/rfid": "lower",
        "val/codebook_usage": "",
        "val/perplexity": "",
        "val/entropy_bits_per_image": "",
    }
    assert [units.better(name) for name in COSTS] == ["lower", "higher", "higher", "higher", "lower"]
    assert units.better("psnr") == "higher"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h"), (None, "unknown")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert units.duration(seconds) == words
