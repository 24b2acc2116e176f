"""Muon for matrices and convolutions, batched by shape.

torch.optim.Muon supports only matrices, one after another, which is a sixth of a step here.

Source: "Muon: An optimizer for hidden layers in neural networks", Jordan et al. 2024.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values to 1


class Muon(torch.optim.Optimizer):
    """Steps along the nearest half-orthogonal matrix to the momentum; kernels count as matrices."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Do one step, Nesterov's."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                self._step_alike(group, shape, parameters)

    def _step_alike(self, group: dict, shape: torch.Size, parameters: list[nn.Parameter]) -> None:  # type: ignore[type-arg]
        gradients = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            momentum = state.setdefault("momentum", torch.zeros_like(parameter))
            momentum.mul_(group["momentum"]).add_(gradient)
            gradients.append(gradient.add(momentum, alpha=group["momentum"]).flatten(1))
        directions = orthogonalise(torch.stack(gradients))
        rows, columns = directions.shape[1:]
        length = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["decay"])
            parameter.sub_(direction.view(shape), alpha=length)


def orthogonalise(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Give, about, U·Vᵀ of each matrix's singular value decomposition, by Newton-Schulz.

    Shapes:
        matrices and result: (matrices, rows, columns).
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
