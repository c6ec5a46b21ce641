"""`ldmlab reference`: the features that runs on this data will be compared with, made once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldmlab.metrics import processes
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import say, track
from ldmlab.tasks.quality import Metrics, quality_of

Config = dict[str, Any]


def make_reference(config: Config) -> Metrics:
    """Makes the reference and the floor of real images, and returns the distances between the two.

    `output` also writes the statistics as an .npz file of ADM's kind, for other programs or for machines without data.
    """
    checks.check_measuring(config)
    checks.check_metrics(config)
    checks.check_data_path(config)
    with processes.from_environment():
        quality = quality_of(config, build.build_data(config), build.best_device())
        reference = quality.reference(track)
        floors = measure.measure_real(quality, track)
        if processes.rank() == 0:
            kept = quality.reference_file or quality.reference_folder
            say(f"{reference.title}, {reference.samples:,} images, {quality.extractor.name}: {kept}")
            say(f"floor: {measure.headline(floors, 'real')}")
            if config["output"] is not None:
                path = Path(config["output"])
                reference.write_npz(path, json.dumps(quality.manifest(track)))
                say(f"statistics: {path}")
    return floors
