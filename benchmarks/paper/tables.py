"""The rows of every table: which runs of `lrexport` it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.paper.study import Study
from benchmarks.paper.training import start_network, tested, trained

# Yang et al. 2020 as they prune: one e for all layers (equation 4), nothing weighted, nothing repaired but by fine-tuning.
NO_REPAIR = ("--calibration-images", "0", "--batchnorm-images", "0")  # without images biases are not corrected either
PAPER_RULE = ("--rule", "threshold", "--no-weighting", *NO_REPAIR)
# And as they train: their optimiser, and their λ_s for ResNet-20 with spatial.
PAPER = (
    *("--scheme", "spatial", "--optimizer", "adam", "--lr", "0.001", "--weight-decay", "0", "--sparsity-strength", "0.1"),
    *PAPER_RULE,
)
# Everything of ours; each is switched off in turn by the ablation.
DISTILL = ("--distill", "0.5")
OURS = ("--sparsity-strength", "auto", *DISTILL)
SHARES = (0.5, 0.303, 0.25)  # of the MACs: 2, 3.3 and 4 times fewer
GOALS = SHARES[1:]
LATENCY = 0.6  # of the dense network's, measured: of ResNet-20 the latency that half its MACs take
SCHEMES = ("channel", "spatial")
# λ_s: the authors' own for ResNet-20 (their code and appendix) are 0.07 to 0.3 at 164 epochs.
STRENGTHS = {"hoyer": (0.03, 0.1), "l1": (0.003, 0.01)}

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
            study.train(name, *_svd(study, scheme, kind, strength, 1), *study.schedule.whole)
            for share in SHARES:
                fine = ("--fine-tune-epochs", str(study.schedule.fine_tune))
                row = study.go_on(f"{name}-{share:g}", name, "--macs", f"{share:g}", *PAPER_RULE, *fine)
                if share == SHARES[0]:  # they share their SVD training
                    row["hours"] += study.hours(name)
                yield row | {"scheme": scheme, "sparsity": kind, "strength": strength, "share": share, "epochs": epochs}


def recipe(study: Study) -> Iterator[Row]:
    """Ours against the paper's, pruning at once and ranks that fall, at equal epochs and MACs, or measured latency."""
    epochs = study.schedule.epochs
    yield study.dense(epochs) | {"method": "dense"}
    yield _dense_to_the_end(study) | {"method": "dense, last epoch"}
    for goal in (*(("macs", share) for share in GOALS), ("latency", LATENCY)):
        for method, options in METHODS.items():
            if goal[0] == "macs" or method in AT_LATENCY:
                yield _at(study, method, *goal, options(study)) | {"method": method, "goal": list(goal)}


def ablation(study: Study) -> Iterator[Row]:
    """Ours at 3.3 times fewer MACs with each of its parts switched off in turn."""
    share, schedule = GOALS[0], study.schedule
    yield study.dense(schedule.epochs) | {"without": "dense"}
    whole = _at(study, "ours", "macs", share, METHODS["ours"](study))
    yield whole | {"without": "nothing"}
    for part, options in PRUNING_PARTS.items():
        name = f"{_named(f'ours without {part}', share)}-{schedule.epochs}"
        fine = ("--fine-tune-epochs", str(schedule.fine_tune))
        row = study.go_on(name, whole["name"], "--macs", f"{share:g}", *DISTILL, *fine, *options)
        yield row | {"without": part, "epochs": schedule.epochs}
    for part, options in TRAINING_PARTS.items():
        yield _at(study, f"ours without {part}", "macs", share, (*METHODS["ours"](study), *options)) | {"without": part}
    for method in ("at once", "falling"):
        yield _at(study, method, "macs", share, METHODS[method](study)) | {"without": WITHOUT[method]}


def _svd(study: Study, scheme: str, kind: str, strength: float, orthogonal: float) -> tuple[str, ...]:
    return (
        *("--scheme", scheme, "--svd-epochs", str(study.schedule.svd), "--orthogonality", f"{orthogonal:g}"),
        *("--sparsity", kind, "--sparsity-strength", f"{strength:g}"),
    )


def _at(study: Study, method: str, goal: str, share: float, options: tuple[str, ...]) -> Row:
    return study.compress(f"{_named(method, share, goal)}-{study.schedule.epochs}", f"--{goal}", f"{share:g}", *options)


def _named(method: str, share: float, goal: str = "macs") -> str:
    return f"{method.replace(' ', '-')}-{'' if goal == 'macs' else goal + '-'}{share:g}"


def _dense_to_the_end(study: Study) -> Row:
    """The dense network's last epoch, whatever held-out images say, which the published weights have seen."""
    epochs = study.schedule.epochs
    like = study.record(study.dense(epochs)["name"])
    name, make = f"dense-{epochs}-last", partial(start_network, study)
    trained(study, name, make, like, lr=like.config["lr"], keep_best=False)
    return tested(study, name, make, like)


def _epochs(study: Study, fine_tune: int) -> tuple[str, ...]:
    return ("--svd-epochs", str(study.schedule.epochs - fine_tune), "--fine-tune-epochs", str(fine_tune))


METHODS: dict[str, Callable[[Study], tuple[str, ...]]] = {
    "paper": lambda study: (*_epochs(study, study.schedule.fine_tune), *PAPER),
    "at once": lambda study: (*_epochs(study, study.schedule.epochs), *DISTILL),
    "falling": lambda study: (*_epochs(study, 0), "--falling-ranks", "--sparsity", "none", *DISTILL),
    "ours": lambda study: (*_epochs(study, study.schedule.fine_tune), *OURS),
}
AT_LATENCY = ("paper", "at once", "ours")
# Of pruning: SVD training is that of the whole recipe, and done once for all.
PRUNING_PARTS = {
    "weighting": ("--no-weighting",),
    "global budget": ("--rule", "threshold"),
    "reconstruction": ("--no-reconstruct",),
    "BatchNorm": ("--batchnorm-images", "0"),
    "weighting and every repair": NO_REPAIR,
}
TRAINING_PARTS = {
    "distillation": ("--distill", "0"),
    "cosine": ("--schedule", "step"),
    "λ control": ("--sparsity-strength", "0.03"),
    "scaled gradients": ("--no-scale-gradients",),
}
# The other two of lrexport's own methods, by what they do without.
WITHOUT = {"at once": "SVD training", "falling": "sparsity, but with falling ranks"}
