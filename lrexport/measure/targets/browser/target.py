"""A browser with onnxruntime-web: Chromium on this machine, or one on another device, such as a phone, that opens a page.

The page gets the job from a server of this process and posts its answers, which are checked as any device's are. Outputs are
compared with ONNX Runtime's here, before anything is timed.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrexport.errors import DeviceError, UsageError
from lrexport.events import OnEvent, ignore_events
from lrexport.measure import machine
from lrexport.measure.runtimes.base import IN_BROWSER
from lrexport.measure.targets.answers import answers
from lrexport.measure.targets.artefacts import measured_when_prepared
from lrexport.measure.targets.base import MeasuringJob
from lrexport.measure.targets.browser import programs
from lrexport.measure.targets.browser.about import About
from lrexport.measure.targets.browser.jobs import asked, with_inputs
from lrexport.measure.targets.browser.programs import Package
from lrexport.measure.targets.browser.visits import Headless, Visit, served
from lrexport.measure.targets.queries import options_of

JsonObject = dict[str, Any]
SYNTAX = "browser[?provider=wasm|webgpu][&package=FOLDER][&path=PROGRAM][&serve=ADDRESS:PORT][&timeout=SECONDS]"
PROVIDERS = ("wasm", "webgpu")
_URL = re.compile(r"browser(?:\?(?P<query>.+))?")
_SERVE = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9][\w.-]*)):(?P<port>\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Browser:
    """onnxruntime-web in the ``package`` folder (None: of npm's node_modules), with an execution provider.

    Headless in Chromium, or in the program ``path``; or with ``serve``, an address and a port to listen on, in whatever
    browser opens the page. ``timeout``: how long such a browser may take to come, and be silent.
    """

    provider: str = PROVIDERS[0]
    package: str | None = None
    path: str | None = None
    serve: tuple[str, int] | None = None
    timeout: float = 300.0
    on_event: OnEvent = field(default=ignore_events, compare=False)

    runtime = IN_BROWSER

    @property
    def name(self) -> str:
        options = [*(["serve"] if self.serve else []), *([f"provider={self.provider}"] if self.provider != "wasm" else [])]
        return f"browser{'?' * bool(options)}{'&'.join(options)}"

    def environment(self) -> JsonObject:
        return next(answer["environment"] for answer in self.run(MeasuringJob(())) if "environment" in answer)

    def run(self, job: MeasuringJob) -> Iterator[JsonObject]:
        package = Package.find(self.package, self.provider)
        program = None if self.serve else programs.chromium(self.path)
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            job = replace(job, runtime=self.runtime)
            yield from measured_when_prepared(
                job, None, Path(folder), self.name, lambda ready: self._measured(ready, package, program)
            )

    def _measured(self, job: MeasuringJob, package: Package, program: str | None) -> Iterator[JsonObject]:
        with contextlib.closing(self._visit(package, program)) as visit:
            try:
                about = self._checked(visit.desk.page(visit.most_seconds, visit.look), job)
                lines = self._lines(visit, job, about, package)
                yield from answers(lines, job, self.name, lambda: DeviceError(f"{self.name} stopped early"))
            except TimeoutError as error:
                raise visit.silent() from error

    def _visit(self, package: Package, program: str | None) -> Visit:
        if self.serve is not None:
            if self.on_event is ignore_events:
                reason = "nobody would see the address of its page here"
                raise UsageError(f"{self.name} cannot be used: {reason}", "Use it with the commands of lrexport.")
            return served(self.name, package, *self.serve, self.timeout, self.on_event)
        assert program is not None
        return Headless(self.name, package, program, self.provider)

    def _checked(self, about: JsonObject, job: MeasuringJob) -> About:
        """Raises DeviceError if the browser lacks what the job needs."""
        try:
            facts = About.model_validate_json(json.dumps(about))
        except ValidationError as error:
            raise DeviceError(f"{self.name} opened a page that is not lrexport's") from error
        if self.provider == "webgpu" and facts.gpu is None:
            why = "" if facts.secure else ", because the page's address is neither https nor localhost"
            raise DeviceError(f"{self.name} has no WebGPU in {facts.browser}{why}", "Use provider=wasm, or another browser.")
        if job.threads != 1 and not facts.isolated:
            raise DeviceError(
                f"{self.name} cannot use {job.threads} threads: {facts.browser} isolates only pages of https or localhost",
                "Use --threads 1, or let the device reach this machine as localhost (docs/ship/browser.md).",
            )
        return facts

    def _lines(self, visit: Visit, job: MeasuringJob, about: About, package: Package) -> Iterator[str]:
        """The page's posts as lines of the runner's answers."""
        yield json.dumps({"environment": self._environment(about, package)})
        if job.groups:
            wanted = asked(job, self.name, self.provider, about.timer_ms)
            for post in visit.desk.posts(wanted, visit.most_silent_seconds, visit.look):
                yield json.dumps(with_inputs(post, job))
        yield json.dumps({"done": self._environment(about, package)})

    def _environment(self, about: About, package: Package) -> JsonObject:
        facts = about.machine() if self.serve else machine.environment(IN_BROWSER)
        on = f" on {about.gpu}" if self.provider == "webgpu" else ""
        version = f"{package.version} {self.provider}{on}, {about.browser}"
        timer = round(1e3 * about.timer_ms, 1)
        return {**facts, "runtime": IN_BROWSER, "runtime_version": version, "precision": "float32", "timer_us": timer}


def parse_browser(text: str, on_event: OnEvent = ignore_events) -> Browser:
    """``browser?provider=webgpu``, ``browser?serve=0.0.0.0:8000``. Raises UsageError."""
    match = _URL.fullmatch(text)
    if match is None:
        raise UsageError(f"invalid target {text!r}", f"Expected {SYNTAX}.")
    options = options_of(text, match["query"] or "", ("provider", "package", "path", "serve", "timeout"), SYNTAX)
    provider = options.get("provider", PROVIDERS[0])
    if provider not in PROVIDERS:
        raise UsageError(f"invalid target {text!r}: unknown provider {provider!r}", f"Known: {', '.join(PROVIDERS)}.")
    for name in ("package", "path"):
        if options.get(name) == "":
            raise UsageError(f"invalid target {text!r}: {name}= without a path", f"Expected {SYNTAX}.")
    serve = _address(text, options["serve"]) if "serve" in options else None
    if serve is not None and "path" in options:
        both = "path= is for a browser that lrexport starts, serve= for one that you open"
        raise UsageError(f"invalid target {text!r}: {both}", f"Expected {SYNTAX}.")
    timeout = options.get("timeout", "300")
    if not re.fullmatch(r"[1-9]\d{0,4}", timeout):
        raise UsageError(
            f"invalid target {text!r}: expected a timeout in whole seconds, not {timeout!r}", "For example 300."
        )
    if serve is None and "timeout" in options:
        raise UsageError(f"invalid target {text!r}: timeout= is for a browser that you open", f"Expected {SYNTAX}.")
    return Browser(provider, options.get("package"), options.get("path"), serve, float(timeout), on_event)


def _address(text: str, given: str) -> tuple[str, int]:
    match = _SERVE.fullmatch(given)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(
            f"invalid target {text!r}: expected serve=ADDRESS:PORT, not {given!r}",
            "For example serve=0.0.0.0:8000 for every interface of this machine, or serve=127.0.0.1:8000.",
        )
    return match["six"] or match["host"], int(match["port"])
