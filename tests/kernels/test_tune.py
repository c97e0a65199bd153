"""The search for tiles: what is left out, what is taken, on a clock that is told; and the file that launches follow."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from lst_kernels import compile_check, rivals
from lst_kernels import tune as searching
from lst_kernels.bench import NoGpu, Setting
from lst_kernels.compile_check import CompiledKernel, Shape
from lst_kernels.interval_attention import tiles as module
from lst_kernels.interval_attention.tiles import (
    FALLBACK,
    FILE,
    SMALL,
    TABLE,
    Tile,
    Tiles,
    read,
    tiles_for,
    tiles_on,
    using,
)
from lst_kernels.tune import Choice, compile_problem, grid, quickest, table, tune
from tests.support.varlen import stand_in

BEGIN = TABLE["sm90", True, 128]
A, B, C = Tile(32, 32, 4, 1), Tile(64, 32, 4, 1), Tile(128, 32, 8, 2)


def search(
    times: dict[Tile, float], spills: Tile | None = None, differs: Tile | None = None
) -> tuple[Tile, list[Tile]]:
    """What is taken for dq, and what was timed."""
    timed: list[Tile] = []

    def clock(tiles: Tiles) -> float:
        timed.append(tiles.dq)
        assert (tiles.forward, tiles.dkdv) == (BEGIN.forward, BEGIN.dkdv)
        return {BEGIN.dq: 1.0, **times}[tiles.dq]

    taken, _, before = quickest(
        BEGIN,
        "dq",
        [A, BEGIN.dq, B, C],
        lambda tiles: "spills" if tiles.dq == spills else None,
        clock,
        lambda tiles: "off by 1" if tiles.dq == differs else None,
        lambda line: None,
    )
    assert before == 1.0
    return taken, timed


def test_the_quickest_that_passes_is_taken() -> None:
    times = {A: 0.9, B: 0.5, C: 0.7}
    assert search(times) == (B, [BEGIN.dq, A, B, C])
    assert search(times, spills=B) == (C, [BEGIN.dq, A, C]), "what spills is never timed"
    assert search(times, differs=B)[0] == C
    assert search({A: 0.99, B: 1.5, C: 1.0})[0] == BEGIN.dq, "noise moves nothing"
    assert search({A: 0.9, B: 1.5})[0] == A, "what cannot be launched is left out"


def test_the_check_refuses_what_spills() -> None:
    assert compile_problem(BEGIN, "sm_90", 128) is None
    assert "spills" in str(compile_problem(BEGIN._replace(dq=Tile(128, 128, 4, 1)), "sm_90", 128))
    assert BEGIN.dq in grid()


def test_the_check_is_asked_about_the_heads_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head dimension of 96 may spill in `lst kernels check`, which then says nothing; a search leaves it out."""
    odd = CompiledKernel("interval_dq", "D=96", "sm_90", spilled=8, narrow=True)
    asked: list[Any] = []

    def check(shapes: list[Shape], targets: list[str], only: str) -> list[CompiledKernel]:
        asked.append((shapes[0].global_kv_heads, shapes[0].local_heads, targets, only))
        return [odd, replace(odd, spilled=0)]

    monkeypatch.setattr(compile_check, "check", check)
    setting = Setting(global_head_dim=96, global_kv_heads=2, local_heads=4)
    assert compile_problem(BEGIN, "sm_90", 96, setting) == "interval_dq: spills"
    operations = ("interval_attention D=96 ", "packed_attention D=96 ")  # both are launched with these tiles
    assert asked == [(2, 4, ["sm_90"], only) for only in operations]


@pytest.mark.interpreter
def test_a_search_with_the_kernels_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is quicker than the one before; what is taken has passed the gate of the benchmark."""
    small = Tile(16, 16, 1, 1)
    monkeypatch.setattr(searching, "compile_problem", lambda *_: None)
    monkeypatch.setattr(searching, "grid", lambda: [small])
    widths = {"local_dim": 32, "local_heads": 2, "global_heads": 2, "global_kv_heads": 2, "global_head_dim": 16}
    setting = Setting(1, 48, 30, window=8, dtype=torch.float32, device="cpu", **widths)  # type: ignore[arg-type]
    runs = 0

    def clock(run: Any, prepare: Any = lambda: None) -> float:
        nonlocal runs
        runs += 1
        run(prepare())
        return 1 / runs

    use = next(use for use in searching.uses(setting) if use.name == "global causal")
    found = searching._choose(use, setting, "sm_90", lambda line: None, clock)
    assert found.key == "float32 16"
    assert found.tiles == Tiles(small, small, small)
    assert all(found.milliseconds[part] < found.before[part] for part in Tiles._fields)
    assert runs == 6

    def refuse(case: Any) -> None:
        assert module._given is None or module._given.forward != small, "off"

    monkeypatch.setattr(searching, "gate", refuse)
    found = searching._choose(use, setting, "sm_90", lambda line: None, clock)
    assert found.tiles == Tiles(FALLBACK.forward, small, small)


def test_a_setting_of_other_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is searched, checked and compared has the setting's heads; its rows join those of the file."""
    asked: list[tuple[str, int, int, int, int]] = []

    def problem(tiles: Tiles, target: str, dim: int, setting: Setting) -> str | None:
        asked.append((target, dim, setting.global_heads, setting.global_kv_heads, setting.local_heads))
        return "not tried"

    monkeypatch.setattr(searching, "require_gpu", lambda what: None)
    monkeypatch.setattr(searching, "family_of", lambda device: "sm90")
    monkeypatch.setattr(searching, "grid", lambda: [B])
    monkeypatch.setattr(searching, "gate", lambda case: None)
    monkeypatch.setattr(searching, "compile_problem", problem)
    widths = {"local_dim": 64, "local_heads": 2, "global_heads": 4, "global_kv_heads": 2, "global_head_dim": 48}
    setting = Setting(1, 40, 30, dtype=torch.float32, device="cpu", **widths)  # type: ignore[arg-type]

    def clock(run: Any, prepare: Any = lambda: None) -> float:
        return 3.0

    choices = tune(setting, lambda line: None, clock)
    assert [choice.key for choice in choices] == ["float32 32", "float32 64"], "launches look for a padded dimension"
    assert set(asked) == {("sm_90", 32, 4, 2, 2), ("sm_90", 48, 4, 2, 2)}
    asked.clear()
    (choice,) = tune(replace(setting, local_heads=1), lambda line: None, clock)
    assert choice.key == "float32 64"
    assert set(asked) == {("sm_90", 48, 4, 2, 1)}, "of two that share a row the global layers decide"
    assert [c.key for c in tune(setting, lambda line: None, clock, ["global causal"])] == ["float32 64"]

    given: list[Tiles] = []

    def measure(setting: Setting, *_: Any) -> dict[str, float]:
        given.append(tiles_for("sm90", setting.dtype, 64))
        return {"lst_kernels": 3.0}

    monkeypatch.setattr(rivals, "measure", measure)
    took = Choice("float32 64", Tiles(A, B, C), {}, {})
    attention = searching.compare(setting, [took])
    assert attention == {"float32 48": {"lst_kernels": 3.0}}, "heads of 48, not all that are padded to 64"
    assert given == [Tiles(A, B, C)]

    other = Choice("bfloat16 128", Tiles(C, B, A), {}, {})
    before = table([other, replace(took, tiles=SMALL)], "GPU", "3.6.0", None, {"bfloat16 128": {"lst_kernels": 1.0}})
    entry = json.loads(table([took], "GPU", "3.6.0", before, attention))["devices"]["GPU"]
    assert {key: row["dq"] for key, row in entry["tiles"].items()} == {"bfloat16 128": [*B], "float32 64": [*B]}
    assert set(entry["attention"]) == {"bfloat16 128", "float32 48"}
    entry = json.loads(table([took], "GPU", "3.7.0", before, attention))["devices"]["GPU"]
    assert (set(entry["tiles"]), set(entry["attention"])) == ({"float32 64"}, {"float32 48"}), "of another Triton"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoGpu, match="a search for tiles needs a CUDA GPU"):
        tune(Setting())
    with pytest.raises(NoGpu, match="a comparison of attention's implementations needs a CUDA GPU"):
        searching.compare(Setting(), [])


def test_launches_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cuda = tmp_path / "tiles.json", torch.device("cuda", 0)
    found = Choice("bfloat16 128", Tiles(A, B, C), {}, {})
    file.write_text(table([found], "GPU 1", "3.6.0", table([found], "GPU 0", "3.5.0")))
    assert set(json.loads(file.read_text())["devices"]) == {"GPU 0", "GPU 1"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU 1")
    monkeypatch.setattr(module, "family_of", lambda device: "sm90")
    monkeypatch.setattr("lst_kernels.backends.triton_version", lambda: "3.6.0")
    assert tiles_on(cuda, torch.bfloat16, 128) == BEGIN, "nobody named a file"
    monkeypatch.setenv(FILE, str(file))
    assert tiles_on(cuda, torch.bfloat16, 128) == Tiles(A, B, C)
    assert tiles_on(cuda, torch.bfloat16, 64) == TABLE["sm90", True, 64]
    assert tiles_on(torch.device("cpu"), torch.bfloat16, 128) == BEGIN
    with using(SMALL):
        assert tiles_on(cuda, torch.bfloat16, 128) == tiles_for("sm90", torch.bfloat16, 128) == SMALL
    assert read(str(file), "another", "3.6.0") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2}', "version 2, where this release reads 1"),
        ('{"version": 1, "devices": {"GPU": {"triton": "3.5.0"}}}', "measured with Triton 3.5.0, and this is 3.6.0"),
        ("tiles", "Expecting value"),
        ("[]", "list indices"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_followed(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "tiles.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(str(file), "GPU", "3.6.0")


@pytest.mark.interpreter
def test_rivals_that_are_wrong_or_do_not_repeat_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"global_heads": 2, "global_kv_heads": 1, "global_head_dim": 16}
    setting = Setting(1, 40, 30, dtype=torch.float32, device="cpu", **widths)  # type: ignore[arg-type]
    own = rivals.ways(setting)["lst_kernels"]
    noisy = {
        "lst_kernels": own,
        "wrong": lambda qkv: 1.1 * own(qkv),
        "wrong back": lambda qkv: own(qkv) + (qkv.sum() - qkv.sum().detach()),
        "restless": lambda qkv: own(qkv) * (1 + 1e-6 * torch.rand(())),
    }
    said: list[str] = []
    found = rivals.measure(setting, said.append, lambda run: (run(None), 2.0)[1], noisy)
    assert found == {"lst_kernels": 2.0}
    stand_in(monkeypatch)
    varlen = {name: way for name, way in rivals.ways(setting).items() if name.startswith("varlen_attn")}
    assert list(varlen) == [f"varlen_attn {importlib.metadata.version('torch')}"]
    assert list(rivals.measure(setting, said.append, lambda run: (run(None), 2.0)[1], varlen)) == list(varlen), said
    assert ["off" in said[1], "gradient 0" in said[2], "same bits" in said[3]] == [True] * 3, said


def test_auto_follows_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_lst.errors import UserError
    from megatron_lst.parallel import accelerators

    file = tmp_path / "tiles.json"
    times = {
        "bfloat16 128": {"lst_kernels": 5.0, "flash_attn 2.8.3": 4.0, "varlen_attn 2.13.0": 3.0},
        "bfloat16 64": {"lst_kernels": 1.0},
    }
    versions, here = {"flash_attn": "2.8.3", "varlen_attn": "2.13.0"}, {"flash_attn", "varlen_attn"}
    file.write_text(table([], "GPU", "3.6.0", None, times))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr("lst_kernels.backends.triton_version", lambda: "3.6.0")
    monkeypatch.setattr(accelerators.cpu, "on_cpu", lambda: False)
    monkeypatch.setattr(accelerators.cpu, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(accelerators, "probe", lambda _, name: print if name in here else None)
    monkeypatch.setattr(accelerators, "label", lambda name: f"{name} {versions[name]}")

    def chosen(dtype: torch.dtype = torch.bfloat16, size: int = 128) -> tuple[str, str]:
        return accelerators.choose_attention("auto", dtype, size)

    assert chosen() == ("lst_kernels", "proved; not measured here for such heads")
    monkeypatch.setenv(FILE, str(file))
    assert chosen() == ("varlen_attn", "quickest measured here, 3 ms; LST_KERNELS_TILES")
    assert accelerators.attention_here() == {
        "bfloat16 128": chosen(),
        "bfloat16 64": ("lst_kernels", "quickest measured here, 1 ms; LST_KERNELS_TILES"),
        "else": ("lst_kernels", "proved; not measured here for such heads"),
    }
    versions["varlen_attn"] = "2.13.1"
    assert chosen() == ("flash_attn", "quickest measured here, 4 ms; LST_KERNELS_TILES"), "another version"
    assert chosen(size=64)[0] == "lst_kernels"
    assert chosen(torch.float32) == ("lst_kernels", "proved; not measured here for such heads")
    assert accelerators.choose_attention("lst_kernels", torch.bfloat16, 128) == ("lst_kernels", "asked for")
    here.clear()
    assert chosen() == ("lst_kernels", "quickest measured here, 5 ms; LST_KERNELS_TILES"), "neither is here"
    monkeypatch.setenv(FILE, str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"none\.json"):
        chosen()
