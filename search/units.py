"""What measured numbers are called, in which unit they are, and how they are written: the same everywhere.

Names are those of the metrics of a trial, with or without ``val/``. A name that is not known here is its own label and
has no unit; it may come from a storage, and whoever shows it makes it printable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from vqvae.config import METRICS


class _Quantity(NamedTuple):
    label: str
    unit: str
    figure: Callable[[float], str]
    better: str = ""


def label(name: str) -> str:
    """What it is called: ``val/psnr`` -> ``PSNR``."""
    known = _known(name)
    return known.label if known else name


def unit(name: str) -> str:
    """Its unit, for a column's heading or an axis: ``val/psnr`` -> ``dB``; "" for pure numbers."""
    known = _known(name)
    return known.unit if known else ""


def better(name: str) -> str:
    """``higher`` or ``lower``; "" for what is neither good nor bad by itself."""
    known = _known(name)
    words = {"maximize": "higher", "minimize": "lower"}
    return words.get(METRICS.get(f"val/{name.removeprefix('val/')}", ""), known.better if known else "")


def figure(name: str, value: float | None) -> str:
    """The number alone, where its unit stands elsewhere: ``parameters``, 425664 -> ``425,664``; None is a dash."""
    if value is None:
        return "-"
    known = _known(name)
    return known.figure(value) if known and math.isfinite(value) else plain(value)


def text(name: str, value: float | None) -> str:
    """A number with its unit: ``val/codebook_usage``, 0.3877 -> ``38.8 %``; None is a dash."""
    if name == "seconds":
        return duration(value)
    return " ".join(filter(None, (figure(name, value), unit(name) if value is not None else "")))


def plain(value: float) -> str:
    """A number of which nothing is known: at most five significant digits of a fraction, whole numbers whole."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e5) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 10 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _known(name: str) -> _Quantity | None:
    return _QUANTITIES.get(name.removeprefix("val/"))


_WHOLE, _TENTHS, _HUNDREDTHS, _FOUR = "{:,.0f}".format, "{:,.1f}".format, "{:,.2f}".format, "{:.4f}".format

_QUANTITIES = {
    "lpips_alex": _Quantity("LPIPS (alex)", "", _FOUR),
    "lpips_random": _Quantity("LPIPS (random trunk)", "", _FOUR, "lower"),
    "lpips_perturbed": _Quantity("LPIPS of perturbed codes", "", _FOUR),
    "lpips_random_perturbed": _Quantity("LPIPS of perturbed codes (random trunk)", "", _FOUR, "lower"),
    "psnr": _Quantity("PSNR", "dB", _HUNDREDTHS),
    "ssim": _Quantity("SSIM", "", _FOUR),
    "l1": _Quantity("L1 error", "", _FOUR),
    "rfid": _Quantity("rFID", "", _HUNDREDTHS),
    "rfid_images": _Quantity("images of the rFID", "", _WHOLE),
    "codebook_usage": _Quantity("codebook usage", "%", lambda value: f"{100 * value:.1f}"),
    "perplexity": _Quantity("perplexity of the codes", "", _TENTHS),
    "entropy_bits_per_image": _Quantity("entropy-coded size", "bits/image", _WHOLE),
    "bits_per_image": _Quantity("size", "bits/image", _WHOLE, "lower"),
    "tokens": _Quantity("tokens", "per image", _WHOLE),
    "codebook_tokens": _Quantity("tokens counted", "", _WHOLE),
    "codebook_undersampled": _Quantity("too few tokens for the codebook", "", lambda value: "yes" if value else "no"),
    "parameters": _Quantity("parameters", "", _WHOLE, "lower"),
    "images_per_s": _Quantity("training speed", "images/s", _rate, "higher"),
    "encode_images_per_s": _Quantity("encoding speed", "images/s", _rate, "higher"),
    "decode_images_per_s": _Quantity("decoding speed", "images/s", _rate, "higher"),
    "peak_memory_gib": _Quantity("peak GPU memory", "GiB", _HUNDREDTHS, "lower"),
    "seconds": _Quantity("training time", "s", _WHOLE, "lower"),
}
