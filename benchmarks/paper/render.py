"""Rows as Markdown tables and PNG plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.latency import latencies
from benchmarks.paper.study import OUT

Row = dict[str, Any]
_GOALS = {"macs": "MACs", "latency": "latency"}
SEEN = (
    "The published weights have seen the images that are held out here, in another encoding: held-out figures are too high, "
    "and where the dense network's best epoch by them is its start, that is the row."
)
# Of each table: its title, the key by which a row is the dense network's, and its own columns.
TITLES = {
    "table1": ("SVD training at full rank, with and without orthogonality", "scheme"),
    "table3": ("Schemes, kinds of sparsity and strengths, by the paper's rule", "scheme"),
    "recipe": ("Ours, the paper's, and pruning at once", "method"),
    "ablation": ("Ours at 3.3 times fewer MACs, each part switched off in turn", "without"),
    "table2": ("Pruned architectures: weights kept, and drawn anew", "weights"),
    "others": ("What else a user would take", "tool"),
}
OWN: dict[str, dict[str, Callable[[Row], str]]] = {
    "table1": {
        "scheme": lambda row: row["scheme"],
        "λ_o": lambda row: _given(row, "orthogonality"),
        "pruned to half the MACs, not fine-tuned": lambda row: _percent(row.get("half_top1")),
    },
    "table3": {
        "scheme": lambda row: row["scheme"],
        "sparsity": lambda row: row.get("sparsity", "–"),
        "λ_s": lambda row: _given(row, "strength"),
    },
    "recipe": {
        "method": lambda row: row["method"],
        "goal": lambda row: f"{row['goal'][1]:g} of the {_GOALS[row['goal'][0]]}" if "goal" in row else "–",
    },
    "ablation": {"without": lambda row: row["without"]},
    "table2": {"weights": lambda row: row["weights"]},
    "others": {
        "tool": lambda row: row["tool"],
        "learning rate": lambda row: _given(row, "lr"),
        "distillation": lambda row: "–" if row.get("distill") is None else ("yes" if row["distill"] else "no"),
    },
}


def markdown(table: str, label: str, command: str) -> str:
    """One table of one study, from its JSON."""
    held = json.loads((OUT / f"{table}-{label}.json").read_text(encoding="utf-8"))
    title, key = TITLES[table]
    rows: list[Row] = held["rows"]
    dense = next((row for row in rows if row.get(key) == "dense"), None)
    columns = {**OWN[table], **_common(dense, latencies(label))}
    lines = [f"## {title}: {label}", "", f"    {command}", "", _line(columns), _rule(columns, len(OWN[table]))]
    lines += [_line([show(row) for show in columns.values()]) for row in rows]
    hours = sum(row["hours"] for row in {row["name"]: row for row in rows}.values())
    notes = [f"{rows[0]['machine']}. {hours:.1f} hours of training in these rows."]
    if rows[0]["schedule"] == "short":
        notes.append(SEEN)
    return "\n".join([*lines, "", *notes, ""])


def plot(label: str, path: Path) -> None:
    """Figures 2 and 3: accuracy against MACs by scheme and sparsity, of table3's rows; ours and the paper's, of recipe's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.4), sharey=True, layout="constrained")
    panels = [("channel", "table3"), ("spatial", "table3"), ("spatial", "recipe")]
    for axis, (scheme, table) in zip(axes, panels, strict=True):
        found = OUT / f"{table}-{label}.json"
        if not found.is_file():
            axis.set_visible(False)
            continue
        rows = json.loads(found.read_text(encoding="utf-8"))["rows"]
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            name = row.get("method") or (row["scheme"] if row["scheme"] == "dense" else _curve(row))
            if name != "dense" and table == "table3" and row["scheme"] != scheme:
                continue
            lines.setdefault(name, []).append((row["macs"] / 1e6, 100 * row["top1"]))
        for name, points in lines.items():
            if name == "dense":
                macs, top1 = points[0]
                axis.axhline(top1, color="0.4", linestyle="--", linewidth=1, label=f"dense ({macs:.1f} M MACs)")
                continue
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
        axis.set_xlabel("MACs (millions, FC included)")
        axis.set_title("ours and the paper's, spatial" if table == "recipe" else f"{scheme}, the paper's rule")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("top-1 on the test images, %")
    figure.suptitle(f"{label}, CIFAR-10 (JPEG)")
    figure.savefig(path, dpi=120)


def _curve(row: Row) -> str:
    return "no sparsity" if row["sparsity"] == "none" else f"{row['sparsity']}, λ_s {row['strength']:g}"


def _common(dense: Row | None, times: dict[str, Any]) -> dict[str, Callable[[Row], str]]:
    def against(row: Row) -> str:
        return "" if dense is None else f"{100 * (row['top1'] - dense['top1']):+.2f}"

    def latency(row: Row) -> str:
        found = times.get(row["name"])
        if found is None:
            return "1.00" if row["macs"] == row["dense_macs"] else "–"
        return f"{found['ratio']:.2f}"

    return {
        "MACs": lambda row: f"{row['macs'] / 1e6:.2f} M",
        "dense ÷ MACs": lambda row: f"{row['dense_macs'] / row['macs']:.2f}",
        **({"latency, of dense": latency} if times else {}),
        "parameters": lambda row: f"{row['params'] / 1e3:.0f} k",
        "right after pruning, held-out": lambda row: _percent(_pruned(row)),
        "top-1": lambda row: _percent(row["top1"]),
        "against dense": against,
        "epochs": lambda row: str(row["epochs"]),
    }


def _pruned(row: Row) -> float | None:
    """Repaired, where there was a repair."""
    found = [value for key, value in row["pruned"].items() if key.startswith("heldout_top1") and not key.endswith("before")]
    return max(found, default=None)


def _given(row: Row, key: str) -> str:
    return "–" if row.get(key) is None else f"{row[key]:g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _line(cells: Sequence[str] | dict[str, Any]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: dict[str, Any], left: int) -> str:
    return "|" + "|".join("---" if number < left else "---:" for number in range(len(columns))) + "|"
