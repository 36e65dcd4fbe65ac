"""A process that imports onnx once and forks a child for every foreign file, so that no child pays for the import.

    python -m lrexport.artifacts.fork_server MODULE…

imports the modules and serves on the socket that is its standard input: each byte there comes with the socket of a new
child. The child reads a line of JSON from it, its arguments beginning with a module, and calls the module's ``main`` with
them in ``sys.argv``, as ``python -m`` would. What it prints goes back through the socket, then a line with its exit status.

A child is killed when the other end of its socket is closed. The server ends, with all children, when the other end of its
own socket is closed, and when it has had nothing to do for a while. :mod:`lrexport.artifacts.children` is the other end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys

from lrexport.confinement import die_with_parent

_IDLE_SECONDS = 60.0
_STDOUT = 1


def serve(control: socket.socket) -> None:
    """Fork a child for every request until the other end of ``control`` is closed, or nothing happens for a minute."""
    wake, waking = socket.socketpair()
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler is needed for the wake-up byte
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the command decides about its children
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    jobs: dict[int, tuple[int, socket.socket]] = {}  # children and their sockets, by the socket's number
    while True:
        ready = poll.poll(None if jobs else 1000 * _IDLE_SECONDS)
        if not ready:
            return
        for number, _ in ready:
            if number == wake.fileno():
                wake.recv(1024)
                _report_ends(jobs, poll)
            elif number in jobs:
                os.kill(jobs[number][0], signal.SIGKILL)
                poll.unregister(number)
            elif number == control.fileno():
                files = socket.recv_fds(control, 1, 1)[1]
                if not files:
                    for child, _ in jobs.values():
                        os.kill(child, signal.SIGKILL)
                    return
                job = socket.socket(fileno=files[0])
                jobs[job.fileno()] = _fork(job, [other for _, other in jobs.values()]), job
                poll.register(job, 0)  # reports only that the other end is closed


def _fork(job: socket.socket, others: list[socket.socket]) -> int:
    server = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for other in others:
                other.close()  # or their readers would wait for this child as well
            die_with_parent(server)
            _be_child(job)
            status = 0
        finally:
            os._exit(status)  # without the clean-up, which is the server's
    return child


def _report_ends(jobs: dict[int, tuple[int, socket.socket]], poll: select.poll) -> None:
    """Send the exit statuses of all children that have ended, and close their sockets."""
    for number, (child, job) in list(jobs.items()):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError):  # nobody waits any more
                job.sendall(f"\n{os.waitstatus_to_exitcode(status)}\n".encode())
            with contextlib.suppress(KeyError):
                poll.unregister(number)
            del jobs[number]
            job.close()


def _be_child(job: socket.socket) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with job.makefile("r", encoding="utf-8") as request:
        sys.argv = json.loads(request.readline())
    os.dup2(job.fileno(), _STDOUT)
    importlib.import_module(sys.argv[0]).main()
    print(end="", flush=True)


def main() -> None:
    """Serve as the module says."""
    with contextlib.suppress(Exception):  # children import it again, and their failure is reported
        for name in sys.argv[1:]:
            importlib.import_module(name)
    serve(socket.socket(fileno=sys.stdin.fileno()))


if __name__ == "__main__":
    main()
