"""How long and by which options the networks of the paper's study train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Epochs of each stage and how they train; ``start`` epochs of dense training come before anything else.

    ``whole_lr`` is the learning rate of networks at full rank, the dense one and those in SVD form that are pruned later if
    at all: what is trained already wants a smaller one than what pruning has just cut. ``strengths`` are the λ_s of table 3.
    """

    name: str
    start: int
    svd: int
    fine_tune: int
    lr: float
    whole_lr: float
    start_lr: float
    scratch_lr: float
    strengths: Mapping[str, Sequence[float]]
    more: tuple[str, ...]
    strengths_of_larger: Mapping[str, Sequence[float]] | None = None  # where epochs take longer: fewer of them
    weights: bool = True  # start from the published weights

    @property
    def epochs(self) -> int:
        """Of SVD training and fine-tuning together: what the dense network gets as well."""
        return self.svd + self.fine_tune

    @property
    def options(self) -> tuple[str, ...]:
        return "--lr", f"{self.lr:g}", "--distill", "0", *self.more

    @property
    def whole(self) -> tuple[str, ...]:
        return "--lr", f"{self.whole_lr:g}"

    def times(self, factor: int) -> Schedule:
        """With so many times the epochs behind the start."""
        return replace(self, svd=factor * self.svd, fine_tune=factor * self.fine_tune)


SCHEDULES = {
    "short": Schedule(
        "short",
        start=6,
        svd=3,
        fine_tune=2,
        lr=0.1,
        whole_lr=0.03,
        start_lr=0.02,
        scratch_lr=0.1,
        # What makes spectra sparse in so few steps at this learning rate; L1's gradient is that much larger than Hoyer's.
        strengths={"hoyer": (0.03, 0.1), "l1": (0.003, 0.01)},
        more=("--batch-size", "128", "--checkpoint-minutes", "5"),
        # Those that did best by ResNet-20's held-out images at 3.3 times fewer MACs, the same in both schemes.
        strengths_of_larger={"hoyer": (0.1,), "l1": (0.003,)},
    ),
    "paper": Schedule(
        "paper",
        start=164,
        svd=164,
        fine_tune=164,
        lr=0.001,
        whole_lr=0.001,
        start_lr=0.001,
        scratch_lr=0.001,
        # Around the authors' own for ResNet-20: 0.07 and 0.1 by Hoyer, 0.3 by L1.
        strengths={"hoyer": (0.07, 0.1), "l1": (0.1, 0.3)},
        more=(
            *("--optimizer", "adam", "--weight-decay", "0", "--batch-size", "100"),
            *("--schedule", "step", "--milestones", "81/164,122/164"),
        ),
        weights=False,
    ),
}
