"""Names of hosts as people and SLURM write them: `node[01-04,07],login`, one name for each host that is meant."""

import re
from collections.abc import Iterator

from megatron_lst.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
MOST = 100_000
"""Hosts that one list may name: more is a slip of the pen."""


def expand_hosts(text: str, option: str = "--hosts") -> list[str]:
    """The hosts of a list, in its order.

    Args:
        text: names, or IP addresses, between commas; `[01-04,07]` in a name stands for each of these numbers, with
            their leading zeros.
        option: where it was given, for the message.

    Raises:
        UserError: an empty name, one that no host has, the same host twice, brackets that cannot be read.
    """
    hosts: list[str] = []
    for part in _split(text, option):
        hosts += _expand(part.strip(), option, MOST - len(hosts))
    for host in hosts:
        if not _NAME.fullmatch(host):
            what = "an empty name" if not host else f"{host!r} is not the name of a host"
            raise UserError(f"{option} {text!r}: {what}; expected names between commas, such as node-a,node-b")
    twice = sorted({host for host in hosts if hosts.count(host) > 1}) if len(set(hosts)) < len(hosts) else []
    if twice:
        raise UserError(f"{option} {text!r}: expected each host once, {', '.join(twice[:5])} stands there twice")
    return hosts


def _split(text: str, option: str) -> list[str]:
    """Parts between the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if not 0 <= depth <= 1:
            break
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise UserError(f"{option} {text!r}: the brackets do not match")
    return parts


def _expand(part: str, option: str, most: int) -> list[str]:
    """All names of one part; brackets may stand in it more than once."""
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    ends = _expand(after, option, most)
    found = [f"{before}{number}{end}" for number in _numbers(inside, part, option, most) for end in ends]
    if len(found) > most:
        raise UserError(f"{option} {part!r}: more than {MOST} hosts")
    return found


def _numbers(inside: str, part: str, option: str, most: int) -> Iterator[str]:
    for entry in inside.split(","):
        match = _RANGE.fullmatch(entry.strip())
        if not match:
            raise UserError(f"{option} {part!r}: {entry!r} is no number or range, such as 01-04")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + most:
            raise UserError(
                f"{option} {part!r}: {entry!r} is a range that does not go up, or names more than {MOST} hosts"
            )
        yield from (str(number).zfill(len(match[1])) for number in range(first, last + 1))
