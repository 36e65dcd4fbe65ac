"""The rows of the tables that `lrexport` alone makes: which of its runs they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.paper.study import Row, Study
from benchmarks.paper.training import dense, dense_name, truncated_as_trained
from lrexport.artifacts.run_files import MODEL
from lrexport.plan import Scheme

# Yang et al. 2020 as they prune: one e for all layers (equation 4), nothing weighted, nothing repaired but by fine-tuning.
NO_REPAIR = ("--calibration-images", "0", "--batchnorm-images", "0")  # without images biases are not corrected either
PAPER_RULE = ("--rule", "threshold", "--no-weighting", *NO_REPAIR)
# And as they train ResNet-20 in the spatial scheme; SGD stands in for their optimiser where that is what is asked.
ADAM = ("--optimizer", "adam", "--lr", "0.001", "--weight-decay", "0")
PAPER = ("--scheme", "spatial", "--sparsity-strength", "0.1", *PAPER_RULE)
# lrexport's own training, whatever the schedule's is.
OWN = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0001, "schedule": "cosine"}
SGD = tuple(word for option, value in OWN.items() for word in (f"--{option.replace('_', '-')}", f"{value}"))
TAUGHT = 0.5  # share of distillation in the loss
DISTILL = ("--distill", f"{TAUGHT:g}")
SHARES = (0.5, 0.303, 0.25)  # of the MACs: 2, 3.3 and 4 times fewer
GOALS = SHARES[1:]
LATENCY = 0.7  # of the dense network's: about what the paper's ResNet-20 takes at 3.3 times fewer MACs (0.72, measured)
GOAL_OF = {"resnet56": (0.266,)}  # 3.75 times fewer
LARGER = {"resnet20": "resnet56"}  # a network to learn from
SCHEMES: tuple[Scheme, ...] = ("channel", "spatial")


def orthogonality(study: Study) -> Iterator[Row]:
    """Table 1: the SVD-trained network at full rank, with and without orthogonality, and the dense one of equal epochs."""
    epochs = study.schedule.svd
    yield from dense(study, epochs)
    for scheme in SCHEMES:
        for strength in (1, 0):
            name = f"svd-{scheme}-none-{strength}-{epochs}"
            study.train(name, *_svd(study, scheme, "none", 0.0, strength))
            row = study.go_on(f"{name}-whole", name, "--energy", "0", *PAPER_RULE, "--fine-tune-epochs", "0")
            pruned = study.go_on(f"{name}-half", name, "--macs", "0.5", *PAPER_RULE, "--fine-tune-epochs", "0")
            as_trained = truncated_as_trained(study, name, study.record(pruned["name"]).plan)
            halves = {"half_top1": pruned["top1"], "half_as_trained_top1": as_trained}
            own = {**halves, "epochs": epochs, "hours": study.hours(name), "lr": study.schedule.whole_lr}
            yield row | {"scheme": scheme, "orthogonality": strength, **own}


def sparsity(study: Study, scheme: Scheme) -> Iterator[Row]:
    """Figures 2 and 3, table 3: accuracy against MACs by kind of sparsity and its strength, by the paper's rule."""
    schedule = study.schedule
    yield from dense(study, schedule.epochs)
    kinds = [("none", 0.0), *((kind, each) for kind, those in study.strengths.items() for each in those)]
    for kind, strength in kinds:
        # Without sparsity it is table 1's, with orthogonality.
        name = f"svd-{scheme}-{kind}-{f'{strength:g}' if strength else 1}-{schedule.svd}"
        study.train(name, *_svd(study, scheme, kind, strength, 1))
        for share in SHARES:
            fine = ("--fine-tune-epochs", str(schedule.fine_tune))
            row = study.go_on(f"{name}-{share:g}", name, "--macs", f"{share:g}", *PAPER_RULE, *fine)
            hours = row["hours"] + study.hours(name)
            own = {"scheme": scheme, "sparsity": kind, "strength": strength, "hours": hours}
            yield row | own | {"epochs": schedule.epochs, "goal": ["macs", share]}


def recipe(study: Study) -> Iterator[Row]:
    """The paper's method and lrexport's, at equal epochs and equal MACs, or at the paper's latency."""
    yield from dense(study, study.schedule.epochs)
    goals = [*(("macs", share) for share in GOALS), ("latency", LATENCY)]
    for goal, share in goals:
        for method in ("paper", "at once", "steered", "falling") if goal == "macs" else ("at once",):
            yield at(study, method, share, goal=goal) | {"method": method}


def goals(study: Study) -> Iterator[Row]:
    """How near lrexport's own methods come to the dense network of equal epochs: the goals, at any length of training."""
    yield from dense(study, study.schedule.epochs)
    shares = GOAL_OF.get(study.model, GOALS)
    for share in shares:
        yield at(study, "at once", share) | {"method": "at once"}
    teacher, options = _better_teacher(study)
    method = f"at once, taught by {teacher}"
    for share in shares:
        yield at(study, method, share, options=(*METHODS["at once"], *options)) | {"method": method}


def _better_teacher(study: Study) -> tuple[str, tuple[str, ...]]:
    """A network to learn from, and how `lrexport` is told: a larger one, or the dense network after its last epoch."""
    if study.model in LARGER:
        larger = replace(study, model=LARGER[study.model])
        larger.start()
        return larger.model, ("--teacher", str(larger.work / "start"))
    weights = study.work / dense_name(study.schedule.epochs) / MODEL
    return "dense, trained on", ("--teacher", study.model, "--teacher-weights", str(weights))


def ablation(study: Study) -> Iterator[Row]:
    """SVD training to 3.3 times fewer MACs with each of its parts switched off in turn, and all the way to the paper's."""
    share, schedule = GOALS[0], study.schedule
    yield from dense(study, schedule.epochs)
    whole = at(study, "steered", share)
    yield whole | {"without": "nothing"}
    for part, options in PRUNING_PARTS.items():
        name = named(f"steered without {part}", share, schedule.epochs)
        fine = ("--fine-tune-epochs", str(schedule.fine_tune))
        row = study.go_on(name, whole["name"], "--macs", f"{share:g}", *SGD, *DISTILL, *fine, *options)
        hours = study.hours(whole["name"], "svd") + row["hours"]
        yield row | {"without": part, "epochs": schedule.epochs, "hours": hours}
    for part, options in TRAINING_PARTS.items():
        yield at(study, f"steered without {part}", share, options=(*METHODS["steered"], *options)) | {"without": part}
    for method, without in WITHOUT.items():
        yield at(study, method, share) | {"without": without}


def at(study: Study, method: str, share: float, goal: str = "macs", options: tuple[str, ...] | None = None) -> Row:
    """A run of a method, by default of METHODS, to a share of the dense network's MACs or latency."""
    epochs, svd = study.schedule.epochs, study.schedule.epochs - _fine_tuning(method, study)
    split = ("--svd-epochs", str(svd), "--fine-tune-epochs", str(epochs - svd))
    words = (f"--{goal}", f"{share:g}", *split, *(METHODS[method] if options is None else options))
    return study.compress(named(method, share, epochs, goal), *words) | {"goal": [goal, share]}


def named(method: str, share: float, epochs: int, goal: str = "macs") -> str:
    """The folder of such a run."""
    words = method.replace(",", "").replace(" ", "-")
    return f"{words}-{'' if goal == 'macs' else goal + '-'}{share:g}-{epochs}"


def _fine_tuning(method: str, study: Study) -> int:
    """Epochs of fine-tuning; the others are SVD training."""
    if method.startswith("at once"):
        return study.schedule.epochs
    return 0 if method == "falling" else study.schedule.fine_tune


def _svd(study: Study, scheme: str, kind: str, strength: float, orthogonal: float) -> tuple[str, ...]:
    return (
        *("--scheme", scheme, "--svd-epochs", str(study.schedule.svd), "--orthogonality", f"{orthogonal:g}"),
        *("--sparsity", kind, "--sparsity-strength", f"{strength:g}", *study.schedule.whole),
    )


METHODS: dict[str, tuple[str, ...]] = {
    "paper": (*ADAM, *PAPER),
    "paper, by SGD": (*SGD, *PAPER),
    "at once": (*SGD, *DISTILL),
    "at once, no distillation": SGD,
    "falling": (*SGD, "--falling-ranks", "--sparsity", "none", *DISTILL),
    "steered": (*SGD, "--sparsity-strength", "auto", *DISTILL),
}
# Of pruning: SVD training is that of the whole recipe, and done once for all.
PRUNING_PARTS = {
    "weighting": ("--no-weighting",),
    "global budget": ("--rule", "threshold"),
    "refitted weights": ("--no-reconstruct",),
    "refitted weights and BatchNorm re-estimated": ("--no-reconstruct", "--batchnorm-images", "0"),
    "weighting and every repair": NO_REPAIR,
}
TRAINING_PARTS = {
    "distillation": ("--distill", "0"),
    "cosine": ("--schedule", "step"),
    "λ control": ("--sparsity-strength", "0.03"),
    "scaled gradients": ("--no-scale-gradients",),
    "scaled gradients, learning rate 0.03": ("--no-scale-gradients", "--lr", "0.03"),
}
# Other methods by what they do without.
WITHOUT = {
    "falling": "sparsity; falling ranks instead",
    "at once": "SVD training",
    "at once, no distillation": "SVD training and distillation",
    "paper, by SGD": "all but scaled gradients and cosine",
    "paper": "all but cosine: the paper's, by Adam",
}
