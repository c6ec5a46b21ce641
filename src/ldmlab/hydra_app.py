"""The bridge to Hydra: composes the configuration of a command, turns Hydra's errors into one line, runs the job."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldmlab.errors import Interrupted, UserError, fail, for_the_user

PACKAGE = Path(__file__).parent

# Hydra's flags, and whether a value follows.
FLAGS = {
    "-h": False, "--help": False, "--hydra-help": False, "--version": False, "--resolve": False,
    "-m": False, "--multirun": False, "--run": False, "-r": False, "--shell-completion": False,
    "-c": True, "--cfg": True, "-p": True, "--package": True, "-i": True, "--info": True,
    "-cp": True, "--config-path": True, "-cn": True, "--config-name": True, "-cd": True, "--config-dir": True,
}  # fmt: skip


def find_folder(name: str) -> Path:
    """`conf` or `experiments`: at the top of a checkout, or the copy inside an installed package."""
    for folder in (PACKAGE.parents[1] / name, PACKAGE / name):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder {name}/ is missing beside {PACKAGE}: install the package again")


def run_hydra(command: str, overrides: list[str]) -> int:
    """Runs `command` with Hydra overrides and flags; returns the exit code."""
    quiet_environment()
    config_name = command.replace("-", "_")
    failures: list[Exception] = []
    try:
        register_experiments(config_name, overrides)
        application = hydra.main(version_base="1.3", config_path=str(find_folder("conf")), config_name=config_name)(
            lambda config: job(command, config, overrides, failures)
        )
        sys.argv = [f"ldmlab {command}", *flags_first(overrides)]
        application()
    except (HydraException, OmegaConfBaseException) as error:
        return fail(one_line(error, config_name, overrides))
    if not failures:
        return 0
    interrupted = [failure for failure in failures if isinstance(failure, Interrupted)]
    return exit_code(interrupted[0]) if interrupted else min(map(exit_code, failures))


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


def exit_code(failure: Exception) -> int:
    """2 for what the user can put right, that of the signal for an interrupted run, 1 for our own mistake."""
    return getattr(failure, "exit_code", 2 if isinstance(failure, UserError) else 1)


def say_failure(failure: Exception) -> None:
    """One line for a failed job."""
    known = isinstance(failure, (UserError, Interrupted))
    ours = f"{type(failure).__name__}: {failure} (a fault of ldmlab: please report it, with the traceback)"
    fail(str(failure) if known else ours)


def swept_keys(overrides: list[str], params: Any) -> list[str]:
    """The keys that a sweep varies: on the command line, or in a study's `hydra.sweeper.params`."""
    parsed = OverridesParser.create().parse_overrides(
        [item for item in overrides if "=" in item and not item.startswith("-")]
    )
    return [item.key_or_group for item in parsed if item.is_sweep_override()] + list(params or ())


def job(command: str, composed: DictConfig, given: list[str], failures: list[Exception]) -> float | None:
    """One job: the command's task on the resolved configuration. A failure does not stop the other jobs of a sweep.

    `given` is the whole command line, of which a sweep's job has one value of each.
    """
    state = HydraConfig.get()
    try:
        config: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        failures.append(UserError(one_line(error, "", [])))
        say_failure(failures[-1])
        return None
    groups = {group: choice for group, choice in state.runtime.choices.items() if not group.startswith("hydra/")}
    config["choices"] = {group: choice for group, choice in groups.items() if choice is not None and "@" not in group}
    config["swept"] = swept_keys(given, state.sweeper.get("params")) if state.mode == RunMode.MULTIRUN else []
    config.pop("experiment", None)
    overrides = list(state.overrides.task)

    if failures and isinstance(failures[-1], Interrupted):
        return None  # whoever interrupts a sweep means all of it
    try:
        from ldmlab.tasks import run_task

        return run_task(command, config, overrides)
    except Exception as raised:
        failure = for_the_user(raised)
        if not isinstance(failure, (UserError, Interrupted)):
            traceback.print_exc()
        failures.append(failure)
        say_failure(failure)  # at once: the jobs that follow may take hours
    return None


def register_experiments(config_name: str, overrides: list[str]) -> None:
    """Makes every experiments/NAME.yaml the option `experiment=NAME`, and checks the keys of those that are asked for.

    Hydra checks the keys of an override but not those of a file, where a misspelt one would silently do nothing.
    """
    store = ConfigStore.instance()
    chosen = {name for item in overrides if item.startswith("experiment=") for name in item[11:].split(",")}
    for path in sorted(find_folder("experiments").glob("*.yaml")):
        try:
            experiment = OmegaConf.load(path)
        except Exception as error:
            if path.stem in chosen:
                raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
            continue
        store.store(group="experiment", name=path.stem, package="_global_", node=experiment, provider=str(path))
        if path.stem in chosen:
            assert isinstance(experiment, DictConfig)
            check_experiment(path, experiment, config_name)


def check_experiment(path: Path, experiment: DictConfig, config_name: str) -> None:
    """Raises UserError for a key that the configuration does not have."""
    groups = []
    for entry in experiment.get("defaults", []):
        if isinstance(entry, DictConfig):
            (group, choice), *_ = entry.items()
            groups.append(f"{str(group).removeprefix('override').strip().lstrip('/')}={choice}")
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        known: Any = OmegaConf.to_container(compose(config_name, groups), resolve=False)
    GlobalHydra.instance().clear()
    body: Any = OmegaConf.to_container(experiment, resolve=False)
    for key in unknown_keys({k: v for k, v in body.items() if k not in ("defaults", "hydra")}, known):
        raise UserError(f"{path}: unknown key '{key}'{suggestion(key, known)}")


def unknown_keys(tree: dict[str, Any], known: Any, prefix: str = "") -> list[str]:
    """Dotted keys of `tree` that `known` lacks. Arguments of lightning.Trainer are Lightning's to check."""
    unknown: list[str] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if not isinstance(known, dict) or key not in known:
            unknown.append(dotted)
        elif isinstance(value, dict) and dotted != "trainer.lightning":
            unknown += unknown_keys(value, known[key], f"{dotted}.")
    return unknown


def all_keys(tree: Any, prefix: str = "") -> list[str]:
    """Every dotted key of nested containers."""
    keys: list[str] = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        keys += [f"{prefix}{key}", *all_keys(value, f"{prefix}{key}.")]
    return keys


def suggestion(key: str, known: Any) -> str:
    """ "; did you mean ...?" for a misspelt dotted key, empty where nothing is near."""
    candidates = all_keys(known)
    same_leaf = [name for name in candidates if name.split(".")[-1] == key.split(".")[-1]]
    close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6) or same_leaf[:1]
    return f"; did you mean {close[0]}?" if close else ""


def one_line(error: Exception, config_name: str, overrides: list[str]) -> str:
    """What is wrong and what to do, from the chain of exceptions that Hydra and OmegaConf raise."""
    cause = error.__cause__ or error
    if "Ambiguous value" in str(error):
        swept = re.sub(r"(?s).*Ambiguous value for argument '([^=]*)=.*", r"\1", str(error))
        return f"{swept}: several values make a sweep, with -m; a list is {swept}=[a,b], a text '{swept}=\"a, b\"'"
    if isinstance(error, OverrideParseException):
        wrong = error.override or ""
        name, equals, value = wrong.partition("=")
        fix = f"quote the value: '{name}=\"{value}\"'" if equals else f"settings are key=value, not '{wrong}'"
        return f"cannot read {wrong}: {fix}"
    if isinstance(error, MissingMandatoryValue) or isinstance(cause, MissingMandatoryValue):
        key = getattr(cause, "full_key", None) or getattr(error, "full_key", "")
        return f"{key} is needed and not set: give {key}=..."
    group = getattr(error, "missing_cfg_file", None)
    options = getattr(error, "options", None)
    if group and options is not None:
        name, _, choice = str(group).rpartition("/")
        close = difflib.get_close_matches(choice, options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name}={choice}: there is no such option; {hint}options: {', '.join(options)}"
    full_key = str(getattr(cause, "full_key", None) or "")
    lines = [line for line in str(cause).splitlines() if line.strip()]
    message = lines[0] if lines else type(cause).__name__
    if full_key and "not in" in message:
        with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
            groups = [item for item in overrides if item.split("=")[0].isidentifier() and "," not in item]
            groups = [item for item in groups if (find_folder("conf") / item.split("=")[0]).is_dir()]
            try:
                known: Any = OmegaConf.to_container(compose(config_name, groups), resolve=False)
            except (HydraException, OmegaConfBaseException):
                known = {}
        option_group, _, option = full_key.partition(".")
        close = difflib.get_close_matches(option, known.get(option_group) or ())
        if not close and config_name in ("sample", "evaluate") and option_group in ("sampler", "guidance", "metrics"):
            advice = f"choose one with {option_group}=..., or write +{full_key}=..."
            return f"{full_key}: not a setting of every {option_group}; {advice}"
        return f"unknown key '{full_key}'{suggestion(full_key, known)}"
    return f"{full_key}: {message}" if full_key and full_key not in message else message


def quiet_environment() -> None:
    """What libraries read from the environment when they are imported."""
    defaults: dict[str, Any] = {"HYDRA_FULL_ERROR": "1", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
