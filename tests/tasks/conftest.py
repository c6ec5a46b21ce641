"""The real commands, in this process."""

import shutil

import pytest
from tiny import TINY_LDM, TINY_VAE

from ldmlab.cli import main


class CommandLine:
    """`ldmlab` in this process: exit code and what it said."""

    def __init__(self, folder, monkeypatch, capfd):
        self.folder, self.capfd = folder, capfd
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["ldmlab"])
        monkeypatch.setenv("WANDB_MODE", "offline")

    def __call__(self, *arguments):
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        self.said = self.capfd.readouterr()
        print(self.said.err)  # for the report of a failed test
        return stop.value.code

    def error(self, *arguments):
        """The one line with which a wrong command ends; checks that it is one, and the exit code."""
        code = self(*arguments)
        lines = [line for line in self.said.err.splitlines() if line.startswith("ldmlab: ")]
        assert code == 2, self.said.err
        assert len(lines) == 1, self.said.err
        return lines[0].removeprefix("ldmlab: ")


@pytest.fixture
def ldmlab(tmp_path, monkeypatch, capfd):
    return CommandLine(tmp_path, monkeypatch, capfd)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with `runs/t/vae-f4` and `runs/t/ldm-f4`, trained once for all tests; copy what you change."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["ldmlab"])
        for arguments in (
            ["train-vae", "study=t", "name=vae-f4", *TINY_VAE],
            ["train-ldm", "study=t", "name=ldm-f4", "autoencoder_from=runs/t/vae-f4", *TINY_LDM],
        ):
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == 0
    return folder


@pytest.fixture
def copy_of_trained(trained, ldmlab):
    shutil.copytree(trained / "runs", ldmlab.folder / "runs")
    return ldmlab.folder / "runs" / "t"
