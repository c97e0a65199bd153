"""A corpus on disk -> its manifest, and a list of what was left out."""

import json
from collections.abc import Iterable
from pathlib import Path

from lst_prep import manifest
from lst_prep.corpora import Corpus, Skipped, read
from lst_prep.reading import Inputs
from megatron_lst.files import replacing


def write_manifest(
    kind: str, root: Path, out: Path, name: str = "", splits: dict[str, str] | None = None, give_up: Iterable[str] = ()
) -> str:
    """Write the manifest of a corpus, and beside it, where anything was left out, OUT.skipped.jsonl.

    Args:
        kind: a key of READERS.
        root: the corpus.
        out: the manifest; audio that lies inside the corpus' own files is written to a folder beside it.
        name, splits: see `Corpus`.
        give_up: files and folders that cannot be read and are left out.

    Returns:
        For people: how many pieces, and what was left out, by why.

    Raises:
        UserError, CannotRead: see `read`; nothing is written.
    """
    log = out.with_name(f"{out.name}.skipped.jsonl")
    with replacing(log) as lines:

        def write(line: dict[str, str]) -> None:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")

        skipped = Skipped(write)
        extracted = out.with_name(f"{out.name.split('.')[0]}-audio")
        corpus = Corpus(root, Inputs(None, give_up), skipped, splits, name, extracted)
        count = manifest.write(out, read(kind, corpus))
    if not skipped.counts:
        log.unlink()
        return f"{out}: {count} pieces"
    said = [f"{out}: {count} pieces; {skipped.counts.total()} lines or files were left out, all named in {log}"]
    for why, number in skipped.counts.most_common():
        said.append(f"left out {number:>8,}: {why}; for instance {skipped.examples[why]}")
    return "\n".join(said)
