"""Save at step 5 on one layout, load on another: steps 6 to 10 are those of the uninterrupted run."""

import functools
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.config.schema import Config
from megatron_lst.errors import DamagedDataError, UserError
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.slow import with_slow
from tests.support.toy import toy_config

pytestmark = pytest.mark.multiprocess

Layout = tuple[int, dict[str, Any]]
ONE: Layout = (1, {})
TP2_SP: Layout = (2, {"parallel__tensor": 2, "parallel__sequence": True})
PP2: Layout = (2, {"parallel__pipeline": 2})
PP4: Layout = (4, {"parallel__pipeline": 4})
DP2: Layout = (2, {})
DP2_PLAIN: Layout = (2, {"engine__distributed_optimizer": False})
DP4: Layout = (4, {})
PP2_DP2: Layout = (4, {"parallel__pipeline": 2})
TP2_PP2: Layout = (4, {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True})
VIRTUAL: Layout = (2, {"parallel__pipeline": 2, "parallel__virtual": 2})

PAIRS: dict[str, tuple[Layout, Layout, dict[str, Any]]] = {
    "one -> one": (ONE, ONE, {}),
    "one -> PP4": (ONE, PP4, {}),
    "TP2+SP -> PP2": (TP2_SP, PP2, {}),
    "PP2 DP2 -> TP2+SP": (PP2_DP2, TP2_SP, {}),
    "TP2 PP2+SP -> DP4": (TP2_PP2, DP4, {}),
    "DP2 -> PP2 DP2": (DP2, PP2_DP2, {}),
    "DP2 without distributed optimizer -> DP2 with it": (DP2_PLAIN, DP2, {}),
    "interleaved -> one": (VIRTUAL, ONE, {}),
    "PP2 DP2 -> TP2 PP2+SP, asynchronous": (PP2_DP2, TP2_PP2, {"asynchronous": True}),
}


@functools.cache
def uninterrupted(ranks: RankPool) -> dict[str, Any]:
    return ranks.run(train, 1, toy_config())[0]


def save(ranks: RankPool, layout: Layout, folder: Path, asynchronous: bool = False) -> None:
    folder.mkdir()
    config = toy_config(**layout[1])
    ranks.run(
        functools.partial(train, steps=5, save_at=5, folder=str(folder), asynchronous=asynchronous), layout[0], config
    )


@pytest.mark.parametrize("name", with_slow(PAIRS, "TP2+SP -> PP2", "PP2 DP2 -> TP2+SP"))
def test_resumed_curve_is_the_uninterrupted_one(ranks: RankPool, tmp_path: Path, name: str) -> None:
    before, after, options = PAIRS[name]
    folder = tmp_path / "engine"
    save(ranks, before, folder, **options)
    resume = functools.partial(train, load=str(folder), first=5)
    expected = uninterrupted(ranks)
    for result in ranks.run(resume, after[0], toy_config(**after[1])):
        assert result["losses"] == pytest.approx(expected["losses"][5:], rel=1e-5)
        assert result["norms"] == pytest.approx(expected["norms"][5:], rel=1e-4)


def test_one_process_resumes_exactly(ranks: RankPool, tmp_path: Path) -> None:
    """Bit for bit, and not so when the optimizer's state is left behind (negative control)."""
    folder = tmp_path / "engine"
    save(ranks, ONE, folder)
    expected = uninterrupted(ranks)["losses"][5:]
    resume = functools.partial(train, load=str(folder), first=5)
    assert ranks.run(resume, 1, toy_config())[0]["losses"] == expected
    assert ranks.run(functools.partial(weights_alone, folder=str(folder)), 1, toy_config())[0] != pytest.approx(
        expected, rel=1e-5
    )


def weights_alone(config: Config, folder: str) -> list[float]:
    """Losses of steps 6 to 10 with the saved weights but a fresh optimizer."""
    from megatron_lst.engines import build_engine
    from tests.support.toy import toy_rows

    engine = build_engine(config)
    engine.load(Path(folder))
    weights = engine.export_weights()
    engine.close()
    engine = build_engine(config)
    assert weights is not None
    engine.load_weights(weights)
    rows = [toy_rows(config, config.training.global_batch, seed=step) for step in range(5, 10)]
    losses = [engine.step(batch, config.training.lr).loss for batch in rows]
    engine.close()
    return losses


def refusals(config: Config, other: Config, folder: str) -> list[str]:
    """What loading says of another model's and of a damaged checkpoint."""
    from megatron_lst.engines import build_engine

    said = []
    engine = build_engine(other)
    with pytest.raises(UserError) as wrong_model:
        engine.load(Path(folder))
    said.append(str(wrong_model.value))
    engine.close()
    engine = build_engine(config)
    shard = next(Path(folder).glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedDataError) as truncated:
        engine.load(Path(folder))
    said.append(str(truncated.value))
    shard.unlink()
    with pytest.raises(DamagedDataError) as missing:
        engine.load(Path(folder))
    said.append(str(missing.value))
    (Path(folder) / "model.json").unlink()
    with pytest.raises(DamagedDataError) as incomplete:
        engine.load(Path(folder))
    said.append(str(incomplete.value))
    engine.close()
    return said


def test_wrong_and_damaged_checkpoints_are_refused(ranks: RankPool, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    save(ranks, ONE, folder)
    said = ranks.run(refusals, 1, toy_config(), toy_config(model__queries=3), str(folder))[0]
    assert "encoder.pool_proj.weight: [64, 32] in the checkpoint, [96, 32] in this model" in said[0]
    assert all("cannot be read" in text for text in said[1:3])
    assert "not complete" in said[3]
