"""One reader a format. See `records.Reader`."""

from importlib import import_module

from lst_prep.importing.records import Reader

_MODULES = {
    "parquet": "tables",
    "arrow": "tables",
    "webdataset": "samples",
    "npy": "samples",
    "jsonl": "lines",
    "nemo": "lines",
    "lhotse": "lhotse",
}


def reader_of(kind: str) -> Reader:
    """The reader of a format."""
    module = import_module(f"lst_prep.importing.readers.{_MODULES[kind]}")
    reader: Reader = module.READERS[kind]
    return reader
