"""The rows of every table: which runs of `lrexport` it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.paper.study import Study

# Yang et al. 2020 as they prune: one e for all layers (equation 4), nothing weighted, nothing repaired but by fine-tuning.
PAPER_RULE = ("--rule", "threshold", "--no-weighting", "--no-reconstruct", "--batchnorm-images", "0")
# And as they train: their optimiser, and their λ_s for ResNet-20 with spatial.
PAPER = ("--optimizer", "adam", "--lr", "0.001", "--weight-decay", "0", "--sparsity-strength", "0.1", *PAPER_RULE)
# Everything of ours; each is switched off in turn by the ablation.
OURS = ("--sparsity-strength", "auto", "--distill", "0.5")
SHARES = (0.5, 0.303, 0.25)  # of the MACs: 2, 3.3 and 4 times fewer
GOALS = SHARES[1:]
SCHEMES = ("channel", "spatial")
# λ_s: the authors' own for ResNet-20 (their code and appendix) are 0.07 to 0.3 at 164 epochs.
STRENGTHS = {"hoyer": (0.03, 0.1), "l1": (0.01, 0.03)}

Row = dict[str, Any]


def orthogonality(study: Study) -> Iterator[Row]:
    """Table 1: the SVD-trained network at full rank, with and without orthogonality, and the dense one of equal epochs."""
    epochs = study.schedule.svd
    yield study.dense(epochs) | {"scheme": "dense"}
    for scheme in SCHEMES:
        for strength in (1, 0):
            name = f"svd-{scheme}-none-{strength}-{epochs}"
            study.train(name, *_svd(study, scheme, "none", 0.0, strength), *study.schedule.whole)
            row = study.go_on(f"{name}-whole", name, "--energy", "0", *PAPER_RULE, "--fine-tune-epochs", "0")
            pruned = study.go_on(f"{name}-half", name, "--macs", "0.5", *PAPER_RULE, "--fine-tune-epochs", "0")
            own = {"half_top1": pruned["top1"], "epochs": epochs, "hours": study.hours(name)}
            yield row | {"scheme": scheme, "orthogonality": strength, **own}


def sparsity(study: Study) -> Iterator[Row]:
    """Figures 2 and 3, table 3: accuracy against MACs by scheme, kind of sparsity and its strength, by the paper's rule."""
    epochs = study.schedule.epochs
    yield study.dense(epochs) | {"scheme": "dense"}
    for scheme in SCHEMES:
        for kind, strength in (("none", 0.0), *((kind, each) for kind, those in STRENGTHS.items() for each in those)):
            name = f"svd-{scheme}-{kind}-{f'{strength:g}' if strength else 1}-{study.schedule.svd}"
            study.train(name, *_svd(study, scheme, kind, strength, 1))
            for share in SHARES:
                fine = ("--fine-tune-epochs", str(study.schedule.fine_tune))
                row = study.go_on(f"{name}-{share:g}", name, "--macs", f"{share:g}", *PAPER_RULE, *fine)
                if share == SHARES[0]:  # they share their SVD training
                    row["hours"] += study.hours(name)
                yield row | {"scheme": scheme, "sparsity": kind, "strength": strength, "share": share, "epochs": epochs}


def recipe(study: Study) -> Iterator[Row]:
    """Ours against the paper's, pruning at once and ranks that fall, at equal MACs and epochs."""
    yield study.dense(study.schedule.epochs) | {"method": "dense"}
    for share in GOALS:
        for method, options in METHODS.items():
            yield _at(study, method, share, options(study)) | {"method": method, "share": share}


def ablation(study: Study) -> Iterator[Row]:
    """Ours at 3.3 times fewer MACs with each of its parts switched off in turn."""
    share = GOALS[0]
    yield study.dense(study.schedule.epochs) | {"without": "dense"}
    yield _at(study, "ours", share, METHODS["ours"](study)) | {"without": "nothing"}
    for part, options in PARTS.items():
        name = f"ours-without-{part.replace(' ', '-')}"
        yield _at(study, name, share, (*METHODS["ours"](study), *options)) | {"without": part}


def _svd(study: Study, scheme: str, kind: str, strength: float, orthogonal: float) -> tuple[str, ...]:
    return (
        *("--scheme", scheme, "--svd-epochs", str(study.schedule.svd), "--orthogonality", f"{orthogonal:g}"),
        *("--sparsity", kind, "--sparsity-strength", f"{strength:g}"),
    )


def _at(study: Study, method: str, share: float, options: tuple[str, ...]) -> Row:
    return study.compress(f"{method.replace(' ', '-')}-{share:g}-{study.schedule.epochs}", "--macs", f"{share:g}", *options)


def _epochs(study: Study, fine_tune: int) -> tuple[str, ...]:
    return ("--svd-epochs", str(study.schedule.epochs - fine_tune), "--fine-tune-epochs", str(fine_tune))


METHODS: dict[str, Callable[[Study], tuple[str, ...]]] = {
    "paper": lambda study: (*_epochs(study, study.schedule.fine_tune), *PAPER),
    "at once": lambda study: (*_epochs(study, study.schedule.epochs), "--distill", "0.5"),
    "falling": lambda study: (*_epochs(study, 0), "--falling-ranks", "--sparsity", "none", "--distill", "0.5"),
    "ours": lambda study: (*_epochs(study, study.schedule.fine_tune), *OURS),
}
PARTS = {
    "weighting": ("--no-weighting",),
    "global budget": ("--rule", "threshold"),
    "reconstruction": ("--no-reconstruct",),
    "BatchNorm": ("--batchnorm-images", "0"),
    "distillation": ("--distill", "0"),
    "cosine": ("--schedule", "step"),
    "λ control": ("--sparsity-strength", "0.03"),
    "scaled gradients": ("--no-scale-gradients",),
}
