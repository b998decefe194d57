"""Attention over packed documents that computes no token pair of two documents: what a mask would hide is not there.

`documents` is registered with transformers as an attention implementation; the bounds travel through the model's own
keyword arguments. On the GPU it is torch's kernel for sequences of varying length, on the CPU one call a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "documents"
_SHORT = 128
"""Tokens: shorter documents that lie side by side share one call and a mask, since a call costs more than they do."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a micro batch begin, its rows laid end to end."""

    bounds: Tensor
    """int32, (documents + 1,): the first token of each, and the end; on the device."""
    longest: int
    """Tokens of the longest document."""

    @cached_property
    def groups(self) -> list[list[int]]:
        """Bounds of documents that are computed in one call: a long one alone, or short neighbours together;
        documents of one length apart, since one call takes them all."""
        groups: list[list[int]] = []
        documents = list(pairwise(self.bounds.tolist()))
        if len({stop - start for start, stop in documents}) == 1:
            return [list(document) for document in documents]
        for start, stop in documents:
            if groups and stop - groups[-1][0] <= _SHORT:
                groups[-1].append(stop)
            else:
                groups.append([start, stop])
        return groups

    @cached_property
    def _masks(self) -> dict[tuple[int, int | None], Tensor | None]:
        return {}

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each group."""
        return [group[-1] - group[0] for group in self.groups]

    @cached_property
    def alike(self) -> bool:
        """Each group is a document, and all are of one length."""
        return len(set(self.lengths)) == 1 and all(len(group) == 2 for group in self.groups)

    def masks(self, window: int | None) -> Iterator[Tensor | None]:
        """Of each group: which of its tokens see which, (n, n); None: each sees all before it. They are the same in
        every layer with the same window (tokens that one sees, itself among them)."""
        for index, group in enumerate(self.groups):
            if (index, window) not in self._masks:
                self._masks[index, window] = _mask(group, window)
            yield self._masks[index, window]


def _mask(group: list[int], window: int | None) -> Tensor | None:
    length = group[-1] - group[0]
    if len(group) == 2 and (window is None or length <= window):
        return None
    document = torch.repeat_interleave(torch.tensor([b - a for a, b in pairwise(group)]))
    place = torch.arange(length)
    distance = place[:, None] - place
    seen = (document[:, None] == document) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def register(compiled: bool = False) -> None:
    """Make the name known to transformers; not to its masks: then it makes none, and looks at no position.

    In `compiled` layers it stays as it is: its loop is over documents, and another batch has others.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(attend) if compiled else attend)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, N, D), key and value (1, key heads, N, D) -> (1, N, heads, D)."""
    groups, device = query.shape[1] // key.shape[1], query.device
    if torch.is_autocast_enabled(device.type):  # the rotation has made queries and keys fp32
        query, key, value = (tensor.to(torch.get_autocast_dtype(device.type)) for tensor in (query, key, value))
    if _has_a_kernel(device) and query.dtype != torch.float32 and not (dropout or softcap):
        return _on_the_gpu(query, key, value, documents, scaling, sliding_window), None
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if documents.alike:  # one call for all of them, which are the rows of a batch
        query, key, value = (t[0].unflatten(1, (-1, documents.longest)).transpose(0, 1) for t in (query, key, value))
        parts = [(query, key, value)]
    else:  # (parts of a slice would each have a gradient as long as all tokens)
        parts = list(zip(*(t.split(documents.lengths, 2) for t in (query, key, value)), strict=True))
    out = []
    for (q, k, v), mask in zip(parts, documents.masks(sliding_window), strict=False):
        mask = mask if mask is None else mask.to(query.device)
        if softcap:
            out.append(_capped(q, k, v, mask, scaling, softcap, dropout))
        else:
            causal = mask is None
            out.append(scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scaling))
    if documents.alike:
        return out[0].transpose(1, 2).flatten(0, 1)[None], None
    return torch.cat(out, 2).transpose(1, 2), None


def _has_a_kernel(device: torch.device) -> bool:
    """For sequences of varying length."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, cap: float, dropout: float
) -> Tensor:
    """With scores bent to stay below `cap` (Gemma 2), for which there is no kernel."""
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    n = q.shape[2]
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril() if mask is None else mask
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1, dtype=torch.float32).to(q.dtype)
    return torch.dropout(weights, dropout, dropout > 0) @ v


def _on_the_gpu(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    bounds, longest = documents.bounds, documents.longest
    seen = (-1, 0) if window is None else (window - 1, 0)
    out = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=seen, enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, Tensor)
    return out[None]
