"""What a user runs."""

from __future__ import annotations

from typing import Any


def run_task(command: str, config: dict[str, Any], overrides: list[str]) -> float | None:
    """Runs a command on its resolved configuration; returns the run's headline value, for sweepers that optimise it.

    Cheap checks come before the import of the task, which loads torch.
    """
    from ldmlab.launching import adopt_slurm, processes_to_start, run_in_processes
    from ldmlab.memory import keep_freed_memory
    from ldmlab.tasks import checks

    keep_freed_memory()
    adopt_slurm()
    if command in ("train-vae", "train-ldm"):
        if command == "train-vae":
            checks.check_vae(config)
        else:
            checks.check_ldm(config, overrides)
        if (count := processes_to_start(config)) > 1:
            return run_in_processes(command, config, overrides, count)
        from ldmlab.tasks.train_ldm import train_ldm
        from ldmlab.tasks.train_vae import train_vae

        train = train_vae if command == "train-vae" else train_ldm
        return headline_value(train(config, overrides).summary or {})
    if command == "sample":
        from ldmlab.tasks.sample import sample

        sample(config)
        return None
    if command == "evaluate":
        from ldmlab.tasks.evaluate import evaluate

        return headline_value(evaluate(config))
    if command == "reference":
        from ldmlab.tasks.reference import make_reference

        make_reference(config)
        return None
    if command == "plan":
        checks.check_plan(config, overrides)
        from ldmlab.tasks.plan import plan

        plan(config)
        return None
    if command == "score":
        from ldmlab.tasks.score import score

        return headline_value({"metrics": score(config)})
    raise ValueError(f"no task for command {command}")


def headline_value(summary: dict[str, Any]) -> float | None:
    """The kernel distance of generated images, or of reconstructions where nothing is generated.

    The Fréchet distance where no kernel distance was measured.
    """
    from ldmlab.tasks.comparison.rows import RECONSTRUCTION, REFERENCES, is_floor

    for distance in ("/kid", "/fd", "/fid"):
        values = {
            name.split("@")[1]: metric["value"]
            for name, metric in summary.get("metrics", {}).items()
            if distance in name and "@" in name
        }
        generated = [value for detail, value in values.items() if not is_floor(detail, *REFERENCES)]
        reconstructed = [value for detail, value in values.items() if is_floor(detail, RECONSTRUCTION)]
        if found := generated or reconstructed:
            return found[0]
    return None
