"""The loss of a causal language model, summed over a micro batch; its logits never stand whole.

Of rows whose targets do not count (a prompt's, padding) there are none at all: where answers are short, the head and
its loss are most of what a step would do in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.data.batches import MicroBatch
from trainer.data.prepared import IGNORED
from trainer.model import attention

_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits that stand at a time: 64 MiB and 512 MiB in fp32. A GPU reads the head's weights anew for each piece."""


class LossModel(torch.nn.Module):
    """What the engines wrap: forward(micro batch) -> sum of the cross-entropy over its valid targets, fp32 scalar."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.tail = find_tail(model)
        """None: the model does with its logits what we do not know; they are left to it, whole."""
        if self.tail is not None:
            teach_the_head(model.get_output_embeddings(), self.tail)

    def forward(self, batch: MicroBatch) -> Tensor:
        if self.tail is None:
            logits = self.model(**self._inputs(batch)).logits.float()
            return functional.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        labels, counted = batch.labels.flatten(), batch.counted
        return self.model.get_output_embeddings()(self.hidden(batch), labels, counted)  # type: ignore[no-any-return]

    def hidden(self, batch: MicroBatch) -> Tensor:
        """What the head is given, (B, T, H) or (1, B x T, H)."""
        return self.model.base_model(**self._inputs(batch)).last_hidden_state  # type: ignore[no-any-return]

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        kind = self.model.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            # Rows laid end to end. (The others build a mask from positions that restart.)
            inputs |= {name: inputs[name].reshape(1, -1) for name in ("input_ids", "position_ids")}
            inputs |= _bounds(batch.documents, flash=kind != attention.NAME)
        return inputs


def logits_stand_whole(module: torch.nn.Module) -> bool:
    """Of a LossModel, whatever an engine has put around it."""
    return any(isinstance(part, LossModel) and part.tail is None for part in module.modules())


def _bounds(documents: attention.Documents, flash: bool) -> dict[str, Any]:
    if not flash:
        return {"documents": documents}
    bounds, longest = documents.bounds, documents.longest
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@dataclass(frozen=True)
class Tail:
    """What a model does with its head's output: times `scale`, then bent to stay below `cap`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """fp32, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def gradient(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """From the gradient of what came out (in place) to that of what went in; `logits`: what came out."""
        if self.cap is not None:
            gradient.mul_(1 - (logits / self.cap) ** 2)
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def find_tail(model: Any) -> Tail | None:
    """Asked of the model itself: it is given logits in place of its head's, and what it makes of them is looked at.

    No weight is read: they may lie anywhere.
    """
    given = torch.tensor([[[1.0, -2.0, 40.0]]])
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or model.base_model is model:
        return None
    outputs = _Outputs(last_hidden_state=torch.zeros(1, 1, 1))
    try:
        with (
            _replaced(model.base_model, lambda *_, **__: outputs),
            _replaced(head, lambda _: given.clone()),
            torch.no_grad(),
        ):
            made = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False).logits
    except Exception:  # a model that is built another way: its own forward pass will do
        return None
    scale = float(made[0, 0, 0])
    candidates = [Tail(), Tail(scale)]
    if (cap := getattr(model.config.get_text_config(), "final_logit_softcapping", None)) is not None:
        candidates.append(Tail(cap=cap))
    return next((tail for tail in candidates if torch.allclose(tail(given.clone()), made)), None)


class _Outputs(SimpleNamespace):
    """What a decoder gives back; None is all that is asked of it besides."""

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        return (self.last_hidden_state,)[index]


@contextmanager
def _replaced(module: torch.nn.Module, forward: Any) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def teach_the_head(head: torch.nn.Linear, tail: Tail) -> None:
    """head(hidden, labels, counted) is the loss from here on. Within the head's own call, since engines gather its
    weights there; head(hidden) stays what it was."""
    plain = head.forward

    def forward(hidden: Tensor, labels: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        if labels is None:
            return plain(hidden)
        return _HeadLoss.apply(hidden.flatten(0, -2), head.weight, head.bias, labels, counted, tail)  # type: ignore

    head.forward = forward  # type: ignore[method-assign, assignment]


class _HeadLoss(torch.autograd.Function):
    """Linear layer and cross-entropy of the rows that count, some at a time. The gradients are made on the way forward,
    so that no row is computed twice; the head's is summed in fp32, whatever the weights are."""

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, counted: Tensor, tail: Tail
    ) -> Tensor:
        """hidden (N, H), weight (V, H), bias (V,), labels (N,) and counted (M,): rows of both, int64."""
        of_hidden, of_weight, of_bias = context.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden) if of_hidden else None
        d_weight = d_bias = None
        device, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for rows in counted.split(max(1, _ELEMENTS[device] // len(weight))):
                part, target = hidden[rows].to(dtype), labels[rows][:, None]
                logits = tail(functional.linear(part, matrix, offset).float())
                shares = logits.log_softmax(1)
                total -= shares.gather(1, target).sum()
                if not any(context.needs_input_grad):
                    continue
                gradient = shares.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=shares.dtype))
                gradient = tail.gradient(gradient, logits).to(dtype)
                if d_hidden is not None:
                    d_hidden.index_copy_(0, rows, (gradient @ matrix).to(d_hidden.dtype))
                if of_weight:
                    d_weight = _plus_product(d_weight, gradient.t(), part)
                if of_bias:
                    of_piece = gradient.sum(0, dtype=torch.float32)
                    d_bias = of_piece if d_bias is None else d_bias.add_(of_piece)
                del logits, shares, gradient  # else they stand beside the next piece's: 6 bytes a logit more
        context.gradients = [
            None if made is None or of is None else made.to(of.dtype)
            for made, of in ((d_hidden, hidden), (d_weight, weight), (d_bias, bias))
        ]
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        made = [None if tensor is None else tensor.mul_(gradient) for tensor in context.gradients]
        context.gradients = [None] * len(made)
        return *made, None, None, None


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right in fp32; None: the first piece's."""
    if total is None:
        return (left @ right).float()
    return total.addmm_(left, right) if left.dtype == total.dtype else total.add_(left @ right)
