"""Tables from anywhere: a file, a folder, what `save_to_disk` wrote, a dataset on the Hub."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, load_dataset_builder, load_from_disk
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from pyarrow.dataset import ParquetFragmentScanOptions

from persyn_datasets.config.errors import InputError
from persyn_datasets.data.text_files import WrittenCsv, WrittenJson

_FORMATS: dict[str, tuple[type[DatasetBuilder], dict[str, Any]]] = {
    ".jsonl": (WrittenJson, {}),
    ".ndjson": (WrittenJson, {}),
    ".json": (WrittenJson, {}),
    ".csv": (WrittenCsv, {}),
    ".tsv": (WrittenCsv, {"delimiter": "\t"}),
    ".parquet": (Parquet, {}),
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def write_tables(folder: Path, **splits: Dataset) -> None:
    """Write each split as `<folder>/<split>-00000-of-00001.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def load_table(
    path: str,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
    texts: Sequence[str] = (),
) -> Any:
    """Load a Hub dataset, a folder, or a file (globs too): .jsonl, .ndjson, .json, .csv, .tsv or
    .parquet, also compressed by gzip, bzip2, xz or zstd.

    Texts stay as they are written: every cell of a CSV is text, and so is a column of a JSON file
    whose rows do not agree on a type. Of other formats the types are those of the file.

    Args:
        split: of a file `train`, its only one, or a part of it, e.g. `train[:100]`. (`test` means
            the same.)
        streaming: give an `IterableDataset`: rows are read as they are needed.
        texts: columns that are text whatever their cells look like.

    Raises:
        InputError: nothing is there, the format is unknown, or a file cannot be read as what its
            name says.
    """
    if streaming and "[" in split:
        raise InputError(
            f"{path}: a stream cannot be sliced, and split is {split!r}; leave out --streaming, or "
            "name a whole split."
        )
    with plain_errors(path):
        if files := _files(path):
            builder: Any = _builder_of(path, files, tuple(texts))
            split = "train" + split.removeprefix("test") if split.startswith("test") else split
        elif _is_saved_to_disk(Path(path)):
            return _saved_to_disk(path, split, streaming)
        else:
            builder = _builder_of_folder_or_hub(path, name, revision, tuple(texts))
        if isinstance(builder, Parquet) and not (streaming and _is_remote(builder)):
            _read_row_group_by_row_group(builder)
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        if not any(of_split.num_examples for of_split in builder.info.splits.values()):
            raise InputError(f"{path}: there are no rows; expected prompts.")
        return builder.as_dataset(split=split)


@contextmanager
def plain_errors(path: str) -> Iterator[None]:
    """What goes wrong while `path` is read is an `InputError`, in words."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error)) from error.__cause__
    except FileNotFoundError as error:  # DatasetNotFoundError and EmptyDatasetError are of it
        raise InputError(
            f"{path}: [ and ] in a folder's name are read as a glob pattern; rename it."
            if "[" in path
            else f"{path}: no such dataset on the Hub, and no such file or folder with data "
            f"({error})."
        ) from error
    except ConnectionError as error:
        raise InputError(
            f"{path}: no such file or folder here, and the Hub cannot be reached ({error})."
        ) from error
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise InputError(str(error.__cause__)) from error
        raise InputError(
            f"{path}: cannot be read ({error.__cause__ or error}); check its format."
        ) from error
    except ValueError as error:  # also Arrow's
        raise InputError(f"{path}: {error}") from error
    except UnicodeError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected text in UTF-8.") from error


def _files(path: str) -> list[Path]:
    """The local files that a path or pattern names; none if it is for a folder or the Hub.

    Raises:
        InputError: its name says that it is a file, and there is none, or none that can be read.
    """
    suffix = _suffix(Path(path))
    if suffix not in _FORMATS or Path(path).is_dir():
        if Path(path).is_file():
            shown = suffix or "without extension"
            raise InputError(
                f"{path}: unknown format {shown!r}; expected {', '.join(_FORMATS)}, also with "
                f"{', '.join(_COMPRESSED)}."
            )
        return []
    if Path(path).is_file():  # first: a name may hold what a pattern holds
        return [Path(path).absolute()]
    files = sorted(file.absolute() for file in Path(path).parent.glob(Path(path).name))
    if not files:
        raise InputError(f"{path}: no such file.")
    return files


def _suffix(path: Path) -> str:
    path = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return path.suffix.lower()


def _builder_of(path: str, files: list[Path], texts: tuple[str, ...]) -> DatasetBuilder:
    kind, options = _FORMATS[_suffix(Path(path))]
    if kind is not Parquet:
        options = options | {"texts": texts}
    for file in files:
        _check_text(file, text=kind is not Parquet)
    contents = [(content_of(file),) for file in files]
    data_files = DataFilesDict({"train": DataFilesList([str(f) for f in files], contents)})
    return kind(
        dataset_name="table",
        hash=f"datasets-{datasets.__version__}",
        data_files=data_files,
        **options,
    )


def _builder_of_folder_or_hub(
    path: str, name: str | None, revision: str | None, texts: tuple[str, ...]
) -> DatasetBuilder:
    """The builder that `datasets` takes, or ours with the files that it found."""
    builder = load_dataset_builder(path, name, revision=revision)
    ours = _ours(builder)
    if ours is None:
        return builder
    kind, options = ours
    declared = builder.info.features or {}
    texts += tuple(k for k, v in declared.items() if v == datasets.Value("string"))
    return kind(
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=builder.hash,
        base_path=builder.base_path,
        data_files=_by_content(builder.config.data_files),
        texts=texts,
        **options,
    )


def _ours(builder: DatasetBuilder) -> tuple[type[DatasetBuilder], dict[str, Any]] | None:
    """Our reader for these files; None: their format or settings are another's."""
    for theirs, ours in ((Json, WrittenJson), (Csv, WrittenCsv)):
        if isinstance(builder, theirs):
            archives = any(str(f).endswith(".zip") for f in _all_files(builder.config.data_files))
            plain = theirs.BUILDER_CONFIG_CLASS()
            known = ("name", "version", "data_dir", "data_files", "description", "sep", "delimiter")
            same = all(
                getattr(builder.config, f.name) == getattr(plain, f.name)
                for f in fields(plain)
                if f.name not in known
            )
            if archives or not same:
                return None
            return ours, {"delimiter": builder.config.sep} if ours is WrittenCsv else {}
    return None


def _is_remote(builder: DatasetBuilder) -> bool:
    return any("://" in file for file in _all_files(builder.config.data_files))


def _read_row_group_by_row_group(builder: Parquet) -> None:
    """Arrow fetches all of a Parquet file in advance and keeps it until the end, which pays where
    each request costs a journey. On a disk it is as much memory as the file is large.
    """
    if builder.config.fragment_scan_options is None:
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)


def _all_files(data_files: DataFilesDict) -> list[str]:
    return [file for of_split in data_files.values() for file in of_split]


def _by_content(data_files: DataFilesDict) -> DataFilesDict:
    """The same files; local ones are known again by what they hold, not by their time stamp."""
    known = {}
    for split, files in data_files.items():
        origins = [
            (content_of(Path(file)),) if Path(file).is_file() else origin
            for file, origin in zip(files, files.origin_metadata, strict=True)
        ]
        known[split] = DataFilesList(list(files), origins)
    return DataFilesDict(known)


def content_of(file: Path) -> str:
    """A hash of what the file holds; computed again only if the file was written to."""
    s = file.stat()
    return _content_of(file, (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))


@lru_cache(maxsize=4096)
def _content_of(file: Path, written: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def _check_text(file: Path, text: bool) -> None:
    """Raises `InputError` for an empty file, and for one that is not the text its name says."""
    with file.open("rb") as stream:
        first = stream.read(8)
    if not first:
        raise InputError(f"{file}: the file is empty; expected prompts.")
    if not text or file.suffix.lower() in _COMPRESSED:
        return
    for magic, kind in _MAGIC.items():
        if first.startswith(magic):
            raise InputError(f"{file}: this is a {kind} file; expected text, as its name says.")
    if first.startswith(_UTF16):
        raise InputError(
            f"{file}: line 1 is UTF-16, not UTF-8; convert it, e.g. "
            f"`iconv -f utf-16 -t utf-8 {file}`."
        )


def _is_saved_to_disk(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved_to_disk(path: str, split: str, streaming: bool) -> Any:
    """What `save_to_disk` wrote: one dataset, its only split, or a dictionary of them."""
    saved = load_from_disk(path)
    splits = {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    if split.startswith("test") and "test" not in splits and len(splits) == 1:
        split = "train" + split.removeprefix("test")
    lengths = {key: len(rows) for key, rows in splits.items()}
    if split.split("[")[0] not in lengths and "+" not in split:
        raise InputError(f"{path}: there is no split {split!r}; it has {', '.join(lengths)}.")
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    chosen = datasets.concatenate_datasets(
        [
            splits[part.splitname].select(
                range(part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
            )
            for part in parts
        ]
    )
    return chosen.to_iterable_dataset() if streaming else chosen
