"""The bridge to Hydra: composes the configuration of a command and runs its jobs."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmlab import jobs
from ldmlab.errors import Interrupted, UserError, fail, traced
from ldmlab.hydra_errors import find_folder, one_line, suggestion, unknown_keys, users_folder
from ldmlab.jobs import Jobs

TRAINING = ("train-vae", "train-ldm")

LOST = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError")
"""What joblib and submitit raise when a process of theirs was killed; neither has to be installed."""

# Hydra's flags, and whether a value follows.
FLAGS = {
    "-h": False, "--help": False, "--hydra-help": False, "--version": False, "--resolve": False,
    "-m": False, "--multirun": False, "--run": False, "-r": False, "--shell-completion": False,
    "-c": True, "--cfg": True, "-p": True, "--package": True, "-i": True, "--info": True,
    "-cp": True, "--config-path": True, "-cn": True, "--config-name": True, "-cd": True, "--config-dir": True,
}  # fmt: skip


def run_hydra(command: str, overrides: list[str]) -> int:
    """Runs `command` with Hydra overrides and flags; returns the exit code."""
    quiet_environment()
    overrides = [combined(item) for item in overrides]
    if {"-m", "--multirun"} & set(overrides) and {"--cfg", "-c"} & {item.partition("=")[0] for item in overrides}:
        raise UserError("--cfg shows one configuration: leave out -m, and give one value of each")
    config_name = command.replace("-", "_")
    these = jobs.THESE = Jobs()
    try:
        register_experiments(config_name, overrides)
        application = hydra.main(version_base="1.3", config_path=str(find_folder("conf")), config_name=config_name)(
            lambda config: job(command, config, overrides, these)
        )
        sys.argv = [f"ldmlab {command}", *flags_first(overrides)]
        with sweep_survives(these):
            application()
        these.gather()
        if these.folder is not None:
            compare_studies(these)
    except (HydraException, OmegaConfBaseException) as error:
        return fail(one_line(error, config_name, overrides))
    finally:
        # whatever became of the launcher
        these.gather()
        for which, failure in these.failed if these.folder is not None else []:
            print(f"failed: {which}: {failure}", file=sys.stderr)
    return these.exit_code


@contextlib.contextmanager
def sweep_survives(these: Jobs) -> Iterator[None]:
    """What ends a launcher or a sweeper, such as a process of its that was killed, is one more failure."""
    try:
        yield
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if these.folder is None:
            raise
        if type(error).__name__ in LOST:
            print(error, file=sys.stderr)  # which job, its state and what it last said
            told = "a process of it was lost; was there too little memory? The same command goes on from there"
            failure: Exception = UserError(f"{type(error).__name__}: {told}")
        else:
            failure = traced(error)
        say_failure(failure)
        these.fail("the sweep", failure)


def compare_studies(these: Jobs) -> None:
    """The table and the page of every study that a sweep had jobs in."""
    from ldmlab.tasks.compare import compare

    for study in these.studies:
        try:
            compare([study])
        except UserError as error:
            print(error)  # no run was completed: the failures themselves are told too


def combined(override: str) -> str:
    """`conditioner=text+super_resolution` as the list that it means to Hydra, within sweeps too."""
    key, is_set, value = override.partition("=")
    return f"{key}={lists_of(value)}" if key == "conditioner" and is_set else override


def lists_of(choices: str) -> str:
    """The same choices with `a+b` written as `[a,b]`."""
    if re.search(r"\bnone\+|\+none\b", choices):
        raise UserError(f"conditioner: none is alone or not there, unlike in {choices}")
    return re.sub(r"\w+(?:\+\w+)+", lambda several: f"[{several[0].replace('+', ',')}]", choices)


def flags_first(arguments: list[str]) -> list[str]:
    """Hydra's flags before the overrides: argparse takes overrides from one side of a flag only, users write both."""
    flags, rest, remaining = [], [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            rest.append(argument)
            continue
        name = argument.partition("=")[0]
        if name not in FLAGS:
            setting = name.lstrip("-").replace("-", "_")
            raise UserError(f"there is no flag {name}: settings are given as key=value, like {setting}=...")
        flags.append(argument)
        takes_value = FLAGS[name] and "=" not in argument
        if takes_value and remaining and "=" not in remaining[0] and not remaining[0].startswith("-"):
            flags.append(remaining.pop(0))
    return [*flags, *rest]


def say_failure(failure: Exception) -> None:
    """One line for a failed job."""
    known = isinstance(failure, (UserError, Interrupted))
    ours = f"{type(failure).__name__}: {failure} (a fault of ldmlab: please report it, with the traceback)"
    fail(str(failure) if known else ours)


def sweep(overrides: list[str], params: Any) -> dict[str, int | None]:
    """What a sweep varies, each key with its number of values; None where a sweeper draws them.

    On the command line, and whatever stands in a study's `hydra.sweeper.params`.
    """
    parser = OverridesParser.create()
    given = parser.parse_overrides([item for item in overrides if "=" in item and not item.startswith("-")])
    said = {item.key_or_group for item in given}  # the command line has the last word
    of_study = parser.parse_overrides([f"{key}={value}" for key, value in (params or {}).items() if key not in said])
    varied = [*(item for item in given if item.is_sweep_override()), *of_study]
    return {item.key_or_group: number_of_values(item) for item in varied}


def number_of_values(item: Override) -> int | None:
    """How many values an override has, None if it says where they are drawn from or what their names are like."""
    if not item.is_sweep_override():
        return 1
    listed = item.is_discrete_sweep() and item.value_type != ValueType.GLOB_CHOICE_SWEEP
    return len(list(item.sweep_iterator())) if listed else None


def job(command: str, composed: DictConfig, given: list[str], these: Jobs) -> float | None:
    """One job: the command's task on the resolved configuration. A failure does not stop the other jobs of a sweep.

    `given` is the whole command line, of which a sweep's job has one value of each.
    """
    if these.interrupted:
        return None  # whoever interrupts a sweep means all of it
    state = HydraConfig.get()
    several = state.mode == RunMode.MULTIRUN
    overrides = list(state.overrides.task)
    swept = sweep(given, state.sweeper.get("params")) if several else {}
    name = " ".join(overrides)
    if several:
        counts = [count for count in swept.values() if count is not None]
        # other sweepers draw as many as they please
        known = len(counts) == len(swept) and state.sweeper._target_.endswith("BasicSweeper")
        total = f" of {math.prod(counts)}" if known else ""
        print(f"job {state.job.num + 1}{total}: {name}", file=sys.stderr)
        name = f"job {state.job.num + 1}{total} ({name})"
    try:
        config: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = UserError(one_line(error, "", []))
        say_failure(problem)
        these.fail(name, problem)
        return None
    choices: Any = OmegaConf.to_container(OmegaConf.create(state.runtime.choices))
    config["choices"] = {
        group: "+".join(choice) if isinstance(choice, list) else choice
        for group, choice in choices.items()
        if choice is not None and "@" not in group and not group.startswith("hydra/")
    }
    config["swept"] = list(swept)
    config.pop("experiment", None)
    try:
        from ldmlab.devices import take_a_gpu
        from ldmlab.launching import on_one_device
        from ldmlab.tasks import run_task

        if command in TRAINING:
            these.begin(Path(str(config["runs_dir"])).resolve() / str(config["study"]))
        if not these.first_process and on_one_device(config):
            take_a_gpu()
        return run_task(command, config, overrides)
    except Exception as raised:
        failure = traced(raised)
        say_failure(failure)  # at once: the jobs that follow may take hours
        these.fail(name, failure)
    return None


def register_experiments(config_name: str, overrides: list[str]) -> None:
    """Makes every experiments/NAME.yaml the option `experiment=NAME`, and checks the keys of those that are asked for.

    Hydra checks the keys of an override but not those of a file, where a misspelt one would silently do nothing.
    """
    store = ConfigStore.instance()
    chosen = {name for item in overrides if item.startswith("experiment=") for name in re.findall(r"[\w-]+", item[11:])}
    for path in sorted(find_folder("experiments").glob("*.yaml")):
        try:
            experiment = OmegaConf.load(path)
        except Exception as error:
            if path.stem in chosen:
                raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
            continue
        swept = OmegaConf.select(experiment, "hydra.sweeper.params.conditioner")
        if swept is not None:
            OmegaConf.update(experiment, "hydra.sweeper.params.conditioner", lists_of(swept))
        store.store(group="experiment", name=path.stem, package="_global_", node=experiment, provider=str(path))
        if path.stem in chosen:
            assert isinstance(experiment, DictConfig)
            check_experiment(path, experiment, config_name, users_folder(overrides))


def check_experiment(path: Path, experiment: DictConfig, config_name: str, searched: list[str]) -> None:
    """Raises UserError for a key that the configuration does not have; `searched` is of `users_folder`."""
    groups = [f"{group}={choice}" for group, choice in groups_of(path.parent, experiment).items()]
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        known: Any = OmegaConf.to_container(compose(config_name, [*searched, *groups]), resolve=False)
    GlobalHydra.instance().clear()
    body: Any = OmegaConf.to_container(experiment, resolve=False)
    for key in unknown_keys({k: v for k, v in body.items() if k not in ("defaults", "hydra")}, known):
        raise UserError(f"{path}: unknown key '{key}'{suggestion(key, known)}")


def groups_of(folder: Path, experiment: DictConfig) -> dict[str, Any]:
    """The choices of groups that an experiment makes, and those that it builds on."""
    groups: dict[str, Any] = {}
    for entry in experiment.get("defaults", []):
        if isinstance(entry, DictConfig):
            (group, choice), *_ = entry.items()
            groups[str(group).removeprefix("override").strip().lstrip("/")] = choice
        elif entry != "_self_" and (folder / f"{entry}.yaml").is_file():
            other = OmegaConf.load(folder / f"{entry}.yaml")
            assert isinstance(other, DictConfig)
            groups = {**groups_of(folder, other), **groups}
    return groups


def quiet_environment() -> None:
    """What libraries read from the environment when they are imported."""
    defaults: dict[str, Any] = {"HYDRA_FULL_ERROR": "1", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
