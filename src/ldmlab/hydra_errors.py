"""Hydra's and OmegaConf's errors in one line each, with what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldmlab.errors import UserError

PACKAGE = Path(__file__).parent


def find_folder(name: str) -> Path:
    """`conf` or `experiments`: at the top of a checkout, or the copy inside an installed package."""
    for folder in (PACKAGE.parents[1] / name, PACKAGE / name):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder {name}/ is missing beside {PACKAGE}: install the package again")


def users_folder(arguments: Sequence[str]) -> list[str]:
    """The override by which Hydra also searches the folder of `--config-dir`, if that is among the arguments."""
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = value or next(iter(arguments[place + 1 :]), "")
            return [f"hydra.searchpath=['file://{Path(folder).absolute()}']"]
    return []


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
            groups = [*users_folder(overrides), *groups]
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
