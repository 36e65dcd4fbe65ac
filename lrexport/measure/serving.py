"""Runs inferences of one network in a runtime for the process that asks. Self-contained, as the runner.

    python -m lrexport.measure.serving JOB.json [PARENT]

First {"ready": version}, then for every line of stdin, {"in": path, "out": path, "portion": n}, the inputs are read from one
.npz, run in portions of n samples (null: at once), the outputs written to another, and {"done": true} or {"error": …} is the
answer.
"""

# The runtime's Python may be older than lrexport requires.
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from lrexport.confinement import die_with_parent
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import JsonObject, Ports
from lrexport.measure.watch import Watch


def main(path: str, answers: int) -> int:
    """Serve the network of the job in ``path``; answers go to the descriptor ``answers``. Returns the exit status."""
    import numpy

    def say(value: JsonObject) -> None:
        os.write(answers, json.dumps(value).encode() + b"\n")

    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    watch = Watch(job["seconds"], lambda model, reason: say({"error": reason}))
    runtime, ports = base.runtime(job["runtime"]), Ports.from_json(job["ports"])
    names = [port.name for port in ports.inputs]
    try:
        watch.begin_loading("", job["files"][-1])
        loaded = runtime.load(job["files"], job["threads"], ports)
        watch.end()
        say({"ready": runtime.version()})
        for line in sys.stdin:
            asked = json.loads(line)
            watch.begin("", "a run")
            with numpy.load(asked["in"], allow_pickle=False) as arrays:
                feed = {name: arrays[f"in{number}"] for number, name in enumerate(names)}
            parts = [loaded.run(part) for part in _portions(feed, asked["portion"])]
            watch.end()
            made = [[part[port.name] for part in parts] for port in ports.outputs]
            joined: JsonObject = {
                f"out{number}": numpy.concatenate(part) for number, part in enumerate(made) if len(part) > 1
            }
            joined.update({f"out{number}": part[0] for number, part in enumerate(made) if len(part) == 1})
            numpy.savez(asked["out"], **joined)
            say({"done": True})
    except Exception as error:  # runtimes raise anything
        say({"error": str(error) or type(error).__name__})
        return 1
    return 0


def _portions(feed: JsonObject, size: int | None) -> Iterator[JsonObject]:
    count = len(next(iter(feed.values()))) if size else 0
    if not size:
        yield feed
    for start in range(0, count, size or 1):
        yield {name: array[start : start + (size or 1)] for name, array in feed.items()}


if __name__ == "__main__":
    die_with_parent(int(sys.argv[-1]) if sys.argv[-1].isdigit() else None)
    kept = os.dup(1)
    os.dup2(2, 1)  # runtimes print
    sys.exit(main(sys.argv[1], kept))
