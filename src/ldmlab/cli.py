"""The command line. Nothing heavy is imported here: `--help` and a wrong key answer before torch would have loaded."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from ldmlab.errors import UserError, fail, for_the_user

COMMANDS = {
    "demo": "the whole main job in minutes: pixels against f4 on embedded data, and the page that compares them",
    "train-vae": "stage one: train an autoencoder",
    "train-ldm": "stage two: train a diffusion model in its latent space (and the autoencoder, if there is none)",
    "sample": "images from a trained run: from=runs/… label=3 n=16",
    "evaluate": "quality and speed of a trained run: from=runs/… sampler=ddim sampler.steps=10,20,50 -m",
    "score": "any folder of images against a data set: images=FOLDER data=cifar10",
    "reference": "features of real images that runs are compared with: data=cifar10",
    "plan": "parameters, memory and GPU-hours of a run, before it is started: the settings of train-ldm",
    "compare": "table, plots and page from local runs: runs/…",
}

HELP = """usage: ldmlab COMMAND [key=value ...]

{commands}

Examples
  ldmlab train-ldm data=imagefolder data.path=photos data.image_size=64 downsampling=f8
  ldmlab train-ldm -m downsampling=f1,f2,f4,f8        both stages for each factor, then the comparison
  ldmlab train-ldm experiment=cifar10                 a study from experiments/
  ldmlab evaluate --reproduce runs/demo/ldm-f4/summary.json
  ldmlab COMMAND --help                               its settings; `--cfg job` prints the configuration

Settings are files in conf/, each with comments. Documentation: docs/architecture.md"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake ends in one line and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = run(arguments)
    except UserError as error:
        code = fail(str(error))
    except KeyboardInterrupt:
        code = fail("interrupted", 130)
    except OSError as error:
        known = for_the_user(error)
        if not isinstance(known, UserError):
            raise
        code = fail(str(known))
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Dispatches to a command and returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())))
        return 0
    if arguments[0] == "--version":
        from ldmlab import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS)
        hint = f"did you mean {' or '.join(close)}?" if close else "commands: " + ", ".join(COMMANDS)
        raise UserError(f"no command '{command}'; {hint}")
    if command == "compare":
        return run_compare(rest)
    if command == "demo":
        # the demo is a study like any other
        command, rest = "train-ldm", ["experiment=demo", *rest]

    if command == "evaluate":
        rest = with_reproduce(rest)

    from ldmlab.hydra_app import run_hydra

    return run_hydra(command, rest)


def with_reproduce(arguments: list[str]) -> list[str]:
    """`--reproduce PATH` as the setting that it is."""
    if "--reproduce" in arguments:
        place = arguments.index("--reproduce")
        if place + 1 == len(arguments):
            raise UserError("--reproduce: which summary? --reproduce runs/STUDY/NAME/summary.json")
        arguments = [*arguments[:place], f"--reproduce={arguments[place + 1]}", *arguments[place + 2 :]]
    return [
        "reproduce='" + item.partition("=")[2].replace("'", "\\'") + "'" if item.startswith("--reproduce=") else item
        for item in arguments
    ]


def run_compare(arguments: list[str]) -> int:
    """`ldmlab compare PATH... [--output FILE] [--figures FOLDER] [--wandb ENTITY/PROJECT]`."""
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser("ldmlab compare", description="Table, plots and an HTML page from local runs.")
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("runs")], help="runs, studies or the runs folder")
    parser.add_argument("--output", type=Path, default=None, help="the page to write (default: beside the runs)")
    parser.add_argument("--figures", type=Path, default=None, help="a folder for the plots as PNGs")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", default=None, help="also save a workspace there")
    options = parser.parse_args(arguments)

    from ldmlab.tasks.compare import compare

    compare(options.paths, options.output, options.wandb, options.figures)
    return 0
