"""The sources of a run, opened and checked, and who owns which of their documents."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megatron_lst.config.paths import told
from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.data.order import Ownership, assign_documents
from megatron_lst.data.remote import CacheFolder, is_remote, open_set
from megatron_lst.data.source import JoinedSets
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import rate_text

NO_SOURCES = (
    "data.sources: there are none; name one: {name: speech, kind: interleaved, shards: [data/speech], weight: 1}"
)
"""What is said of a run without data."""


@dataclass(frozen=True)
class Mixture:
    """Opened sources, their shares and who owns what; shared by the streams of a process."""

    config: Config
    sources: tuple[SourceConfig, ...]
    documents: tuple[JoinedSets, ...]
    ownership: tuple[Ownership, ...]
    fingerprint: str
    streams: int

    @classmethod
    def of(
        cls, config: Config, sources: Sequence[SourceConfig], documents: Sequence[JoinedSets], streams: int
    ) -> "Mixture":
        """Distribute the documents of opened sources over streams.

        Raises:
            UserError: no source, equal names, a weight that is not positive, or a source without documents.
        """
        names = [s.name for s in sources]
        if not sources:
            raise UserError(NO_SOURCES)
        if len(set(names)) < len(names):
            raise UserError(f"data.sources: names must differ, found {', '.join(names)}")
        for source in sources:
            if not source.weight > 0:
                raise UserError(f"data.sources: the weight of {source.name!r} must be positive, got {source.weight}")
        seed = config.data.seed
        owned = tuple(assign_documents(d, streams, seed, s.name) for s, d in zip(sources, documents, strict=True))
        parts = [f"{s.name} {s.kind} {s.weight} {d.fingerprint}" for s, d in zip(sources, documents, strict=True)]
        fingerprint = xxhash.xxh3_64_hexdigest("\n".join([str(seed), str(streams), *parts]))
        return cls(config, tuple(sources), tuple(documents), owned, fingerprint, streams)


def cache_folder(config: Config) -> Path:
    """Where decompressed and downloaded shards lie: `data.cache`, or `cache/` beside the run folder."""
    return Path(config.data.cache) if config.data.cache else Path(config.run.dir).parent / "cache"


def open_source(config: Config, source: SourceConfig) -> JoinedSets:
    """Open every shard set of a source, local or remote; no shard is read yet.

    Raises:
        UserError: a set is missing, of the wrong kind, or does not fit the vocabulary; names the source and the set.
    """
    if not source.shards:
        raise UserError(f"source {source.name!r} names no shard sets")
    limit = config.data.cache_gigabytes
    cache = CacheFolder(cache_folder(config), None if limit is None else int(limit * 1e9))
    opened = []
    for path in source.shards:
        # A remote that fails is reported as such, before the loader would report a stall.
        kind = source.kind if source.kind in ("text", "chat") else "speech"
        patience = 0.8 * config.data.stall_seconds
        with _named(source, path):
            shards = open_set(path, kind, cache, patience, always_cache=config.data.cache is not None)
        _fits_vocabulary(config, source, str(path), shards)
        opened.append(shards)
    return JoinedSets(opened)


@contextmanager
def _named(source: SourceConfig, path: str) -> Iterator[None]:
    """A set that cannot be opened is told with the name of its source, and with its path as it was written."""
    try:
        yield
    except UserError as error:
        said = str(error)
        said = told(path) + said.removeprefix(path) if said.startswith(path) else said
        raise UserError(f"source {source.name!r}: {said}") from None


def check_shard_sizes(config: Config) -> None:
    """Find missing and truncated shards of local sets before a run begins, not when it comes to them days later.

    Hashes are compared when a shard is opened. With `data.on_damage: skip` nothing is checked here.

    Raises:
        UserError: a set cannot be opened.
        DamagedDataError: a shard's file is not of its size; names it.
    """
    if config.data.on_damage == "skip":
        return
    for source in (*config.data.sources, *config.data.validation):
        for path in source.shards:
            if not is_remote(path):
                with _named(source, path):
                    shards = ShardSet.open(path)
                shards.check_sizes()


def _fits_vocabulary(config: Config, source: SourceConfig, path: str, shards: ShardSet) -> None:
    vocabulary, tokenizer, codec = config.vocabulary, shards.tokenizer, shards.codec
    found: dict[str, object] = {"tokenizer_size": tokenizer.size, "bos": tokenizer.bos, "eos": tokenizer.eos}
    if codec is not None:
        found |= {"speech_size": codec.size, "codebooks": list(codec.codebooks), "frame_rate": rate_text(codec.rate)}
        if vocabulary.codec:
            found["codec"] = codec.fingerprint
    wanted: dict[str, object] = {
        "tokenizer_size": vocabulary.pieces,
        "codebooks": list(vocabulary.codebook_sizes),
        "frame_rate": rate_text(vocabulary.rate),
    }
    for name, value in found.items():
        expected = wanted.get(name, getattr(vocabulary, name))
        if value != expected:
            if name == "tokenizer_size" and vocabulary.tokenizer_size is None:
                name = "text_size"
            raise UserError(
                f"source {source.name!r}: {path} was made with {name}={value}, the configuration says "
                f"vocabulary.{name}={expected}: set it to the data's, or name data of this tokenizer and codec"
            )


def open_mixture(config: Config, sources: Sequence[SourceConfig], streams: int) -> Mixture:
    """Open sources and distribute their documents over streams.

    Raises:
        UserError: see `open_source`; also when two sets were made with different tokenizers or codecs.
    """
    opened = [open_source(config, source) for source in sources]
    for what in ("tokenizer", "codec"):
        seen: dict[str, str] = {}
        for joined in opened:
            for shards in joined.sets:
                info = getattr(shards, what)
                if info is not None:
                    seen.setdefault(info.fingerprint, str(getattr(shards, "path", "?")))
        if len(seen) > 1:
            raise UserError(
                f"sources made with different {what}s cannot be mixed: {', '.join(seen.values())}; prepare them with "
                f"the same one (`lst doctor --shards SET` says what made a set)"
            )
    return Mixture.of(config, sources, opened, streams)
