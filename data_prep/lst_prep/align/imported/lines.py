"""Alignments of one word a line: CTM (Kaldi, NeMo, sclite) and Audacity's label tracks."""

from lst_prep.align.imported.labels import Label, number
from lst_prep.places import AnyPath
from lst_prep.rejection import Rejection


def read_ctm(text: str, path: AnyPath) -> dict[str, list[Label]]:
    """Words by the name in the first column. Lines: name, channel, begin, duration, word, and a confidence or none.

    Raises:
        Rejection: bad_alignment; also for several channels of one name, since none of them is known to be the piece's.
    """
    found: dict[str, list[Label]] = {}
    channels: dict[str, str] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        fields, where = content.split(), f"{path}:{line}"
        if not fields or content.startswith(";;"):
            continue
        if len(fields) < 5:
            raise Rejection(
                "bad_alignment", f"{where}: {len(fields)} columns; CTM has name, channel, begin, duration, word"
            )
        name, channel, begin = fields[0], fields[1], number(fields[2], "begin", where)
        if channels.setdefault(name, channel) != channel:
            raise Rejection("bad_alignment", f"{where}: {name} in channels {channels[name]} and {channel}: give one")
        end = begin + number(fields[3], "the duration", where)
        score = number(fields[5], "the confidence", where) if len(fields) > 5 and fields[5] != "NA" else 0.0
        found.setdefault(name, []).append(Label(fields[4], begin, end, score, where))
    return found


def read_labels(text: str, path: AnyPath) -> list[Label]:
    """An Audacity label track: begin, end and label, with tabs between; lines that begin with a backslash are skipped.

    Raises:
        Rejection: bad_alignment.
    """
    labels = []
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip() or content.startswith("\\"):
            continue
        fields, where = content.split("\t"), f"{path}:{line}"
        if len(fields) < 2:
            raise Rejection("bad_alignment", f"{where}: no tabs; a label track has begin, end and label")
        begin, end = number(fields[0], "begin", where), number(fields[1], "end", where)
        labels.append(Label("\t".join(fields[2:]).strip(), begin, end, 0.0, where))
    return labels
