"""A process of its own, since Megatron-core looks for Transformer Engine once: trains in bf16 and in fp8 beside it.

python -m tests.support.train_in_fp8 FOLDER [key=value ...]        also under torchrun
"""

import os
import sys
from pathlib import Path

from tests.support import stand_in_engine


def main(folder: str, *changes: str) -> None:
    stand_in_engine.install()
    import torch

    from megatron_lst.config.load import parse_yaml
    from megatron_lst.parallel import state
    from tests.support.runs import train
    from tests.support.toy import toy_config

    if "RANK" in os.environ:
        state.start_world()
    values = {key: parse_yaml(value) for key, value in (change.split("=") for change in changes)}
    bf16 = toy_config(training__precision="bf16", model__ffn=128, **values)
    fp8 = toy_config(
        training__precision="bf16", model__ffn=128, engine__fp8="hybrid", engine__fp8_recipe="tensorwise", **values
    )
    half = Path(folder) / "half"
    if os.environ.get("RANK", "0") == "0":
        half.mkdir()
    runs = {"bf16": train(bf16, 4)}
    assert not stand_in_engine.Linear.counts, "without engine.fp8 nothing is Transformer Engine's"
    runs["fp8"] = train(fp8, 4, save_at=2, folder=str(half))
    counts = dict(stand_in_engine.Linear.counts)
    runs["resumed"] = train(fp8, 4, load=str(half), first=2)
    runs["resumed in bf16"] = train(bf16, 4, load=str(half), first=2)
    if os.environ.get("RANK", "0") == "0":
        torch.save({"counts": counts, **runs}, Path(folder) / "result.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
