"""The folder of a run: what it may hold, whether it is new, resumed or done, and what it leaves behind."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ldmlab.errors import UserError

# Settings that may change between two starts of the same run without making it another run.
# `choices` names the config groups that the other settings came from.
VOLATILE = (
    "choices",
    "overwrite",
    "runs_dir",
    "cache_dir",
    "logger",
    "trainer.num_workers",
    "trainer.checkpoint_seconds",
)

# Overrides that say where a run is kept or when it stops, not what it is: they do not name it.
UNNAMED = ("study", "name", "runs_dir", "cache_dir", "overwrite", "experiment", "autoencoder_from", "downsampling")
UNNAMED_GROUPS = ("data", "budget", "trainer", "logger", "metrics", "hydra", "autoencoder_share")

RECORDED_PACKAGES = ("ldmlab", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "wandb", "datasets")


def run_name(stage: str, factor: str, overrides: list[str]) -> str:
    """The automatic name: stage, factor, and each override that changes what the run is."""
    parts = [f"{stage}-{factor}"]
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split(".")[0].split("@")[0]
        if group in UNNAMED or group in UNNAMED_GROUPS:
            continue
        # a stage-one run has no other batch size than the autoencoder's
        shown = key.removeprefix("autoencoder.") if stage == "vae" else key
        parts.append(f"{shown}={value}")
    return "-".join(parts).replace("/", "_").replace(" ", "_")


class Run:
    """A run's folder. `config` is the resolved configuration as plain containers."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.last_checkpoint = self.checkpoints / "last.ckpt"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final values, None while the run is not complete."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def prepare(self, command: str, overrides: list[str], overwrite: bool) -> None:
        """Makes the folder, or checks that it belongs to the same run.

        Raises:
            UserError: the folder holds a run with other settings, or its checkpoint is damaged.
        """
        config_file = self.path / "config.yaml"
        if config_file.exists():
            difference = first_difference(yaml.safe_load(config_file.read_text()), self.config)
            if difference and overwrite:
                shutil.rmtree(self.path)
            elif difference:
                raise UserError(
                    f"{self.path} holds a run with other settings ({difference}): "
                    "choose another name=... or study=..., or delete it with overwrite=true"
                )
        if self.last_checkpoint.exists():
            check_zip(self.last_checkpoint, "delete it to train this run from the start, or use overwrite=true")
            if overwrite and self.summary is None:
                shutil.rmtree(self.path)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        write_text(config_file, yaml.safe_dump(self.config, sort_keys=False))
        write_text(self.path / "overrides.yaml", yaml.safe_dump({"command": command, "overrides": overrides}))
        write_text(self.path / "versions.json", json.dumps(provenance(), indent=1))

    @contextmanager
    def lock(self, say: Any) -> Iterator[None]:
        """Holds the run for this process; waits, and says so, while another one trains it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.parent / f".{self.path.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{self.path}: another process is at it; waiting for it to end")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary, by which the run counts as complete."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=1))


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one move, so that it is never half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def check_zip(path: Path, remedy: str) -> None:
    """Raises UserError if a checkpoint is cut off or damaged: torch's files are zip archives with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): {remedy}") from error
    if damaged:
        raise UserError(f"{path} is damaged (in {damaged}): {remedy}")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested containers as {"a.b": value}; lists count as values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first setting in which two configurations differ, "key: old, now new"; None if they are the same run."""
    before, after = flatten(old), flatten(new)
    for key in sorted(before | after):
        if any(key == name or key.startswith(f"{name}.") for name in VOLATILE):
            continue
        if before.get(key) != after.get(key):
            return f"{key}: {before.get(key)}, now {after.get(key)}"
    return None


def provenance() -> dict[str, Any]:
    """Versions of what computes, the machine's kind, and the source revision where there is one."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {"versions": versions, "git": revision.stdout.strip() or None, "machine": platform.machine()}


def read_run(path: str | Path, stage: str, option: str) -> Run:
    """A complete run of the given stage ("autoencoder" or "diffusion") that a user named by `option`.

    Raises:
        UserError: it is not there, is no run, is not complete or is of the other stage.
    """
    path = Path(path)
    make = {"autoencoder": "train-vae", "diffusion": "train-ldm"}[stage]
    if not path.exists():
        raise UserError(f"{option}: no such run: {path} (`ldmlab {make}` makes one)")
    if not (path / "config.yaml").exists():
        raise UserError(f"{option}: {path} is no run: it has no config.yaml (`ldmlab {make}` makes one)")
    try:
        config = yaml.safe_load((path / "config.yaml").read_text())
        run = Run(path, config)
        summary = run.summary
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{option}: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if summary is None:
        raise UserError(f"{option}: {path} is not complete: start its command again and it goes on")
    if summary["stage"] != stage:
        raise UserError(f"{option}: {path} is a run of the {summary['stage']} stage, the {stage} stage is needed")
    return run
