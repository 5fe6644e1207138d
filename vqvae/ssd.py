"""Mamba2 and its scan, state-space duality (SSD), on any device.

[1] Dao, Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality", arXiv 2405.21060

Axes and symbols: b images, l tokens, h heads, p channels of a head, n state dimensions; c chunks of q
tokens, s a second index over these q. As in the paper, x is the input of the scan, dt the step sizes,
A the decay rates of the heads, B and C the maps into and out of the state, D the skip weights. B and C
are shared by all heads (one group).

The parameters of `Mamba2` bear the names and shapes of mamba_ssm's. On CUDA the scan is mamba_ssm's
kernel where that package can be imported, else the one below.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae.config import ConfigError
from vqvae.layers import dense

_EXPAND = 2
_CONV_KERNEL = 4
_KERNEL_CHUNK = 256
_A_RANGE = (1.0, 16.0)
_DT_RANGE = (1.0e-3, 1.0e-1)


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int = 64) -> Tensor:  # noqa: N803
    """The scan in chunks: quadratic within a chunk, linear between them [1, section 6].

    It computes `ssd_reference`, in at least float32 whatever autocast says.

    Args:
        x: (b, l, h, p).
        dt: step sizes (b, l, h), at least 0.
        A: decay rates (h,), below 0.
        B: (b, l, n).
        C: (b, l, n).
        chunk_size: tokens q of a chunk; the last chunk may be shorter.

    Returns:
        (b, l, h, p), in the dtype of x.
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = x.shape[1]
        size = min(chunk_size, length)
        padding = -length % size  # of steps of size 0, which leave the state alone
        inputs, log_decay, B, C = (  # noqa: N806
            rearrange(F.pad(t.to(dtype), (0, 0) * (t.ndim - 2) + (0, padding)), "b (c q) ... -> b c q ...", q=size)
            for t in (x * dt[..., None], dt * A, B, C)
        )
        log_decay = rearrange(log_decay, "b c q h -> b c h q").cumsum(-1)  # since the start of the chunk
        ...
