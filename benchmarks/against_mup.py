"""Our muP against microsoft/mup on a stack of linear layers: the same function after every step.

    pip install --no-deps mup && python benchmarks/against_mup.py

mup divides the readout's inputs by m, begins with weights root m larger and leaves their learning rate alone; ours
begins with weights root m smaller and divides their learning rate by m. To Adam these are one and the same as its
epsilon goes to 0. mup also scales the initial biases, which ours leaves alone (all of ours begin at 0); they are
copied.

b samples, c their channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mup import MuAdam, MuReadout, set_base_shapes
from torch import Tensor, nn

from vqvae.parametrization import classify, factors, initialize, param_groups

BASE, WIDTHS, STEPS, LR = 8, (8, 32, 128, 512), 20, 1e-2


class Stack(nn.Module):
    """Four linear layers: an input, two hidden ones of different widths and a readout."""

    def __init__(self, width: int, readout: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.input = nn.Linear(5, width)
        self.wider = nn.Linear(width, 2 * width, bias=False)
        self.narrower = nn.Linear(2 * width, width)
        self.readout = readout(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 5) to (b, 3)."""
        outputs: Tensor = self.readout(torch.tanh(self.narrower(torch.tanh(self.wider(torch.tanh(self.input(x)))))))
        return outputs


def difference(width: int) -> float:
    """Greatest difference of the two models' outputs over the steps, in float64."""
    torch.manual_seed(0)
    ours, theirs = Stack(width), Stack(width, MuReadout)
    theirs.load_state_dict(ours.state_dict())
    set_base_shapes(theirs, Stack(BASE, MuReadout), delta=Stack(2 * BASE, MuReadout))
    places = classify(Stack, BASE)
    initialize(ours, places, "mup")
    biases = {name: value for name, value in theirs.state_dict().items() if name.endswith("bias")}
    ours.load_state_dict(biases, strict=False)
    groups = param_groups(ours, LR, 0.0, decayed=(), multipliers={}, scales=factors(ours, places, "mup"))
    optimizers = torch.optim.Adam(groups, eps=1e-15), MuAdam(theirs.parameters(), lr=LR, eps=1e-15)
    x, y = torch.randn(64, 5), torch.randn(64, 3)
    greatest = 0.0
    for _ in range(STEPS):
        outputs = []
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(model(x))
            (outputs[-1] - y).square().mean().backward()
            optimizer.step()
        greatest = max(greatest, (outputs[0] - outputs[1]).abs().max().item())
    return greatest


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for width in WIDTHS:
        print(f"width {width}: outputs differ by at most {difference(width):.1e} in {STEPS} steps")
