"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmlab.data.huggingface import HuggingFaceImages

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, DatasetDict, Features


@dataclass(kw_only=True, eq=False)
class HubImages(HuggingFaceImages):
    """A data set of the Hugging Face Hub with a column of images.

    Attributes:
        name: its address, "owner/name"; a local folder in the Hub's layout works too.
        config: its configuration, where it has several.
        revision: branch, tag or commit; None takes the newest.

    Gated data sets need `HF_TOKEN`; nodes without internet read what was downloaded before with `HF_HUB_OFFLINE=1`.
    The other options are those of `HuggingFaceImages`.
    """

    name: str
    config: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """The address."""
        return self.name

    @property
    def where(self) -> str:
        """The options that lead to the data set, for messages."""
        return f"data.name={self.name}" + (f" data.config={self.config}" if self.config else "")

    def _source(self) -> dict[str, Any]:
        cache_dir = str(Path(self.cache_dir).absolute() / "hub")
        return {"path": self.name, "name": self.config, "revision": self.revision, "cache_dir": cache_dir}

    @cached_property
    def _builder(self) -> DatasetBuilder:
        """What the Hub tells without a download of the images."""
        import datasets

        with self.readable():
            return datasets.load_dataset_builder(**self._source())

    @cached_property
    def _dataset(self) -> DatasetDict:
        import datasets

        with self.readable():
            return datasets.load_dataset(**self._source())

    @property
    def table_names(self) -> list[str]:
        """Splits that the data set's card lists; without a card they are known after the download."""
        return list(self._builder.info.splits or self._dataset)

    def features(self, table: str) -> Features:
        """Types of the columns, from the card or, without one, from the downloaded files."""
        return self._builder.info.features or self._dataset[table].features

    def content_digest(self) -> str:
        """The library's own names for this configuration and revision of the files."""
        return f"{self.name} {self._builder.config_id} {self._builder.hash}"

    def load_table(self, table: str) -> Dataset:
        """The rows, downloaded at first use."""
        return self._dataset[table]

    def describe_row(self, table: str, row: int, image: Any) -> str:
        """Split and row, counted from 0."""
        return f"{self.name} split {table} row {row}"
