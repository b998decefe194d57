from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.data.samples import prepare_texts
from trainer.data.batches import Batches, RankBatch, evaluation_batches
from trainer.data.order import batch_indices
from trainer.data.prepared import Prepared
from trainer.layout import BatchLayout

T = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_texts(tmp_path_factory.mktemp("data"), seq_len=T)


def reference(prepared: Prepared, sequence: int) -> list[tuple[int, int, int]]:
    """Input, label and position of each token, one by one."""
    rows = []
    for piece in range(prepared.packs[sequence], prepared.packs[sequence + 1]):
        _, first, pairs = prepared.pieces[piece].tolist()
        for place in range(pairs):
            at = first + place
            counts = prepared.loss[at + 1] == 1
            rows.append((int(prepared.tokens[at]), int(prepared.tokens[at + 1]) if counts else -100, place))
    return rows + [(0, -100, pairs + place) for place in range(T - len(rows))]


def wrapped(total: int) -> int:
    return (total + 2**63) % 2**64 - 2**63


def rows_of(batch: RankBatch) -> list[list[tuple[int, int, int]]]:
    return [
        list(zip(*(part[b].tolist() for part in (m.input_ids, m.labels, m.position_ids)), strict=True))
        for m in batch.micro_batches
        for b in range(len(m.input_ids))
    ]


def test_rows_are_those_of_a_slow_reference(prepared: Prepared) -> None:
    batch = Batches(prepared, BatchLayout(4, 3, 1), seed=1, dp_rank=0).get(5)
    assert rows_of(batch) == [reference(prepared, int(i)) for i in batch_indices(5, 12, prepared.sequences, 1)]
    assert batch.pairs == sum(2 * place + 1 for row in rows_of(batch) for _, _, place in row)  # 1 + 3 + 5 + ... = n^2
    assert batch.valid_tokens == sum(label != -100 for row in rows_of(batch) for _, label, _ in row)
    micro_batch = batch.micro_batches[0]
    for tensor in (micro_batch.input_ids, micro_batch.labels, micro_batch.position_ids):
        assert tensor.dtype == torch.int64 and tensor.shape == (4, T) and tensor.is_contiguous()


def test_each_token_is_a_target_once_but_for_a_documents_first(prepared: Prepared) -> None:
    batches = Batches(prepared, BatchLayout(1, 1, 1), seed=0, dp_rank=0)
    valid = sum(batches.get(step).valid_tokens for step in range(prepared.sequences))
    assert valid == int(prepared.loss.sum()) == prepared.manifest.tokens - prepared.manifest.documents


@pytest.mark.parametrize("layout", [(12, 1, 1), (3, 2, 2), (2, 2, 3), (1, 3, 4), (1, 1, 12)])
def test_ranks_together_have_the_same_batch_at_any_world_size(prepared: Prepared, layout: tuple[int, int, int]) -> None:
    whole = Batches(prepared, BatchLayout(12, 1, 1), seed=7, dp_rank=0)
    parts = [Batches(prepared, BatchLayout(*layout), seed=7, dp_rank=rank) for rank in range(layout[2])]
    for step in (0, 3, 1000):
        shares = [part.get(step) for part in parts]
        assert sorted(row for share in shares for row in rows_of(share)) == sorted(rows_of(whole.get(step)))
        assert wrapped(sum(share.hash for share in shares)) == whole.get(step).hash
        assert sum(share.valid_tokens for share in shares) == whole.get(step).valid_tokens


def test_rank_takes_its_column_of_the_layout(prepared: Prepared) -> None:
    indices = batch_indices(2, 12, prepared.sequences, 7).reshape(2, 3, 2)  # accumulation, rank, micro
    share = Batches(prepared, BatchLayout(2, 2, 3), seed=7, dp_rank=1).get(2)
    assert rows_of(share) == [reference(prepared, int(i)) for i in indices[:, 1].ravel()]


def test_other_sequences_have_other_hashes(prepared: Prepared) -> None:
    batches = Batches(prepared, BatchLayout(1, 1, 1), seed=0, dp_rank=0)
    assert len({batches.get(step).hash for step in range(prepared.sequences)}) == prepared.sequences


def test_evaluation_is_in_fixed_order_from_the_start(prepared: Prepared) -> None:
    def sequences(layout: BatchLayout, count: int) -> list[list[list[tuple[int, int, int]]]]:
        ranks = [evaluation_batches(prepared, layout, rank, count) for rank in range(layout.data_parallel_size)]
        return [sorted(row for share in shares for row in rows_of(share)) for shares in zip(*ranks, strict=True)]

    first = [sorted(reference(prepared, b * 12 + k) for k in range(12)) for b in range(2)]
    assert sequences(BatchLayout(12, 1, 1), 2) == sequences(BatchLayout(2, 2, 3), 2) == first
    assert len(sequences(BatchLayout(12, 1, 1), 1000)) == prepared.sequences // 12


def test_evaluation_wraps_where_one_batch_is_more_than_there_is(tmp_path: Path) -> None:
    few = prepare_texts(tmp_path, count=3, seq_len=T)
    [batch] = evaluation_batches(few, BatchLayout(100, 1, 1), 0, 5)
    assert rows_of(batch) == [reference(few, i % few.sequences) for i in range(100)]


def test_get_leaves_no_trace(prepared: Prepared) -> None:
    batches = Batches(prepared, BatchLayout(4, 1, 1), seed=1, dp_rank=0)
    before, _, after = batches.get(3), batches.get(4), batches.get(3)
    assert before.hash == after.hash
    assert np.array_equal(before.micro_batches[0].labels, after.micro_batches[0].labels)


def test_a_file_that_was_cut_after_it_was_opened_is_no_batch_of_zeros(tmp_path: Path) -> None:
    prepared = prepare_texts(tmp_path, seq_len=T)
    tokens = prepared.folder / "tokens.bin"
    with tokens.open("r+b") as file:
        file.truncate(tokens.stat().st_size // 2)
    with pytest.raises(OSError, match=r"tokens\.bin ends before element"):
        for number in range(prepared.sequences):
            prepared.sequence(number)
