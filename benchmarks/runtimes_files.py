"""This machine as a target that keeps the files it made for a runtime, so that conversions are done before and only once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrexport.artifacts import files
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets import MeasuringJob
from lrexport.measure.targets.artefacts import prepared
from lrexport.measure.targets.base import Artefact
from lrexport.measure.targets.local import Local

_AT_ONCE = 40


class OnlyPreparedError(Exception):
    """The files of a job are there, and it is not measured."""


@dataclass(frozen=True)
class KeptFiles(Local):
    """``kept`` is the folder of the files; with ``only_prepares`` jobs are not measured."""

    kept: Path = field(default_factory=Path)
    only_prepares: bool = False

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        if not job.groups or self.runtime == DEFAULT:
            yield from super().run(job)
            return
        paths = {path: hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in job.paths()}
        missing = list({key: path for path, key in paths.items() if not self._note(key).is_file()}.values())
        for start in range(0, len(missing), _AT_ONCE):
            self._make(job, missing[start : start + _AT_ONCE], paths)
            print(f"{self.runtime}: {min(start + _AT_ONCE, len(missing))} of {len(missing)} files", flush=True)
        if self.only_prepares:
            raise OnlyPreparedError
        ready = replace(job, runtime=self.runtime, artefacts={path: self._kept(key) for path, key in paths.items()})
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            yield from self.measured(ready, Path(folder))

    def _note(self, key: str) -> Path:
        return self.kept / self.runtime / f"{key}.json"

    def _make(self, job: MeasuringJob, missing: list[Path], paths: dict[Path, str]) -> None:
        (self.kept / self.runtime).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.kept / self.runtime))
        part = replace(job, groups=[{str(number): path for number, path in enumerate(missing)}])
        *_, done = prepared(part, self.runtime, self.python, folder, self.name)
        assert isinstance(done, MeasuringJob)
        for path, made in done.artefacts.items():
            about = {"files": list(map(str, made.files)), "arrays": str(made.arrays), "about": made.about}
            files.write_json(self._note(paths[path]), about)

    def _kept(self, key: str) -> Artefact:
        note = json.loads(self._note(key).read_text(encoding="utf-8"))
        return Artefact(tuple(map(Path, note["files"])), Path(note["arrays"]), note["about"])
