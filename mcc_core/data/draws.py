"""Random choices of an augmentation."""

from __future__ import annotations

import torch


class Draw:
    """Random choices from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return torch.rand((), generator=self.generator).item() < probability

    def integer(self, high: int) -> int:
        """In 0..high, both included."""
        return int(torch.randint(high + 1, (), generator=self.generator))

    def permutation(self, n: int) -> list[int]:
        return torch.randperm(n, generator=self.generator).tolist()
