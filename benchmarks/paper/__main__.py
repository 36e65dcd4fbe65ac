"""The tables of Yang et al. 2020 by lrexport, and lrexport's own recipe beside them.

    python -m benchmarks.paper TABLE --data folder:DIR --weights-dir DIR [--model resnet20] [--schedule short] [--times 2]

TABLE is table1, table2, table3-channel, table3-spatial, recipe, goals, ablation, others. Runs lie under --work; a command
that was stopped writes the rows that it made and goes on where it was, and one that is finished only writes its table again.
Every accuracy is compared with the dense network trained from the same start for as many epochs; all choices are made on
held-out training images. `latency` times the networks of all tables that are there, on a machine that should do nothing
else, and writes the tables again; `plot` draws them.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks.paper import elsewhere, latency, tables
from benchmarks.paper.render import markdown, plot
from benchmarks.paper.schedules import SCHEDULES
from benchmarks.paper.study import OUT, Study, result_file

TABLES = {
    "table1": tables.orthogonality,
    "table2": elsewhere.from_scratch,
    **{f"table3-{scheme}": partial(tables.sparsity, scheme=scheme) for scheme in tables.SCHEMES},
    "recipe": tables.recipe,
    "goals": tables.goals,
    "ablation": tables.ablation,
    "others": elsewhere.other_tools,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=(*TABLES, "latency", "plot"))
    parser.add_argument("--data", required=True, help="folder:DIR, or cifar10[:ROOT] for the original images")
    parser.add_argument("--weights-dir", type=Path, help="holds cifar10_resnet20.safetensors and so on")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--schedule", choices=SCHEDULES, default="short")
    parser.add_argument("--times", type=int, default=1, help="Multiplies the epochs of SVD training and fine-tuning.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("paper-runs"))
    options = parser.parse_args()
    if SCHEDULES[options.schedule].weights and options.weights_dir is None:
        parser.error("--schedule short starts from published weights: give --weights-dir")

    study = Study.of(options)
    if options.table == "plot":
        plot(study, OUT / f"{study.label}.png")
        return
    if options.table == "latency":
        latency.measure(study)
        for table in TABLES:
            _write(table, study)
        return
    try:
        rows = []
        for row in TABLES[options.table](study):
            rows.append(row)
            study.keep(options.table, rows, done=False)
        study.keep(options.table, rows, done=True)
    finally:  # of a command that was stopped, the rows that it made
        _write(options.table, study)


def _write(table: str, study: Study) -> None:
    """A table's Markdown, from its rows as they were kept, if any were."""
    if not study.kept(table):
        return
    text = markdown(table, study)
    result_file(table, study.label, ".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
