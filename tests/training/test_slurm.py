"""Processes as srun starts them: each finds its place in SLURM's variables, and the first alone writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from lrexport.record import load_record
from tests.training.test_loggers import COMMAND, NETWORK, complete


def test_two_processes_with_slurms_variables_make_one_run_and_one_log(tmp_path: Path) -> None:
    (tmp_path / "logged_network.py").write_text(NETWORK, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_NAME": "compress", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "lrexport", *COMMAND, "--devices", "2", "--log-to", "tensorboard", "-o", "run"]
    processes = []
    for rank in ("0", "1"):
        place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
        environment = {**os.environ, **job, **place}
        out = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, text=True))
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "SVD training: epoch 1/1" in said[0]
    assert said[1] == ""
    assert load_record(tmp_path / "run").environment["processes"] == "2"
    complete(tmp_path / "run")
    for stage in ("dense", "svd"):
        assert len(list((tmp_path / "run" / "logs" / "tensorboard" / stage).iterdir())) == 1
