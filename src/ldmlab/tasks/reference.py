"""`ldmlab reference`: the features that runs on this data will be compared with, made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmlab import processes
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import say
from ldmlab.tasks.quality import Metrics, quality_of

Config = dict[str, Any]


def make_reference(config: Config) -> Metrics:
    """Makes the reference and the floor of real images, and returns the distances between the two.

    `output` also writes the statistics as an .npz file of ADM's kind, for other programs or for machines without data.
    """
    checks.check_measuring(config, nullable=())
    checks.check_metrics(config)
    checks.check_data_path(config)
    device = processes.join(build.best_device())
    quality = quality_of(config, build.build_data(config), device)
    reference = quality.reference()
    floors = measure.measure_real(quality)
    if processes.rank() == 0:
        kept = config["metrics"]["reference"] or quality.reference_folder
        count = "" if reference.samples is None else f", {reference.samples:,} images"
        say(f"{reference.title}{count}, {quality.extractor.name}: {kept}")
        say(f"floor: {measure.headline(floors, 'real')}")
        if config["output"] is not None:
            say(f"statistics: {reference.write_npz(Path(config['output']), quality.manifest())}")
    return floors
