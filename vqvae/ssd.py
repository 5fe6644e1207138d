"""The scan of the state-space duality (SSD) on any device, and Mamba2, the mixer made of it.

[1] Dao, Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality", arXiv 2405.21060

Axes: b images, l tokens, h heads, p channels of a head, n state dimensions, c chunks, q tokens of a
chunk, s a second index over them. Symbols as in the paper: x the input of the scan, dt the step sizes,
A the decay rates of the heads, B and C the maps into and out of the state, D the skip weights. All heads
share B and C (one group).

The parameters of `Mamba2` have the names and shapes of mamba_ssm's. On CUDA the scan is mamba_ssm's
kernel where that package can be imported, elsewhere the one written here.
"""

# ruff: noqa: N803, N806 - A, B, C, D are the paper's names.

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vqvae.config import ConfigError
from vqvae.layers import RMSNorm, dense

EXPAND = 2
"""Inner channels of a mixer / width."""
INNER_NORM_EPSILON = 1.0e-5
"""Of the norm in front of a mixer's output projection, as in mamba_ssm."""
_CONV_KERNEL = 4
_KERNEL_CHUNK = 256
_A_RANGE = (1.0, 16.0)
_LOG_NEGLIGIBLE = -60.0
_DT_RANGE = (1.0e-3, 1.0e-1)


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int = 64) -> Tensor:
    """What `ssd_reference` computes, quadratic within chunks and linear between them [1, section 6].

    It works in float32 at least, whatever autocast says.

    Args:
        x: (b, l, h, p).
        dt: step sizes (b, l, h), at least 0.
        A: decay rates (h,), below 0.
        B: (b, l, n).
        C: (b, l, n).
        chunk_size: tokens q of a chunk, at least 1; l need not be a multiple of it.

    Returns:
        (b, l, h, p), in the dtype of x.
    """
    length, heads = x.shape[1], x.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x_, dt, A, B, C = (t.to(dtype) for t in (x, dt, A, B, C))
        size = min(chunk_size, length)
        padding = -length % size  # steps of size 0, which leave the state as it is

        def chunks(t: Tensor) -> Tensor:
            padded = F.pad(t, (0, 0, 0, padding)) if padding else t
            return rearrange(padded, "b (c q) d -> b c q d", q=size)

        inputs = chunks(rearrange(x_ * dt[..., None], "b l h p -> b l (h p)"))
        B, C = chunks(B), chunks(C)
        log_decay = rearrange(chunks(dt * A), "b c q h -> b c h q").cumsum(-1)

        # Within each chunk, as attention with a mask of decays.
        scores = rearrange(C @ B.mT, "b c q s -> b c 1 q s").tril() * _decays(log_decay)
        y = scores @ rearrange(inputs, "b c s (h p) -> b c h s p", h=heads)
        y = rearrange(y, "b c h q p -> b c q h p")

        if padding + length > size:
            # What each chunk but the last adds to the state, what all before it left, and what that gives.
            to_end = (log_decay[:, :-1, :, -1:] - log_decay[:, :-1]).exp()
            weighted = inputs[:, :-1] * repeat(to_end, "b c h q -> b c q (h p)", p=x.shape[3])
            added = rearrange(B[:, :-1].mT @ weighted, "b c n (h p) -> b h c (n p)", h=heads)
            totals = rearrange(log_decay[:, :-1, :, -1], "b c h -> b h c").cumsum(-1)
            states = rearrange(_decays(totals).tril() @ added, "b h c (n p) -> b c n (h p)", n=B.shape[-1])
            carried = rearrange(C[:, 1:] @ states, "b c q (h p) -> b c q h p", h=heads)
            carried = carried * rearrange(log_decay[:, 1:].exp(), "b c h q -> b c q h 1")
            y = torch.cat([y[:, :1], y[:, 1:] + carried], dim=1)

        return rearrange(y, "b c q h p -> b (c q) h p")[:, :length].to(x.dtype)


def _decays(cumulative: Tensor) -> Tensor:
    """What is left at q of a contribution made at s: from the logarithms' cumulative sums (..., q) to (..., q, s).

    What stands at s after q means nothing, and is to be masked.
    """
    differences = cumulative[..., :, None] - cumulative[..., None, :]
    # Below, the exponential is denormal, and up to a hundred times slower on a CPU; above, it is masked, and
    # must not overflow. hardtanh clamps, with a gradient that is one pass instead of clamp's three.
    return F.hardtanh(differences, _LOG_NEGLIGIBLE, 1.0).exp()


def ssd_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence itself, token by token: slow, and what `ssd` is tested against [1, eq. 2].

    state = exp(dt A) state + dt x B^T and y = state C, for every head. Arguments as in `ssd`.
    """
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1])
    outputs = []
    for token in range(x.shape[1]):
        step = dt[:, token]
        kept = torch.exp(step * A)[..., None, None] * state
        state = kept + torch.einsum("bh,bhp,bn->bhpn", step, x[:, token], B[:, token])
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, token]))
    return torch.stack(outputs, dim=1)


def depthwise_conv(channels: int, kernel: int, padding: int) -> nn.Conv1d:
    """A convolution of each channel along the tokens: (b, channels, l) to (b, channels, l + 2 padding - kernel + 1)."""
    layer = nn.Conv1d(channels, channels, kernel, padding=padding, groups=channels)
    nn.init.normal_(layer.weight, std=kernel**-0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def scan_parameters(heads: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """dt_bias, A_log and D of `scan`, each (heads,): step sizes and decay rates drawn from ranges free of the width."""
    low, high = (math.log(bound) for bound in _DT_RANGE)
    dt = torch.empty(heads).uniform_(low, high).exp()
    dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
    return dt_bias, nn.Parameter(torch.empty(heads).uniform_(*_A_RANGE).log()), nn.Parameter(torch.ones(heads))


def scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor) -> Tensor:
    """The scan of a mixer, from what it projects and what it learns: `ssd` and the skip D x.

    Args:
        x: (b, l, h, p).
        dt: step sizes (b, l, h) before dt_bias is added and softplus makes them positive.
        B: (b, l, n).
        C: (b, l, n).
        dt_bias: (h,).
        A_log: logarithms of the decay rates' absolute values (h,).
        D: (h,).

    Returns:
        (b, l, h, p).
    """
    A = -A_log.exp()
    if _cuda_scan is not None and x.is_cuda:
        return _cuda_scan(x, dt, A, B, C, D, dt_bias)
    return ssd(x, F.softplus(dt + dt_bias), A, B, C) + x * D[:, None]


_CudaScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _import_cuda_scan() -> _CudaScan | None:
    """mamba_ssm's scan for CUDA, or None where it is not installed or was not built for this torch."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        B, C = (rearrange(t, "b l n -> b l 1 n") for t in (B, C))
        scanned: Tensor = mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size=_KERNEL_CHUNK, D=D, dt_bias=dt_bias, dt_softplus=True
        )
        return scanned

    # Dynamo does not trace into its autotuned kernels: a compiled block calls it as it is.
    opaque: _CudaScan = torch.compiler.disable(scan)  # type: ignore[no-untyped-call]
    return opaque


_cuda_scan = _import_cuda_scan()


class Mamba2(nn.Module):
    """The Mamba2 mixer [1, section 7], each token seeing those before it.

    `load_state_dict` takes that of a `mamba_ssm.Mamba2(width, d_state=state_size, headdim=head_size)`.

    Raises:
        ConfigError: head_size does not divide the inner width, which is 2 x width.
    """

    def __init__(self, width: int, head_size: int, state_size: int) -> None:
        super().__init__()
        inner = EXPAND * width
        if inner % head_size:
            raise ConfigError(
                "model.head_size", f"must divide Mamba2's inner width of {inner} channels, but got {head_size}"
            )
        heads = inner // head_size
        self.sizes = [inner, inner + 2 * state_size, heads]
        self.head_size, self.state_size = head_size, state_size

        self.in_proj = dense(width, sum(self.sizes))
        self.conv1d = depthwise_conv(self.sizes[1], _CONV_KERNEL, padding=_CONV_KERNEL - 1)
        self.dt_bias, self.A_log, self.D = scan_parameters(heads)
        self.norm = RMSNorm(inner, INNER_NORM_EPSILON)
        self.out_proj = dense(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, width) to (b, l, width)."""
        gate, mixed, dt = torch.split(self.in_proj(x), self.sizes, dim=-1)
        convolved = self.conv1d(rearrange(mixed, "b l d -> b d l"))[..., : x.shape[1]]  # cut off what is not causal
        mixed = F.silu(rearrange(convolved, "b d l -> b l d"))
        inputs, B, C = torch.split(mixed, [self.sizes[0], self.state_size, self.state_size], dim=-1)
        inputs = rearrange(inputs, "b l (h p) -> b l h p", p=self.head_size)
        y = scan(inputs, dt, B, C, self.dt_bias, self.A_log, self.D)
        gated = self.norm(rearrange(y, "b l h p -> b l (h p)") * F.silu(gate))
        projected: Tensor = self.out_proj(gated)
        return projected
