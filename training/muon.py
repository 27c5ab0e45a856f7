"""Muon for the matrices, AdamW for the rest, in one optimizer step over stacked tensors.

Muon's update of a matrix is its momentum made orthogonal (five Newton-Schulz steps), scaled so that a tall or wide
matrix moves as much per row as a square one. Matrices of equal shape (also experts) are stacked and updated together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.1  # holds spectral norms below about 10; without it attention logits run away
ADAM_BETAS = (0.9, 0.97)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values to about 1


def orthogonal(x_BMN: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly; in the input's type."""
    wide = x_BMN.shape[-2] <= x_BMN.shape[-1]
    x = x_BMN if wide else x_BMN.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon:
    """`matrices` by name; a 3-D one is a stack of matrices [in, out] (experts), a 2-D one is [out, in]."""

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[tuple[Tensor, float]]) -> None:
        self.groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            self.groups[tuple(matrix.shape)].append(matrix)
        self.momentum = {
            shape: torch.stack([torch.zeros_like(m) for m in group]) for shape, group in self.groups.items()
        }
        device = others[0][0].device
        self.rate = torch.zeros((), device=device)  # of the matrices; tensors, so that a captured step sees them change
        rates = [
            {"params": [p for p, r in others if r == rate], "lr": torch.tensor(rate, device=device), "base": rate}
            for rate in sorted({r for _, r in others})
        ]
        on_gpu = device.type == "cuda"
        self.adam = torch.optim.AdamW(
            rates, betas=ADAM_BETAS, weight_decay=0.0, eps=1e-8, fused=on_gpu, capturable=on_gpu
        )

    def set_rates(self, matrix_rate: float, factor: float) -> None:
        """`factor` scales every rate (the schedule); `matrix_rate` is Muon's full one."""
        self.rate.fill_(matrix_rate * factor)
        for group in self.adam.param_groups:
            group["lr"].fill_(group["base"] * factor)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # an overflowing row teaches nothing, but spoils nothing
        self.adam.step()
        for shape, group in self.groups.items():
            grad = torch.stack([m.grad for m in group])  # type: ignore[misc]  # all have one
            momentum = self.momentum[shape].lerp_(grad, 1 - MOMENTUM)
            ahead = grad.lerp(momentum, MOMENTUM)
            ways = ahead.flatten(0, -3).to(torch.bfloat16 if ahead.is_cuda else torch.float32)
            outputs, inputs = shape[-2:] if len(shape) == 2 else shape[-1:-3:-1]
            update = orthogonal(ways).view_as(ahead).float() * max(1.0, outputs / inputs) ** 0.5
            torch._foreach_mul_(group, 1 - self.rate * WEIGHT_DECAY)
            torch._foreach_sub_(group, list((update * self.rate).unbind(0)))

    def parameters(self) -> Iterator[Any]:
        for group in (*self.groups.values(), *(g["params"] for g in self.adam.param_groups)):
            yield from group

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def forget(self) -> None:
        """Drop all momentum, in place."""
        for momentum in self.momentum.values():
            momentum.zero_()
        for state in self.adam.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for shape, momentum in state["momentum"].items():
            self.momentum[shape].copy_(momentum)
        self.adam.load_state_dict(state["adam"])


def optimizer_for(model: nn.Module) -> Muon:
    """Matrices inside the layers go to Muon; embeddings, head, router, norms, biases and vision's rim to AdamW."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if ".layers." in name and name.endswith(("proj.weight", "proj", "fc1.weight", "fc2.weight")):
            matrices.append(parameter)
        elif "lm_head" in name:
            others.append((parameter, 1.5e-3))
        elif "embed_tokens" in name:
            others.append((parameter, 4e-3))
        else:
            others.append((parameter, 1e-3))
    return Muon(matrices, others)
