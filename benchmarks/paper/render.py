"""Rows as Markdown tables and PNG plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.latency import measured
from benchmarks.paper.study import Row, Study

Columns = dict[str, Callable[[Row], str]]
TITLES = {
    "table1": "SVD training at full rank, with and without orthogonality",
    "table3-channel": "Channel scheme: kinds of sparsity and strengths, by the paper's rule",
    "table3-spatial": "Spatial scheme: kinds of sparsity and strengths, by the paper's rule",
    "recipe": "The paper's method and lrexport's",
    "goals": "lrexport's methods against the dense network of equal epochs",
    "ablation": "SVD training steered to 3.3 times fewer MACs, each part switched off in turn",
    "table2": "Pruned architecture: weights kept, and drawn anew",
    "others": "What else a user would take",
}
_GOALS = {"macs": "MACs", "latency": "latency"}
_SPARSITY: Columns = {
    "sparsity": lambda row: row["sparsity"],
    "λ_s": lambda row: _given(row, "strength"),
}
_METHODS: Columns = {
    "method": lambda row: row["method"],
    "goal": lambda row: f"{row['goal'][1]:g} of the {_GOALS[row['goal'][0]]}" if "goal" in row else "–",
}
OWN: dict[str, Columns] = {
    "table1": {
        "scheme": lambda row: row["scheme"],
        "λ_o": lambda row: _given(row, "orthogonality"),
        "half the MACs, s cut off as trained": lambda row: _percent(row.get("half_as_trained_top1")),
        "half the MACs, decomposed anew": lambda row: _percent(row.get("half_top1")),
    },
    **dict.fromkeys(("table3-channel", "table3-spatial"), _SPARSITY),
    **dict.fromkeys(("recipe", "goals"), _METHODS),
    "ablation": {"without": lambda row: row["without"]},
    "table2": {"weights": lambda row: row["weights"]},
    "others": {"tool": lambda row: row["tool"]},
}


def markdown(table: str, study: Study) -> str:
    """One table of one study, from its JSON."""
    rows = study.kept(table)
    times = measured(study.label)
    times = {row["name"]: times[row["name"]] for row in rows if row["name"] in times}
    columns = {**OWN[table], **_common(rows, times)}
    command = f"python -m benchmarks.paper {table} --model {study.model} --schedule {study.schedule.name}"
    command += f" --times {study.times} --seed {study.seed} --data {study.kind}:CIFAR --weights-dir WEIGHTS"
    lines = [f"## {TITLES[table]}: {study.label}", "", f"    {command}", "", _line(columns), _rule(columns, len(OWN[table]))]
    lines += [_line(_cells(row, columns)) for row in rows]
    notes = _notes(rows, study, times)
    if not study.is_done(table):
        notes = ["Unfinished: these are the rows made so far, and the command goes on with the others.", *notes]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _cells(row: Row, columns: Columns) -> list[str]:
    """A row's cells; the dense ones have their name first, whatever the table is about."""
    first, *others = columns.values()
    return [row.get("reference") or first(row), *(show(row) for show in others)]


def _notes(rows: Sequence[Row], study: Study, times: dict[str, Any]) -> list[str]:
    """What the figures mean and how they were made."""
    schedule, images = study.schedule, max(row["n"] for row in rows)
    start = "the published weights" if schedule.weights else "random weights"
    notes = [
        f"{'; '.join(sorted({row['machine'] for row in rows}))}.",
        "Basic blocks with option-A shortcuts; MACs include the fully connected layer.",
        f"{schedule.start} dense epochs from {start} come before every row that is not drawn anew, then SVD training for "
        f"{schedule.svd} and fine-tuning for {schedule.fine_tune}, or as many of one of them. SVD training in tables 1 and "
        f"3 is at learning rate {schedule.whole_lr:g}. The JSON has the command of every run.",
        f"Seed {study.seed} alone. One standard deviation of top-1 over {images:,} images is 0.3 points at 88 %. "
        "“Against dense” is against the better of the dense rows.",
    ]
    as_pruned = [row["name"] for row in rows if row["fine_tune_epochs"] and row["heldout_top1"] == _pruned(row)]
    if as_pruned:
        notes.append(f"No epoch of fine-tuning was better on held-out images; these are as pruned: {', '.join(as_pruned)}.")
    if schedule.weights:
        notes.append(
            "The published weights have seen the images that are held out here, in another encoding: held-out figures are "
            "too high, and choices by them (epochs, repairs, other tools' learning rates) lean towards what is near it."
        )
    measurements: dict[tuple[str, str, int, int], list[float]] = {}
    for each in times.values():
        kind = each["date"], each["machine"], each["rounds"], each["networks"]
        measurements.setdefault(kind, []).append(each["dense_p50"])
    for (date, machine, rounds, networks), dense in sorted(measurements.items()):
        took = " to ".join(dict.fromkeys(f"{milliseconds:.2f}" for milliseconds in (min(dense), max(dense))))
        notes.append(
            f"Latency, {date}: {machine}; one thread, {networks} networks interleaved in {rounds} rounds; quartiles in "
            f"brackets. The dense network took {took} ms. Ratios of other days, machines or numbers of networks are not "
            "comparable."
        )
    return notes


def plot(study: Study, path: Path) -> None:
    """Figures 2 and 3, accuracy against MACs by kind of sparsity, a scheme each; and the rows of recipe.

    Raises SystemExit where there is neither table.
    """
    panels = {
        "channel, the paper's rule": ("table3-channel", _curve),
        "spatial, the paper's rule": ("table3-spatial", _curve),
        "the paper's method and lrexport's": ("recipe", lambda row: row["method"]),
    }
    held = {table: study.kept(table) for table, _ in panels.values()}
    shown = {
        title: (held[table], rows, curve)
        for title, (table, curve) in panels.items()
        if (rows := [row for row in held[table] if "reference" not in row and row["goal"][0] == "macs"])
    }
    if not shown:
        raise SystemExit(f"there is nothing to plot of {study.label}: make {', '.join(list(held)[:-1])} or recipe first")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(4.8 * len(shown), 4.4), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, (every, rows, curve)) in zip(axes[0], shown.items(), strict=True):
        best = max((row for row in every if "reference" in row), key=lambda row: float(row["top1"]))
        axis.axhline(
            100 * best["top1"], color="0.4", linestyle="--", linewidth=1, label=f"dense ({best['macs'] / 1e6:.1f} M MACs)"
        )
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            lines.setdefault(curve(row), []).append((row["macs"] / 1e6, 100 * row["top1"]))
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
        axis.set_xlabel("MACs (millions, FC included)")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("top-1 on the test images, %")
    figure.suptitle(f"{study.label}, data {study.kind}")
    figure.savefig(path, dpi=120)


def _curve(row: Row) -> str:
    return "no sparsity" if row["sparsity"] == "none" else f"{row['sparsity']}, λ_s {row['strength']:g}"


def _common(rows: Sequence[Row], times: dict[str, Any]) -> Columns:
    dense = max((float(row["top1"]) for row in rows if "reference" in row), default=None)

    def against(row: Row) -> str:
        return "" if dense is None else f"{100 * (row['top1'] - dense):+.2f}"

    def latency(row: Row) -> str:
        if "reference" in row:
            return "1"
        found = times.get(row["name"])
        if found is None:
            return "–"
        low, high = found["ratio_iqr"]
        return f"{found['ratio']:.2f} ({low:.2f}–{high:.2f})" + (", inconclusive" if found["warning"] else "")

    return {
        "learning rate": _learning_rate,
        "distilled": lambda row: "yes" if row["distill"] else "no",
        "MACs": lambda row: f"{row['macs'] / 1e6:.2f} M",
        "dense ÷ MACs": lambda row: f"{row['dense_macs'] / row['macs']:.2f}",
        **({"latency, of dense": latency} if times else {}),
        "parameters": lambda row: f"{row['params'] / 1e3:.0f} k",
        "right after pruning, held-out": lambda row: _percent(_pruned(row)),
        "top-1": lambda row: _percent(row["top1"]),
        "against dense": against,
        "epochs": lambda row: str(row["epochs"]),
        "hours": lambda row: f"{row['hours']:.2f}",
    }


def _pruned(row: Row) -> float | None:
    """Repaired, where there was a repair."""
    found = [value for key, value in row["pruned"].items() if key.startswith("heldout_top1") and not key.endswith("before")]
    return max(found, default=None)


def _learning_rate(row: Row) -> str:
    return _given(row, "lr") + (f", {row['optimizer'].capitalize()}" if row["optimizer"] != "sgd" else "")


def _given(row: Row, key: str) -> str:
    return "–" if row.get(key) is None else f"{row[key]:g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _line(cells: Sequence[str] | Columns) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: Columns, left: int) -> str:
    return "|" + "|".join("---" if number < left else "---:" for number in range(len(columns))) + "|"
