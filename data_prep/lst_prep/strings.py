"""Strings from outside: whether they can be written again, and a form of them that always can."""


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair: JSON can escape one (a cut emoji), file names hold them for bytes of another
    encoding, and nothing that comes later can encode them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """`text` with each half of a surrogate pair written as an escape: for messages, logs and names."""
    return text.encode("utf-8", "backslashreplace").decode()
