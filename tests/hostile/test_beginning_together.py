"""Processes that begin in one new folder at the same time, as those of a sweep do."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from lrexport.artifacts import mark, run_folder
from lrexport.artifacts.run_files import MARK

NAMES = ("run.json", "log.jsonl", "spectra.json", "dense.safetensors", "svd.safetensors", "model.safetensors")
FOLDERS = 15


def begin(root: Path, name: str, together: Barrier, ended: Queue[str]) -> None:
    try:
        for number in range(FOLDERS):
            folder = root / str(number)
            together.wait(60)
            run_folder.check(folder, NAMES)
            run_folder.write_bytes(folder, name, b"content")
            run_folder.check(folder, NAMES)
        ended.put("done")
    except BaseException as error:
        together.abort()
        ended.put(repr(error))


def test_none_of_them_takes_the_files_of_the_others_for_foreign_ones_or_loses_their_names(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, ended = context.Barrier(len(NAMES)), context.Queue()
    for number in range(FOLDERS):
        (tmp_path / str(number)).mkdir()
    processes = [context.Process(target=begin, args=(tmp_path, name, together, ended)) for name in NAMES]
    for process in processes:
        process.start()
    assert [ended.get(timeout=120) for _ in processes] == ["done"] * len(NAMES)
    for process in processes:
        process.join()
    for folder in tmp_path.iterdir():
        made = mark.known(folder)
        assert made is not None
        assert made.names == {*NAMES}
        assert {path.name for path in folder.iterdir()} == {*NAMES, MARK}
