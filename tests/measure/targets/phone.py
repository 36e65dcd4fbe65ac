"""A page in Python: what page.js and worker.js ask and post, without a browser; and an npm package without its content."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime

ABOUT = {
    "agent": "Mozilla/5.0 (Linux; Android 16; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile",
    "cores": 8,
    "isolated": False,
    "secure": False,
    "timer_ms": 0.1,
}


def write_package(folder: Path, version: str = "1.30.0") -> Path:
    """onnxruntime-web, as far as lrexport looks at it."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))
    for name in ("ort.wasm.min.mjs", "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / name).write_text(f"// {name}")
    return folder


def running_in(folder: Path) -> list[int]:
    """Processes whose folder for temporary files is this one or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end at any moment
            if b"TMPDIR=" + os.fsencode(folder) in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


class Gone(Exception):
    """The server has closed, or refuses the page."""


def in_background(work: Callable[[], Any]) -> threading.Thread:
    """A thread that works until it is done, or the server is gone."""

    def until_gone() -> None:
        with contextlib.suppress(Gone):
            work()

    thread = threading.Thread(target=until_gone, daemon=True)
    thread.start()
    return thread


class Phone:
    """A page at ``url``. ``computed`` changes outputs before they are sent, ``answered`` what is posted at the end."""

    def __init__(self, url: str, page: str = "1-2-3-4", about: dict[str, Any] | None = None) -> None:
        self.url, self.page, self.about = urlsplit(url), page, {**ABOUT, **(about or {})}
        self.computed: Callable[[np.ndarray], np.ndarray] = lambda array: array
        self.answered: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.refused: list[tuple[int, str]] = []

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and content of one request below the page's address; an absolute path is taken as it is."""
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=30)
        full = path if path.startswith("/") else self.url.path + path
        try:
            connection.request(method or ("GET" if body is None else "POST"), full, body, {"X-Page": self.page, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise Gone from error
        finally:
            connection.close()

    def post(self, path: str, value: Any) -> tuple[int, bytes]:
        found = self.ask(path, value if isinstance(value, bytes) else json.dumps(value).encode())
        if found[0] >= 400:
            self.refused.append((found[0], found[1].decode()))
        return found

    def job(self) -> dict[str, Any]:
        """The next job."""
        while True:
            status, content = self.post("job", self.about)
            if status >= 400:
                raise Gone
            if status == 200:
                return json.loads(content)

    def work(self) -> None:
        """Take one job and do it."""
        job = self.job()
        for group, models in enumerate(job["groups"]):
            for model in models:
                if self.post(f"outputs/{model['number']}", self._outputs(model))[0] >= 400:
                    return
            figures = {model["name"]: {"samples_ms": [2.0] * job["rounds"], "repeats": 3} for model in models}
            self.post("answer", self.answered({"group": group, "models": figures}))
        self.post("answer", {"finished": True})

    def start(self) -> threading.Thread:
        return in_background(self.work)

    def _outputs(self, model: dict[str, Any]) -> bytes:
        session = onnxruntime.InferenceSession(self.ask(f"model/{model['number']}")[1])
        content, feed, at = self.ask(f"inputs/{model['number']}")[1], {}, 0
        for given in model["inputs"]:
            count = int(np.prod(given["shape"]))
            feed[given["name"]] = np.frombuffer(content, given["dtype"], count, at).reshape(given["shape"])
            at += feed[given["name"]].nbytes
        arrays = [self.computed(array) for array in session.run(None, feed)]
        names = [item.name for item in session.get_outputs()]
        head = json.dumps(
            [[name, array.dtype.name, array.shape, array.nbytes] for name, array in zip(names, arrays, strict=True)]
        ).encode()
        return len(head).to_bytes(4, "little") + head + b"".join(array.tobytes() for array in arrays)
