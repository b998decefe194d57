"""The batches of one rank, as tensors: get(step) is a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.order import batch_indices
from trainer.data.prepared import IGNORED, Place, Pool, Prepared, Sequences, read, sequence_hash
from trainer.layout import BatchLayout
from trainer.model.attention import Documents

Ids = Callable[[int], npt.NDArray[np.int64]]
"""The sequences of a global batch by its step."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank; all int64, and (B, T) but for `counted`."""

    input_ids: Tensor
    labels: Tensor
    """Already shifted: labels[b, t] is the target of input t, or IGNORED."""
    counted: Tensor
    """Where in the flattened labels a target counts, (M,). Known before the batch is on a GPU, which to ask it of would
    mean to wait for."""
    position_ids: Tensor
    """Restart at 0 where a document starts, and at the start of the sequence."""
    documents: Documents
    """The same bounds, for an attention that skips what a mask would hide."""

    @classmethod
    def of(cls, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> MicroBatch:
        starts = torch.nonzero(position_ids.flatten() == 0).flatten()
        bounds = torch.cat([starts, torch.tensor([position_ids.numel()])]).to(torch.int32)
        counted = torch.nonzero(labels.flatten() != IGNORED).flatten()
        return cls(input_ids, labels, counted, position_ids, Documents(bounds, int(bounds.diff().max())))

    def to(self, device: torch.device) -> MicroBatch:
        """The micro batch where the model is."""
        if device.type == "cpu":
            return self
        tensors = (self.input_ids, self.labels, self.counted, self.position_ids, self.documents.bounds)
        ids, labels, counted, at, bounds = (tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
        return MicroBatch(ids, labels, counted, at, Documents(bounds, self.documents.longest))


@dataclass(frozen=True)
class RankBatch:
    """A rank's share of a global batch."""

    micro_batches: list[MicroBatch]
    valid_tokens: int
    """Targets that count; their sum over the ranks normalizes the loss."""
    hash: int
    """Wrapping int64 sum of the `sequence_hash` of each sequence: its sum over the ranks (all-reduce SUM) is
    the same number at any world size."""
    pairs: int
    """Sum of the squared lengths of its documents (tokens): what attention costs."""


class Batches:
    """The training batches of data-parallel rank `dp_rank`."""

    def __init__(
        self, data: Prepared | Pool, layout: BatchLayout, seed: int, dp_rank: int, ids: Ids | None = None
    ) -> None:
        """`ids`: of the run's stages; None: all sequences are shuffled as one, epoch by epoch."""
        self._pool = data if isinstance(data, Pool) else Pool({"": data})
        self._layout = layout
        self._seed = seed
        self._dp_rank = dp_rank
        self._ids = ids or self._shuffled

    def get(self, step: int) -> RankBatch:
        """The share of global batch `step`, counted from 0: pass the number of finished steps."""
        return _rank_batch(self._pool, self._ids(step), self._layout, self._dp_rank)

    def samples(self, step: int) -> list[int | str]:
        """The sequences of the whole global batch `step`, by number; with its name where a source has one."""
        return [str(place) if place.name else place.number for place in self._pool.places(self._ids(step))]

    def _shuffled(self, step: int) -> npt.NDArray[np.int64]:
        return batch_indices(step, self._layout.global_batch_size, self._pool.sequences, self._seed)


def evaluation_batches(prepared: Prepared, layout: BatchLayout, dp_rank: int, count: int) -> Iterator[RankBatch]:
    """The first `count` global batches of held-out data in fixed order, or the whole ones that are there.

    Data that fills not even one batch is repeated to fill it.
    """
    total = layout.global_batch_size
    for batch in range(min(count, max(1, prepared.sequences // total))):
        indices = np.arange(batch * total, (batch + 1) * total) % prepared.sequences
        yield _rank_batch(Pool({"": prepared}), indices, layout, dp_rank)


def _rank_batch(pool: Pool, ids: npt.NDArray[np.int64], layout: BatchLayout, dp_rank: int) -> RankBatch:
    shape = (layout.gradient_accumulation_steps, layout.data_parallel_size, layout.micro_batch_size)
    parts = [_read(pool.places(micro)) for micro in ids.reshape(shape)[:, dp_rank]]
    return RankBatch(
        [micro_batch for part in parts for micro_batch in part.micro_batches],
        valid_tokens=sum(part.valid_tokens for part in parts),
        hash=int(np.array([part.hash for part in parts]).sum()),  # int64: the sum wraps
        pairs=sum(part.pairs for part in parts),
    )


def _read(places: list[Place]) -> RankBatch:
    """One micro batch of the sequences at `places` (B,). By numpy, which keeps Python's lock where torch gives it away
    at each call, and the thread that computes waits to have it back."""
    found = read(places)
    arrays = (found.inputs, found.targets, np.flatnonzero(found.targets != IGNORED), positions(found))
    inputs, targets, counted, at = map(torch.from_numpy, arrays)
    bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(found.lengths)]).astype(np.int32))
    named = zip(places, found.documents, found.offsets.tolist(), strict=True)
    hashes = [sequence_hash(documents, offset, place.name) for place, documents, offset in named]
    return RankBatch(
        [MicroBatch(inputs, targets, counted, at, Documents(bounds, int(found.lengths.max())))],
        valid_tokens=len(counted),
        hash=int(np.array(hashes, np.int64).sum()),
        pairs=int(np.square(found.lengths).sum()),
    )


def positions(found: Sequences) -> npt.NDArray[np.int64]:
    """The place of each token in its document's part of the sequence, (B, T)."""
    begins = np.cumsum(found.lengths) - found.lengths
    return (np.arange(found.inputs.size) - np.repeat(begins, found.lengths)).reshape(found.inputs.shape)
