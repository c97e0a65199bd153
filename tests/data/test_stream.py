"""The four properties of SPEC 6: a function of (data, config, seed, step), elastic, keyed, each document once."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_lst.data.mixture import Mixture
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.data.stream import RowStream, Share, Stream
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.flops import row_flops
from megatron_lst.patching.row import Row, batch_hash
from tests.data.toy import SPEECH_DOCUMENTS, TEXT, TEXT_DOCUMENTS, make_config, make_mixture

STRATEGIES: list[dict[str, Any]] = [
    {"patching__strategy": "none"},
    {"patching__strategy": "static"},
    {"patching__strategy": "aligned"},
    {"patching__strategy": "aligned", "patching__silence": "merged", "patching__max_length": 5},
    {"patching__strategy": "aligned", "patching__granularity": "bpe", "patching__aligned_lag": 1},
    {"patching__strategy": "mixed"},
    {"patching__strategy": "curriculum", "patching__draw": "row"},
]


def hashes(config: Any, steps: int, size: int = 1, state: Any = None, start: int = 0) -> list[str]:
    mixture = make_mixture(config)
    ranks = [RowStream(config, r, size, state, start, mixture) for r in range(size)]
    found = []
    for _ in range(steps):
        rows = [row for rank in ranks for row in next(rank).rows]
        rows.sort(key=lambda row: row.index)
        found.append(batch_hash([row.hash for row in rows]))
    return found


@pytest.mark.parametrize("changes", STRATEGIES)
def test_rows_are_sound_and_repeatable(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    first = list(itertools.islice(RowStream(config, 0, 1, mixture=make_mixture(config)), 4))
    for step in first:
        for row in step.rows:
            row.check(config.vocabulary)
            assert row.units == config.data.units
            assert len(row.tokens) <= config.token_cap
    assert hashes(config, 4) == [batch_hash([r.hash for r in s.rows]) for s in first]


@pytest.mark.parametrize(
    ("streams", "batch"), [(8, 8), (4, 8), (16, 8)], ids=["as many", "fewer streams", "more streams"]
)
def test_batches_do_not_depend_on_ranks_or_restarts(streams: int, batch: int) -> None:
    config = make_config(data__streams=streams, training__global_batch=batch)
    expected = hashes(config, 12)
    for size in (2, 4):
        assert hashes(config, 12, size) == expected
    state: dict[str, Any] = {}
    mixture = make_mixture(config)
    running = RowStream(config, 0, 1, mixture=mixture)
    for step in range(11):
        for size in (1, 2, 4):
            assert hashes(config, 1, size, state, step) == [expected[step]]
        state = json.loads(json.dumps({**state, **next(running).cursors}))


@pytest.mark.parametrize("change", [{"data__seed": 1}, {"data__spans": {"speech_min": 3}}, {"data__units": 120}])
def test_what_matters_changes_the_batches(change: dict[str, Any]) -> None:
    assert not set(hashes(make_config(), 6)) & set(hashes(make_config(**change), 6))


def contents(rows: list[Row], vocabulary: Any) -> dict[str, list[list[int]]]:
    """Per document the tokens of its chunks, without BOS, EOS and the markers that a cut repeats."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    special = {vocabulary.bos, vocabulary.eos, vocabulary.text_marker, vocabulary.speech_marker}
    for row in rows:
        for ordinal, name in enumerate(row.document_ids):
            if name:
                tokens = row.tokens[row.document == ordinal].tolist()
                assert tokens[0] == vocabulary.bos
                found[name].append([t for t in tokens if t not in special])
                if tokens[-1] == vocabulary.eos:
                    found[name].append([])
    return found


@pytest.mark.parametrize("cap", [None, 160])
def test_every_document_once_in_each_of_two_epochs(cap: int | None) -> None:
    config = make_config(data__units=64, data__tokens=cap, data__streams=4, training__global_batch=4)
    mixture = make_mixture(config)
    lengths = {d.id: len(d.token_ids) for d in TEXT_DOCUMENTS}
    whole = {d.id: d.token_ids.tolist() for d in TEXT_DOCUMENTS}
    ended: Counter[str] = Counter()
    for number in range(4):
        stream = Stream(mixture, number)
        rows = []
        while min(stream.epochs.values()) < 2 or stream.cursor["carry"]:
            rows.append(stream.next_row())
        found = contents(rows, config.vocabulary)
        for name, chunks in found.items():
            visits = [[]]
            for chunk in chunks:
                if chunk:
                    visits[-1].extend(chunk)
                else:
                    visits.append([])
            # The last example may be under way.
            for example in visits[:-1]:
                ended[name] += 1
                if name in whole:
                    assert example == whole[name], "a word was lost or repeated where the document was cut"
                else:
                    _follows_the_document(name, example)
        assert set(lengths) >= {n for n in found if n.startswith("text")}
    everything = {d.id for d in TEXT_DOCUMENTS} | {d.id for d in SPEECH_DOCUMENTS}
    assert set(ended) == everything
    owners = Counter(
        int(d)
        for owned in mixture.ownership[:1]
        for a, b in zip(owned.begin, owned.end, strict=True)
        for d in range(a, b)
    )
    assert set(owners.values()) == {1}
    assert len(owners) == len(SPEECH_DOCUMENTS)
    assert min(ended.values()) >= 2


def _follows_the_document(name: str, example: list[int]) -> None:
    """Every word exactly once, as text or as the frames up to the next word."""
    document = next(d for d in SPEECH_DOCUMENTS if d.id == name)
    begins = np.append(document.word_frames[:, 0], len(document.speech_ids))
    begins[0] = 0
    rest = example
    for word in range(len(document.word_frames)):
        spoken = (document.speech_ids[begins[word] : begins[word + 1]].astype(int) + TEXT).tolist()
        a, b = document.word_tokens[word]
        written = document.token_ids[a:b].tolist()
        took = spoken if rest[: len(spoken)] == spoken else written
        assert rest[: len(took)] == took, f"{name}: word {word} is missing or altered"
        rest = rest[len(took) :]
    assert not rest


def test_stream_epochs_visit_in_new_orders() -> None:
    config = make_config()
    mixture = make_mixture(config)
    stream = Stream(mixture, 3)
    order = stream._orders[1]
    first, second = ([order.at(e, p) for p in range(order.documents)] for e in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_mixture_follows_the_weights() -> None:
    config = make_config(training__global_batch=8)
    total: Counter[str] = Counter()
    stream = RowStream(config, 0, 1, mixture=make_mixture(config))
    for _ in range(1250):
        for row in next(stream).rows:
            total.update(row.statistics.tokens_by_source)
    assert total["speech"] / sum(total.values()) == pytest.approx(1 / 3, rel=0.01)


def test_aligned_share_follows_the_schedule_by_absolute_rows() -> None:
    config = make_config(patching__tau1=800, patching__tau2=1600, training__steps=300)
    shares = []
    stream = RowStream(config, 0, 1, mixture=make_mixture(config))
    for _ in range(3):
        aligned = speech = 0
        for step in itertools.islice(stream, 100):
            aligned += sum(r.statistics.aligned_documents for r in step.rows)
            speech += sum(r.statistics.speech_documents for r in step.rows)
        shares.append(aligned / speech)
    assert shares[0] == 1
    assert shares[1] == pytest.approx(0.5, abs=0.06)
    assert shares[2] == 0
    # A longer run with the same taus goes on with the same rows.
    longer = make_config(patching__tau1=800, patching__tau2=1600, training__steps=3000)
    assert hashes(longer, 3) == hashes(config, 3)


def test_ranks_partition_every_step() -> None:
    for streams, batch, size in ((8, 8, 4), (4, 8, 2), (16, 8, 8), (8, 8, 1)):
        for step in (0, 3):
            shares = [Share(batch, streams, r, size) for r in range(size)]
            rows = sorted(i for s in shares for i in s.rows(step).tolist())
            assert rows == list(range(step * batch, (step + 1) * batch))
            for share in shares:
                assert set((share.rows(step) % streams).tolist()) <= set(share.owned_streams().tolist())
                assert len(share.rows(step)) == batch // size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c, s: RowStream(c, 0, 3, mixture=make_mixture(c)), "do not divide"),
        (lambda c, s: RowStream(c, 0, 1, None, 5, make_mixture(c)), "stands after 0 rows"),
        (lambda c, s: RowStream(c, 0, 1, s, 2, make_mixture(c)), "stands after 1 rows"),
        (
            lambda c, s: RowStream(make_config(data__seed=9), 0, 1, s, 1, make_mixture(make_config(data__seed=9))),
            "belongs to other data",
        ),
    ],
)
def test_positions_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    config = make_config()
    state = next(RowStream(config, 0, 1, mixture=make_mixture(config))).cursors
    with pytest.raises(UserError, match=message):
        make(config, state)


def test_rows_come_with_their_flops() -> None:
    """Counted where rows are built; the trainer only adds up."""
    config = make_config()
    rows = next(RowStream(config, 0, 1, mixture=make_mixture(config))).rows
    assert [row.statistics.training_flops for row in rows] == [row_flops(config, row) for row in rows]
    assert len({row.statistics.training_flops for row in rows}) > 1, "control: rows differ"


def test_rows_are_checked_where_they_are_built() -> None:
    """A worker refuses what would crash the model, with the document's name."""
    config = make_config()
    beyond = [replace(d, speech_ids=d.speech_ids + config.vocabulary.speech_size) for d in SPEECH_DOCUMENTS]
    sets = {"speech": beyond, "text": TEXT_DOCUMENTS}
    joined = [JoinedSets([DocumentList(sets[s.name])]) for s in config.data.sources]
    mixture = Mixture.of(config, config.data.sources, joined, config.streams)
    stream = RowStream(config, 0, 1, mixture=mixture)
    with pytest.raises(DamagedDataError, match=rf"document '{beyond[0].id[:3]}.*outside the vocabulary"):
        for _ in range(4):
            next(stream)
