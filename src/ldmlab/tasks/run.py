"""The folder of a run: what it may hold, whether it is new, resumed or done, and what it leaves behind."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml

from ldmlab.errors import UserError
from ldmlab.locks import locked
from ldmlab.tasks.console import say

# Settings that may change between two starts of the same run without making it another run.
# `choices` names the config groups that the other settings came from.
VOLATILE = (
    "choices",
    "swept",
    "overwrite",
    "runs_dir",
    "cache_dir",
    "data.cache_dir",
    "data.root",
    "data.download",
    "data.max_cache_gb",
    "conditioner.text_pretrained.cache",
    "logger",
    "trainer.num_workers",
    "trainer.threads",
    "trainer.grids",
    "trainer.checkpoint_seconds",
    "trainer.checkpoint_steps",
    "trainer.lightning.accelerator",
    "trainer.lightning.devices",
    "trainer.lightning.num_nodes",
    "trainer.lightning.strategy",
    "trainer.lightning.log_every_n_steps",
)

# Overrides that say where a run is kept, never what it is.
NEVER_NAMED = ("study", "name", "runs_dir", "cache_dir", "overwrite", "experiment", "downsampling")
# Overrides that all runs of a study usually share: they name a run only where a sweep varies them.
SELDOM_NAMED = ("data", "budget", "trainer", "logger", "metrics", "autoencoder_from", "autoencoder_share")

RunState = Literal["new", "begun", "complete", "replaced"]

CHOOSE_ANOTHER = "choose another name=... or study=..., or delete it with overwrite=true"

RECORDED_PACKAGES = ("ldmlab", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "wandb", "datasets")


def key_of(override: str) -> str:
    """The dotted key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def group_of(override: str) -> str:
    """The outermost group of what an override sets: "autoencoder" of autoencoder/size=paper, autoencoder.codes=16."""
    return re.split(r"[./@]", key_of(override))[0]


def run_name(stage: str, factor: str, overrides: list[str], swept: Sequence[str] = ()) -> str:
    """The automatic name: stage, factor, and each override that changes what the run is.

    `swept` are the keys that a sweep varies, so that its runs have different names. A name holds nothing that would
    have to be quoted in `from=`.
    """
    parts = [f"{stage}-{factor}"]
    for override in sorted(overrides):
        key, value = key_of(override), override.partition("=")[2]
        if key == "conditioner":
            value = value.strip("[]").replace(",", "+")
        group = group_of(override)
        # `downsampling=f4` is in every name, `downsampling.latent_channels=8` is a change
        if key in NEVER_NAMED:
            continue
        if group in SELDOM_NAMED and key not in swept:
            continue
        # a stage-one run has no other batch size than the autoencoder's
        shown = re.sub(r"^autoencoder[./]", "", key) if stage == "vae" else key
        parts.append(f"{shown}-{value}")
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")


class Run:
    """A run's folder.

    `config` is the resolved configuration as plain containers; `ignored` are settings in which it may differ from the
    run that the folder holds. On a `shared` one others may stand: once it is complete, it is not replaced.
    """

    def __init__(self, path: Path, config: dict[str, Any], ignored: Sequence[str] = (), shared: bool = False):
        self.path = path
        self.config = config
        self.ignored = tuple(ignored)
        self.shared = shared
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

    def state(self, overwrite: bool) -> RunState:
        """What the folder holds, as far as this run is concerned; nothing is changed.

        `overwrite` lets a run be replaced that has other settings or a damaged checkpoint. What a run measures may
        change until it has measured it.

        Raises:
            UserError: the folder holds a run with other settings, or its checkpoint is damaged.
        """
        complete = self.summary is not None
        if not complete and not self.last_checkpoint.exists():
            return "new"
        remedy = CHOOSE_ANOTHER
        if self.shared and complete:
            overwrite, remedy = False, f"use it with autoencoder_from={self.path}, or another study=..."
        elif self.shared and self._made_by() == "train-vae":
            overwrite, remedy = False, "finish it by its own command (overrides.yaml), or choose another study=..."
        ignored = self.ignored if complete else (*self.ignored, "metrics")
        config_file = self.path / "config.yaml"
        difference = first_difference(yaml.safe_load(config_file.read_text()), self.config, ignored)
        if difference and not overwrite:
            raise UserError(f"{self.path} holds a run with other settings ({difference}): {remedy}")
        if difference:
            return "replaced"
        if complete:
            return "complete"
        try:
            check_zip(self.last_checkpoint, "overwrite=true trains this run from the start")
        except UserError:
            if not overwrite:
                raise
            return "replaced"
        return "begun"

    def prepare(self, state: RunState, command: str, overrides: list[str], data: str) -> None:
        """Makes the folder of a run that is `state`, and writes down what it is; `data` is the data's fingerprint.

        Raises:
            UserError: the run was begun on other data.
        """
        if state == "begun" and self._begun_on() not in (None, data):
            if not self.config["overwrite"]:
                changed = "data that have changed since, or were copied without their times (cp -p)"
                raise UserError(f"{self.path} was begun on {changed}: {CHOOSE_ANOTHER}")
            state = "replaced"
        if state == "replaced":
            say(f"{self.path}: deleted, and begun anew")
            shutil.rmtree(self.path)
        elif state == "new":
            # one that was cut off before its first checkpoint leaves curves of what is not gone on with
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            for left_behind in (self.samples, self.path / "wandb"):
                shutil.rmtree(left_behind, ignore_errors=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        write_text(self.path / "overrides.yaml", yaml.safe_dump({"command": command, "overrides": overrides}))
        write_text(self.path / "versions.json", json.dumps({**provenance(), "data": data}, indent=1))

    def _made_by(self) -> str | None:
        path = self.path / "overrides.yaml"
        return yaml.safe_load(path.read_text()).get("command") if path.exists() else None

    def _begun_on(self) -> str | None:
        path = self.path / "versions.json"
        return json.loads(path.read_text()).get("data") if path.exists() else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; waits, and says so, while another one trains it."""
        waiting = f"{self.path}: another process is at it; waiting for it to end"
        with locked(self.path, "runs_dir", lambda: say(waiting)):
            yield

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


def settings_that_count(config: dict[str, Any], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration as {"a.b": value}, without what makes no other run and without `ignored`."""
    without = (*VOLATILE, *ignored)
    return {
        key: value
        for key, value in flatten(config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in without)
    }


def first_difference(old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str] = ()) -> str | None:
    """The first setting in which two configurations differ, "key: old, now new"; None if they are the same run."""
    before, after = settings_that_count(old, ignored), settings_that_count(new, ignored)
    for key in sorted(before | after):
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
    return {"versions": versions, "git": revision(), "machine": platform.machine()}


def revision() -> str | None:
    """The source's git revision, "-dirty" if it was changed since; None outside of a repository or without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def stand_on_trained(config: dict[str, Any]) -> None:
    """Puts the autoencoder that `autoencoder_from` names in place of the configuration's own."""
    if config["autoencoder_from"] is not None:
        trained = read_run(config["autoencoder_from"], "autoencoder", "autoencoder_from").config
        config |= {key: trained[key] for key in ("autoencoder", "downsampling")}


def read_run(path: str | Path, stage: str | None, option: str) -> Run:
    """A complete run of the given stage ("autoencoder", "diffusion", None for either) that a user named by `option`.

    Raises:
        UserError: it is not there, is no run, is not complete or is of the other stage.
    """
    path = Path(path)
    make = "train-vae" if stage == "autoencoder" else "train-ldm"
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
    if stage is not None and summary["stage"] != stage:
        raise UserError(f"{option}: {path} is a run of the {summary['stage']} stage, the {stage} stage is needed")
    return run
