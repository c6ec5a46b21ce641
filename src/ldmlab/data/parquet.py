"""Parquet files on the local disk."""

from __future__ import annotations

import glob
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldmlab.data.fingerprint import digest_files
from ldmlab.data.huggingface import HuggingFaceImages, no_progress_bars
from ldmlab.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, Features


@dataclass(kw_only=True, eq=False)
class ParquetImages(HuggingFaceImages):
    """Images in Parquet files: `train*.parquet`, `test*.parquet` or `val*.parquet` in one folder.

    A file belongs to the split that its name starts with, up to a character that is no letter:
    `train-00000-of-00002.parquet` is part of "train". Files in other subfolders than `data` are not read.

    Attributes:
        path: the folder, or one single file (then a part of it is held out for validation).

    The other options are those of `HuggingFaceImages`.
    """

    path: str

    @property
    def title(self) -> str:
        """Name of the folder or file."""
        return self._path.stem if self._path.suffix == ".parquet" else self._path.name

    @property
    def where(self) -> str:
        """The path."""
        return str(self._path)

    @property
    def _path(self) -> Path:
        return Path(self.path).expanduser().absolute()

    @cached_property
    def _files(self) -> list[Path]:
        path = self._path
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UserError(f"data.path: no such folder: {path} (give the folder that holds train*.parquet)")
        files = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
        if not files:
            raise UserError(f"data.path: no *.parquet files in {path} or its subfolder data; give the folder with them")
        return files

    @cached_property
    def table_names(self) -> list[str]:
        """First words of the files' names; for a single file, the training split."""
        if self._path.is_file():
            return [self.train_split]
        asked = [name for name in (self.train_split, self.val_split) if name]
        words = [match[0] for file in self._files if (match := re.match(r"[A-Za-z]+", file.stem))]
        # what the user names may be more than a word ("train_small"); it exists if files start with it
        return list(dict.fromkeys(name for name in (*words, *asked) if self._files_of(name)))

    def _files_of(self, table: str) -> list[Path]:
        if self._path.is_file():
            return self._files
        start = re.compile(re.escape(table) + r"(?![A-Za-z])")
        return [file for file in self._files if start.match(file.stem)]

    def _filled_files_of(self, table: str) -> list[Path]:
        files = [file for file in self._files_of(table) if self._footers[file].num_rows]
        if not files:
            raise UserError(f"data.path: no images in split {table!r} of {self.where}: its files have no rows")
        return files

    def content_digest(self) -> str:
        """Digest of the files of both splits."""
        files = {file for table in self._tables for file in self._files_of(table)}
        return digest_files(files, self._files[0].parent)

    @cached_property
    def _footers(self) -> dict[Path, pq.FileMetaData]:
        return {file: self._read(file, pq.read_metadata) for table in self._tables for file in self._files_of(table)}

    def _read(self, file: Path, read: Any, **options: Any) -> Any:
        try:
            return read(file, **options)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data.path: cannot read {file}, is it whole? download it again ({reason})") from error

    def features(self, table: str) -> Features:
        """Types of the columns, from the schema in the first file's footer."""
        import datasets

        schema = self._footers[self._filled_files_of(table)[0]].schema.to_arrow_schema()
        return datasets.Features.from_arrow_schema(schema)

    def column_parts(self, table: str, name: str) -> list[pa.Array]:
        """One column, read without the images beside it."""
        files = self._files_of(table)
        return [part for file in files for part in self._read(file, pq.read_table, columns=[name])[name].chunks]

    def load_table(self, table: str) -> Dataset:
        """The rows, converted once to Arrow files below `cache_dir`, which allow to read any row at once."""
        import datasets

        files = self._filled_files_of(table)  # the library cannot read files without rows
        key = digest_files(files, self._files[0].parent)
        with no_progress_bars():
            return datasets.Dataset.from_parquet(
                [glob.escape(str(file)) for file in files],
                split=re.sub(r"\W", "_", table),
                columns=self._columns.names,
                cache_dir=str(Path(self.cache_dir).absolute() / "arrow" / key),
            )

    def describe_row(self, table: str, row: int, image: Any) -> str:
        """Name of the file and row in it, counted from 0."""
        files = self._files_of(table)
        ends = list(accumulate(self._footers[file].num_rows for file in files))
        index = bisect_right(ends, row)
        return f"{files[index].name} row {row - (ends[index - 1] if index else 0)}"
