"""A module whose child process dies, or never ends, as the fork server's children may."""

from __future__ import annotations

import os
import signal
import sys
import time


def main() -> None:
    what = sys.argv[-1]
    if what in ("crash", "crash after words"):
        if what == "crash after words":
            print("half an answer", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "sleep":
        print(os.getpid(), flush=True)
        time.sleep(600)
    print(os.getpid(), os.getcwd())


if __name__ == "__main__":
    main()
