"""Captions, read by a transformer that is trained with the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.conditioners.transformer import token_transformer
from ldmlab.settings import SettingError, require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

BYTES = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
"""The characters that stand for the 256 bytes where captions are taken apart."""

CAPTIONS_COUNTED = 100_000
"""Captions of the training data, from its beginning, that a vocabulary is made of."""


class Caption(Conditioner):
    """Common to all readers of captions: an empty caption says nothing, so what is dropped is replaced by one."""

    needs = told = ("caption",)

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """There must be captions."""
        return None if data.has_captions else f"data '{data.name}' has no captions"

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """Empty captions."""
        return {"caption": [""] * count}

    @staticmethod
    def heard(batch: Batch, drop: Tensor | None) -> list[str]:
        """The captions of a batch, those of dropped samples empty."""
        captions = batch["caption"]
        return (
            captions
            if drop is None
            else ["" if gone else text for text, gone in zip(captions, drop.tolist(), strict=True)]
        )


class Text(Caption):
    """A transformer over the tokens of a caption, trained with the model (Rombach et al. 2022, section 4.3.1).

    Tokens are bytes, and pairs of tokens that are frequent in the captions of the training data (byte-pair encoding,
    Sennrich et al. 2016): frequent words become one token, and any language can be read without a download.
    A convolution looks at each token's neighbours first, so that the transformer has pieces of words to work with.

    Args:
        data, latents: as for every conditioner.
        width: of tokens.
        layers, heads: of the transformer.
        vocabulary: different tokens, at most; 256 are bytes alone.
        length: tokens that are read of a caption, the one at its start included; what is longer is cut off.
    """

    merges: Tensor

    def __init__(
        self,
        data: DataInfo,
        latents: LatentInfo,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        vocabulary: int = 2048,
        length: int = 128,
    ):
        super().__init__()
        require_counts(length=length)
        if vocabulary < len(BYTES):
            raise SettingError(f"vocabulary: {vocabulary} is fewer than there are bytes, {len(BYTES)}")
        self.token_width, self.length, self.vocabulary = width, length, vocabulary
        self.start, self.padding = vocabulary, vocabulary + 1
        self.transformer = token_transformer(width, layers, heads)
        self.embedding = nn.Embedding(vocabulary + 2, width, padding_idx=self.padding)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.neighbours = nn.Conv1d(width, width, 5, padding=2)
        # the pairs of tokens that are joined, in their order; -1 where captions had fewer
        self.register_buffer("merges", torch.full((vocabulary - len(BYTES), 2), -1))
        self.pairs = BytePairs()

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `caption`, B strings: `tokens` (B, T, width) with their mask, T as long as need be."""
        ids, mask = self.tokenize(self.heard(batch, drop))
        embedded = self.embedding(ids)
        # padding is zero before the convolution, so that the end of a caption looks the same in any batch
        near = self.neighbours(embedded.transpose(1, 2)).transpose(1, 2)
        tokens = embedded + F.gelu(near) + self.position[: ids.shape[1]]
        return Conditioning(tokens=self.transformer(tokens, src_key_padding_mask=~mask), token_mask=mask)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers int64 (B, T), and where there are tokens bool (B, T), for B captions."""
        rows = [[self.start, *self.pairs.numbers(caption)[: self.length - 1]] for caption in captions]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (longest - len(row)) for row in rows], device=self.position.device)
        return ids, ids != self.padding

    def prepare(self, batches: Callable[[], Iterable[Batch]]) -> tuple[float, float]:
        """Finds the frequent pairs in the training data's captions."""
        if not len(self.merges):
            return 0.0, 0.0
        captions = list(islice(chain.from_iterable(batch["caption"] for batch in batches()), CAPTIONS_COUNTED))
        wall, cpu = time.perf_counter(), time.process_time()
        found = self.pairs.find(captions, self.vocabulary)
        self.merges.fill_(-1)[: len(found)] = torch.tensor(found, dtype=torch.long).view(-1, 2)
        return time.perf_counter() - wall, time.process_time() - cpu

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.pairs.learn([pair for pair in self.merges.tolist() if min(pair) >= 0])


class BytePairs:
    """Takes captions apart into bytes and pairs of tokens. A model and its moving average share one."""

    def __init__(self) -> None:
        self.learn([])

    def __deepcopy__(self, memo: Any) -> BytePairs:
        return self

    def learn(self, pairs: Sequence[Sequence[int]]) -> None:
        """Joins pairs of token numbers, in this order. Each gives the next number, from 256 on, to what is new."""
        names = list(BYTES)
        numbers = {name: number for number, name in enumerate(names)}
        joined = []
        for left, right in pairs:
            joined.append((names[left], names[right]))
            token = names[left] + names[right]
            if token not in numbers:
                numbers[token] = len(names)
                names.append(token)
        self.tokenizer = byte_tokenizer(models.BPE(numbers, joined))

    def find(self, captions: Iterable[str], vocabulary: int) -> list[tuple[int, int]]:
        """Learns the most frequent pairs of captions, until there are as many tokens as `vocabulary`; returns them."""
        found = byte_tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, min_frequency=2, initial_alphabet=list(BYTES), show_progress=False
        )
        found.train_from_iterator(captions, trainer)
        model = json.loads(found.to_str())["model"]
        numbers = model["vocab"]
        # two pairs can give the same token, so that there may be more of them than tokens
        pairs = [(numbers[left], numbers[right]) for left, right in model["merges"]][: vocabulary - len(BYTES)]
        self.learn(pairs)
        return pairs

    def numbers(self, caption: str) -> list[int]:
        """Numbers of the tokens of a caption."""
        return list(self.tokenizer.encode(caption).ids) if caption else []


def byte_tokenizer(model: models.BPE) -> Tokenizer:
    """A tokenizer whose tokens lie within a word and its blank before, each byte being a character of `BYTES`."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer
