"""Captions, read by a text encoder that others have trained."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.conditioners.text import Caption
from ldmlab.errors import UserError
from ldmlab.pretrained.digests import digest_of
from ldmlab.pretrained.text_encoders import load_text_encoder
from ldmlab.settings import require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

KEPT_IN_MEMORY = 10**9  # bytes


class PretrainedText(Caption):
    """The token states of a frozen encoder, projected: of each token, since a pooled vector no longer knows which word
    stood left of which (Saharia et al. 2022, section 2.1).

    A caption is read once and remembered. The encoder is no part of the model's weights; its digest is, so that a
    model is never told by another one.

    Args:
        data, latents: as for every conditioner.
        encoder: "minilm", "clip", "t5", a folder or an address on the Hugging Face Hub.
        revision: of an address.
        width: of tokens.
        length: tokens that are read of a caption; what is longer is cut off.
        cache: folder where read captions are kept for other runs; None keeps them in memory alone.
    """

    encoder_sha256: Tensor

    def __init__(
        self,
        data: DataInfo,
        latents: LatentInfo,
        encoder: str = "minilm",
        revision: str | None = None,
        width: int = 256,
        length: int = 64,
        cache: str | None = None,
    ):
        super().__init__()
        require_counts(width=width, length=length)
        self.reader = Reader(encoder, revision, length, None if cache is None else Path(cache))
        self.token_width = width
        self.project = nn.Sequential(nn.LayerNorm(self.reader.width), nn.Linear(self.reader.width, width))
        self.register_buffer("encoder_sha256", torch.tensor(list(bytes.fromhex(self.reader.digest)), dtype=torch.uint8))

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `caption`, B strings: `tokens` (B, T, width) with their mask."""
        device = self.encoder_sha256.device
        states, mask = self.reader.read(self.heard(batch, drop), device)
        return Conditioning(tokens=self.project(states), token_mask=mask)

    def prepare(self, batches: Callable[[], Iterable[Batch]]) -> tuple[float, float]:
        """Reads all captions of the training data, or finds them read."""
        told = set()
        for batch in batches():
            self.reader.states(list(dict.fromkeys(batch["caption"])))
            told |= set(batch["caption"])
        costs = [self.reader.cost[caption] for caption in told]
        return sum(wall for wall, _ in costs), sum(cpu for _, cpu in costs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        trained = state_dict.get(f"{prefix}encoder_sha256")
        if trained is not None and not torch.equal(trained.cpu(), self.encoder_sha256.cpu()):
            raise UserError(
                f"conditioner.text_pretrained.encoder: {self.reader.name} is not the encoder that this model was "
                f"trained with, whose weights have SHA-256 {bytes(trained.tolist()).hex()}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class Entry(NamedTuple):
    """The states float16 (T, width) of a caption, and the wall and CPU seconds that reading it took."""

    states: Tensor
    seconds: float
    cpu_seconds: float


class Reader:
    """A frozen encoder that remembers what it has read. No `nn.Module`: it is in no checkpoint and in no average."""

    def __init__(self, name: str, revision: str | None, length: int, cache: Path | None):
        self.name = name
        encoder = load_text_encoder(name, revision, "conditioner.text_pretrained.encoder")
        self.network, self.tokenizer, self.width, longest = encoder
        self.length = min(length, longest)
        self.digest = digest_of_both(self.network, self.tokenizer)
        self.cost: dict[str, tuple[float, float]] = {}
        self.memory: dict[str, Tensor] = {}
        self.bytes_kept = 0
        file = f"{self.digest[:24]}-{self.length}.sqlite"
        self.disk = None if cache is None else CaptionFile(cache / file, self.width)

    def __deepcopy__(self, memo: Any) -> Reader:
        return self  # the moving average of a model reads with the same eyes

    def read(self, captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """States (B, T, width) of the tokens of B captions, T being those of the longest, and where there are any."""
        known = self.states(list(dict.fromkeys(captions)))
        rows = [known[caption] for caption in captions]
        states = torch.zeros(len(rows), max(map(len, rows)), self.width)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for place, row in enumerate(rows):
            states[place, : len(row)] = row
            mask[place, : len(row)] = True
        return states.to(device), mask.to(device)

    def states(self, captions: list[str]) -> dict[str, Tensor]:
        """The states float16 (T, width) of different captions, each with as many tokens as it has."""
        known = {caption: self.memory[caption] for caption in captions if caption in self.memory}
        new = [caption for caption in captions if caption not in known]
        found = self.disk.get(new) if self.disk is not None and new else {}
        read = {caption: self.timed(caption) for caption in new if caption not in found}
        if self.disk is not None and read:
            self.disk.put(read)
        for caption, entry in (found | read).items():
            self.cost[caption] = (entry.seconds, entry.cpu_seconds)
            if self.bytes_kept < KEPT_IN_MEMORY:
                self.memory[caption] = entry.states
                self.bytes_kept += entry.states.nbytes
            known[caption] = entry.states
        return known

    def timed(self, caption: str) -> Entry:
        """A caption read now, and what that took."""
        wall, cpu = time.perf_counter(), time.process_time()
        states = self.encode(caption)
        return Entry(states, time.perf_counter() - wall, time.process_time() - cpu)

    @torch.inference_mode()
    def encode(self, caption: str) -> Tensor:
        """The states float16 (T, width) of a caption.

        Alone and in full precision: in a batch they would depend, in their last digits, on the captions beside it.
        """
        told = self.tokenizer([caption], truncation=True, max_length=self.length, return_tensors="pt")
        with torch.autocast("cpu", enabled=False):
            output = self.network(input_ids=told["input_ids"], attention_mask=told["attention_mask"])
        return output.last_hidden_state[0].to(torch.float16)


def digest_of_both(network: nn.Module, tokenizer: Any) -> str:
    """SHA-256 of an encoder's weights and of how its tokenizer takes captions apart."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if fast is None else fast.to_str()
    return hashlib.sha256(f"{digest_of(network)}{rules}".encode()).hexdigest()


class CaptionFile:
    """States of captions in a file that several processes may read and write; it is safe to delete."""

    def __init__(self, path: Path, width: int):
        self.path, self.width = path, width
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"conditioner.text_pretrained.cache: cannot use {path} ({error}); null does without"
            raise UserError(message) from error
        with self.connection() as file:
            columns = "caption TEXT PRIMARY KEY, value BLOB, seconds REAL, cpu_seconds REAL"
            file.execute(f"CREATE TABLE IF NOT EXISTS states ({columns}) WITHOUT ROWID")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that waits for others; what is done with it is kept. Raises UserError where it fails."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            message = f"conditioner.text_pretrained.cache: {self.path} failed ({error}); null does without"
            raise UserError(message) from error

    def get(self, captions: Sequence[str]) -> dict[str, Entry]:
        """Those captions that are there."""
        found: dict[str, Entry] = {}
        with self.connection() as file:
            for caption in captions:
                row = file.execute("SELECT value, seconds, cpu_seconds FROM states WHERE caption = ?", (caption,))
                entry = row.fetchone()
                if entry is not None:
                    values = np.frombuffer(entry[0], dtype=np.float16).reshape(-1, self.width)
                    found[caption] = Entry(torch.from_numpy(values.copy()), *entry[1:])
        return found

    def put(self, entries: dict[str, Entry]) -> None:
        """Adds captions."""
        rows = [(caption, e.states.numpy().tobytes(), e.seconds, e.cpu_seconds) for caption, e in entries.items()]
        with self.connection() as file:
            file.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", rows)
