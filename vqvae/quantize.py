"""The quantizers by name."""

from collections.abc import Callable

from vqvae.codes import Quantizer
from vqvae.config import QuantizerConfig
from vqvae.gumbel import GumbelQuantizer
from vqvae.scalar import BSQ, FSQ, LFQ
from vqvae.vector import SimVQ, VectorQuantizer

QUANTIZERS: dict[str, Callable[[QuantizerConfig], Quantizer]] = {
    "vq": VectorQuantizer,
    "simvq": SimVQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "gumbel": GumbelQuantizer,
}
"""Quantizers by the name that `quantizer.kind` gives; a plug-in adds its own."""


def admit(part: object) -> Callable[[QuantizerConfig], Quantizer]:
    """What a plug-in may enter above.

    Raises:
        TypeError: anything else.
    """
    if isinstance(part, type) and issubclass(part, Quantizer):
        return part
    raise TypeError(f"must be a class derived from vqvae.codes.Quantizer, but got {part!r}")
