"""Digests that change whenever files, or the way they are prepared, change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WHOLE_CONTENT_BYTES = 1 << 30
"""Files of up to this size together are hashed in full: about one second. Larger sets are sampled."""

SAMPLED_FILES = 10_000
"""Above this number of files even reading their ends takes minutes on a network disk; sizes and times must do."""

SAMPLE_BYTES = 1 << 16


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 (first 32 digits) of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def digest_files(files: Iterable[Path], root: Path) -> str:
    """Digest of names (relative to `root`, so that a folder may move), sizes and contents of `files`.

    Beyond `WHOLE_CONTENT_BYTES` together, a file counts with its size, time of modification, first and last 64 KiB.
    """
    paths = sorted(files)
    states = [os.stat(path) for path in paths]
    whole = sum(state.st_size for state in states) <= WHOLE_CONTENT_BYTES
    sampled = len(paths) <= SAMPLED_FILES
    total = hashlib.sha256()
    for path, state in zip(paths, states, strict=True):
        total.update(f"{path.relative_to(root).as_posix()}\0{state.st_size}\0".encode())
        if not whole:
            total.update(f"{state.st_mtime_ns}\0".encode())
        if whole or sampled:
            with open(path, "rb") as stream:
                if whole:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
                else:
                    total.update(stream.read(SAMPLE_BYTES))
                    stream.seek(max(0, state.st_size - SAMPLE_BYTES))
                    total.update(stream.read(SAMPLE_BYTES))
    return total.hexdigest()[:32]
