"""``make fuzz``: mutate what readers read, for as long as asked; or replay an input that failed.

python -m tests.fuzz [--reader NAME]... [--seconds N | --executions N] [--seed N]
python -m tests.fuzz --replay .fuzz/failures/READER/HASH
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path

from tests.fuzz.harness import Outcome, fuzz, replay
from tests.fuzz.readers import READERS

HOME = Path(__file__).parents[2] / ".fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="Only this reader; repeatable.")
    parser.add_argument("--seconds", type=float, help="How long, for all readers together. [default: 60]")
    parser.add_argument("--executions", type=int, help="How many, for each reader.")
    parser.add_argument("--seed", type=int, help="What mutations follow. [default: another one each time, which is printed]")
    parser.add_argument("--replay", type=Path, help="Read one kept input again, in this process, with a traceback.")
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    names = options.reader or list(READERS)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    seconds = None if options.executions is not None else (options.seconds or 60.0) / len(names)
    print(f"seed {seed}", flush=True)
    outcomes = {}
    for name in names:
        outcomes[name] = fuzz(READERS[name], seed, HOME, executions=options.executions, seconds=seconds)
        _say(name, outcomes[name], seed)
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


def _say(name: str, outcome: Outcome, seed: int) -> None:
    rate = outcome.executions / outcome.seconds if outcome.seconds else 0.0
    counts = f"{outcome.executions} executions, {outcome.read} read, {outcome.refused} refused, {rate:.0f}/s"
    print(f"{name}: {counts}, {len(outcome.failures)} ways to fail", flush=True)
    for what, (count, path) in outcome.failures.items():
        print(f"  {count} × {what}: make fuzz REPLAY={path}", flush=True)
    HOME.mkdir(exist_ok=True)
    with (HOME / "log.jsonl").open("a", encoding="utf-8") as log:
        failures = {what: count for what, (count, _) in outcome.failures.items()}
        figures = {"read": outcome.read, "refused": outcome.refused, "seconds": round(outcome.seconds, 1)}
        line = {"reader": name, "seed": seed, "executions": outcome.executions, **figures, "failures": failures}
        log.write(json.dumps(line) + "\n")


def _replay(path: Path) -> int:
    reader = READERS.get(path.parent.name)
    if reader is None:
        print(f"{path} is in no reader's folder: expected .../READER/HASH, one of {', '.join(READERS)}", file=sys.stderr)
        return 2
    failure = replay(reader, path.read_bytes())
    print(failure or "nothing fails")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
