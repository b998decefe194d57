"""B5: documents of many lengths, packed, beside the same documents padded, and beside a mask over packed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.ours import Case, Ours, micro_batch, rank_batch
from benchmarks.gpu.place import Place
from trainer.data.batches import MicroBatch
from trainer.model.attention import Documents, attend

CASE = Case("3B", 8192, 1, precision="adam32", recompute=True)
MEANS = (131, 447, 866)
"""Mean lengths of the documents (tokens), lognormal, sigma 1."""
CAP = 4096
PADDED_ROWS = 8
SEQUENCES = 2
DIFFERENCE = 1e-3
"""Of the loss of a token, in bf16: its GEMMs round by the place of a row."""


def packed(place: Place) -> None:
    """B5, forward and backward: useful tokens a second are all tokens of the documents, however they lie."""
    case = CASE.at(place)
    ours = Ours(case, place)
    for mean in MEANS:
        one_set(f"3B T={case.tokens}, mean length {mean}", mean, ours, place)
    equal_losses(ours, place)
    ours.close()
    attention_alone(place)


def one_set(title: str, mean: int, ours: Ours, place: Place) -> None:
    tokens = ours.case.tokens
    sequences = [cut(lengths_of(mean, tokens, seed), tokens) for seed in range(SEQUENCES)]
    batch = rank_batch(
        [micro_batch(1, tokens, ours.model.config.vocab_size, one, seed) for seed, one in enumerate(sequences)]
    )
    documents = [length for lengths in sequences for length in lengths]
    works: dict[str, Callable[[], object]] = {
        "outlast": lambda: with_attention(ours, place.attention, lambda: ours.pass_(batch)),
        "packed, SDPA with a mask": lambda: with_attention(ours, "sdpa", lambda: ours.pass_(batch)),
        "padded to the longest of 8": lambda: with_attention(ours, "sdpa", lambda: padded_pass(ours, documents)),
    }
    times, failed = place.within(place.left() / 3).in_turn(works, most=5)
    pace = {name: SEQUENCES * tokens / spent for name, spent in times.items()}
    for peer, goal in (("padded to the longest of 8", 2.0), ("packed, SDPA with a mask", 1.3)):
        cause = "; ".join(f"{name}: {failed[name]}" for name in ("outlast", peer) if name in failed)
        figure = Figure(title, "useful tokens/s", pace.get("outlast"), peer, pace.get(peer), row="B5", cause=cause)
        place.tell(figure.faster(goal))


def with_attention(ours: Ours, name: str, work: Callable[[], object]) -> None:
    ours.model.set_attn_implementation("documents" if name == "auto" else name)
    ours.forget_gradients()
    work()


def padded_pass(ours: Ours, documents: list[int]) -> None:
    """Rows of documents, filled up on the right; the model's own loss over logits that stand whole."""
    for ids, labels, mask in padded(documents, ours.model.config.vocab_size, ours.place.device):
        ours.model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss.backward()


def padded(
    documents: list[int], vocabulary: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(documents), PADDED_ROWS):
        lengths = torch.tensor(documents[first : first + PADDED_ROWS])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.randint(0, vocabulary, mask.shape, generator=generator)
        labels = torch.where(mask, ids, -100)
        yield ids.to(device), labels.to(device), mask.long().to(device)


def lengths_of(mean: int, tokens: int, seed: int) -> list[int]:
    """Enough documents for a sequence; of short sequences shorter ones."""
    mean = min(mean, tokens // 4)
    drawn = np.random.default_rng([seed, mean]).lognormal(math.log(mean) - 0.5, 1.0, 8 * tokens // mean)
    return [int(length) for length in drawn.clip(2, min(CAP, tokens))]


def cut(lengths: list[int], tokens: int) -> list[int]:
    """The first documents that fill a sequence, the last one cut."""
    found: list[int] = []
    for length in lengths:
        found.append(min(length, tokens - sum(found)))
        if sum(found) == tokens:
            return found
    return [*found, tokens - sum(found)]


@torch.no_grad()
def equal_losses(ours: Ours, place: Place) -> None:
    """A sequence's loss is that of its documents one by one."""
    tokens = ours.case.tokens
    lengths = cut(lengths_of(447, tokens, 9), tokens)
    whole = micro_batch(1, tokens, ours.model.config.vocab_size, lengths, 9)
    ours.model.set_attn_implementation("documents" if place.attention == "auto" else place.attention)
    together = float(ours.engine.loss(whole.to(place.device)))
    apart, start = 0.0, 0
    for length in lengths:
        ids, labels = (tensor[:, start : start + length].contiguous() for tensor in (whole.input_ids, whole.labels))
        one = MicroBatch.of(ids, labels, torch.arange(length)[None])
        apart += float(ours.engine.loss(one.to(place.device)))
        start += length
    note = f"{len(lengths)} documents, bf16"
    figure = Figure("loss of a token, packed less alone", "", abs(together - apart) / tokens, row="B5", note=note)
    place.tell(figure.at_most(DIFFERENCE))


def attention_alone(place: Place) -> None:
    """Eight documents of an eighth each cost an eighth of one whole."""
    tokens, heads = (256, 2) if place.reduced else (8192, 24)
    times, failed = place.in_turn({str(count): attention_of(count, tokens, heads, place) for count in (1, 8)})
    ratio = times["1"] / times["8"] if len(times) == 2 else None
    cause = "; ".join(failed.values())
    note = f"{tokens} tokens, {heads} heads of 128, forward and backward"
    figure = Figure("attention, one document beside eight", "x", ratio, row="B5", note=note, cause=cause)
    place.tell(figure.judged("at least 5.6 of 8", ratio is not None and ratio >= 5.6))


def attention_of(documents: int, tokens: int, heads: int, place: Place) -> Callable[[], None]:
    made: dict[str, Any] = {"device": place.device, "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(1, heads, tokens, 128, **made) for _ in range(3))
    bounds = torch.arange(0, tokens + 1, tokens // documents, dtype=torch.int32, device=place.device)
    where = Documents(bounds, tokens // documents)
    module = torch.nn.Module()

    def once() -> None:
        query.grad = key.grad = value.grad = None
        attend(module, query, key, value, None, documents=where)[0].sum().backward()

    return once
