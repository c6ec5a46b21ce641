"""SHA-256 of files and of networks, by which the same weights are known again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(network: nn.Module) -> str:
    """SHA-256 of all weights, whatever they are called and whatever kind of file they came from."""
    tensors = [hashlib.sha256(t.contiguous().cpu().numpy().tobytes()).digest() for t in network.state_dict().values()]
    return hashlib.sha256(b"".join(sorted(tensors))).hexdigest()
