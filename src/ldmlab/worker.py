"""What each process of a run on several devices runs: `python -m ldmlab.worker JOB`, started by launching.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ldmlab.errors import traced
from ldmlab.jobs import exit_code
from ldmlab.tasks import run_task


def main(path: Path) -> int:
    """Runs the job of the file `path`, and leaves the result beside it."""
    result: dict[str, Any] = {"exit_code": 0, "message": "", "value": None}
    try:
        result["value"] = run_task(**json.loads(path.read_text()))
    except Exception as raised:
        failure = traced(raised)
        result |= {"exit_code": exit_code(failure), "message": str(failure)}
    (path.parent / f"result-{int(os.environ['RANK']):05d}.json").write_text(json.dumps(result))
    return result["exit_code"]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
