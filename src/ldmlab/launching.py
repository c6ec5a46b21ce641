"""Starts the processes of a run that trains on several devices."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from ldmlab.errors import Interrupted, UserError, as_it_was

Config = dict[str, Any]

SECONDS_TO_STOP = 120
"""How long processes may take to end the step under way and to save it."""


def adopt_slurm() -> None:
    """Describes the processes that `srun` started in the words of torchrun, which all else here reads."""
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment()
    here = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ["SLURM_TASKS_PER_NODE"])
    assert here is not None
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "LOCAL_WORLD_SIZE": here[0],
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }


def on_one_device(config: Config) -> bool:
    """Whether a configuration asks for one device, as those of commands that train nothing do."""
    return config.get("trainer", {}).get("lightning", {}).get("devices", 1) == 1


def processes_to_start(config: Config) -> int:
    """How many processes a run asks for that are not there yet; 1 if it has those that it asks for.

    Raises:
        UserError: there are not as many devices; processes on several machines are for others to start.
    """
    lightning = config["trainer"]["lightning"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    nodes, devices = lightning.get("num_nodes", 1), lightning["devices"]
    if nodes > 1:
        raise UserError(
            f"trainer.lightning.num_nodes: {nodes} machines need a process for each device: start this with srun, or "
            "with torchrun on each machine (docs/studies.md)"
        )
    if on_one_device(config):
        return 1
    import torch

    on_gpus = lightning["accelerator"] != "cpu" and torch.cuda.is_available()
    there = torch.cuda.device_count() if on_gpus else 1
    if devices in ("auto", -1, "-1"):
        return there
    if on_gpus and devices > there:
        raise UserError(f"trainer.lightning.devices: {devices} are asked for, and this machine has {there} GPUs")
    return devices


def run_in_processes(command: str, config: Config, overrides: list[str], count: int) -> float | None:
    """Runs a command in `count` processes of this machine; returns what it returns.

    Raises:
        UserError, Interrupted: as the command did in the processes.
        RuntimeError: one of them failed by our fault; it has said how.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what failed is said below
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SECONDS_TO_STOP)
    with tempfile.TemporaryDirectory(prefix="ldmlab-") as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"command": command, "config": config, "overrides": overrides}))
        launch = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="ldmlab", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0,
        )  # fmt: skip
        stopped_by, killed = None, False
        try:
            elastic_launch(launch, sys.executable)("-m", "ldmlab.worker", str(job))
        except ChildFailedError as failure:
            killed = any(process.exitcode == -signal.SIGKILL for process in failure.failures.values())
        except SignalException as stopped:
            stopped_by = signal.Signals(stopped.sigval)
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("result-*.json"))]
    failed = [result for result in results if result["exit_code"]]
    if killed and all(result["exit_code"] == 1 for result in failed):
        # whatever the others came upon when one had gone
        others = f" (another said: {failed[0]['message']})" if failed else ""
        raise UserError(f"a process was killed; was there too little memory?{others}")
    if failed:
        # what others came upon when one had gone says less
        first = min(failed, key=lambda result: result["exit_code"] == 1)
        raise as_it_was(first["message"], first["exit_code"])
    if stopped_by is not None:
        raise Interrupted(f"stopped by {stopped_by.name}", 128 + stopped_by.value)
    if len(results) < count:
        raise RuntimeError("a process ended without a word")
    return results[0]["value"]
