"""What the splits of data sets are called: what trains, what is held out, and what nobody knows."""

import re

TRAIN, HELDOUT = "train", "heldout"
_TRAINS = {"train", "training"}
_HELD_OUT = {"heldout", "held", "test", "testing", "dev", "development", "devel", "val", "valid", "validation"}
_HELD_OUT |= {"eval", "evaluation"}


def split_of(name: object) -> str | None:
    """`train` or `heldout` for the name of a split as data sets write it; None: an unknown name, which means neither.

    Words are told apart at anything but letters, numbers at their end do not count: `train-clean-100`, `dev.other`
    and `Validation2` are known. A name with a word for held-out data is held out: `train_dev` is a part of the training
    data that nobody trains on.
    """
    if not isinstance(name, str):
        return None
    words = {word for word in re.split(r"[\W\d_]+", name.casefold()) if word}
    if words & _HELD_OUT:
        return HELDOUT
    return TRAIN if words & _TRAINS else None
