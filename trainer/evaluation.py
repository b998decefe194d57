"""Loss on held-out batches: the same ones every time, the same ones at every world size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

import torch

from trainer.data.batches import evaluation_batches
from trainer.data.feed import Feed
from trainer.data.prepared import Prepared
from trainer.engines.engine import Engine, forward_only
from trainer.layout import BatchLayout
from trainer.records.board import Board
from trainer.runtime import Runtime
from trainer.schema import Evaluation
from trainer.stop.stop import Stop
from trainer.stop.votes import Agreement

Losses = dict[str, float]


class HeldOut:
    """The held-out sets of a run, and what is told of their losses."""

    def __init__(self, settings: Evaluation, sets: Mapping[str, Prepared]) -> None:
        """`sets`: by name, in the recipe's order; "" where it gives none."""
        self._settings, self._sets = settings, sets

    @property
    def best(self) -> str:
        """The set whose loss says which checkpoint is the best."""
        return self._settings.best if self._settings.best is not None else next(iter(self._sets))

    def due(self, step: int, total: int) -> bool:
        """After so many steps."""
        every = self._settings.every
        return bool(every and step) and (step % every == 0 or step == total)

    def wants_first(self, known: Losses) -> bool:
        """Before the first step: a loss from which a limited one rises is not known."""
        return bool(self._settings.every) and not known.keys() >= self._settings.limits.keys()

    def evaluate(self, engine: Engine, layout: BatchLayout, runtime: Runtime, stop: Stop) -> Losses | Agreement:
        """Collective. Mean loss a valid token over each set's batches; or the agreement to stop that broke it off."""
        losses = {}
        for name, prepared in self._sets.items():
            loss = evaluate(engine, prepared, layout, self._settings.batches, runtime, stop)
            if isinstance(loss, Agreement):
                return loss
            losses[name] = loss
        return losses

    def first(self, losses: Losses, before: Losses) -> Losses:
        """The first loss of each limited set, `before` or now."""
        now = {name: losses[name] for name in self._settings.limits if isfinite(losses[name])}
        return {**now, **before}

    def tell(self, step: int, losses: Losses, first: Losses, tell: Callable[..., None], board: Board) -> None:
        """`first`: each limited set's first loss, from which the rise counts."""
        loss = losses[self.best]
        if list(losses) == [""]:
            tell("evaluation", step, f"held-out loss {loss:.4f} after step {step}", loss=finite(loss))
            board.add(step, evaluation_loss=loss)
            return
        text = ", ".join(f"{name} {one:.4f}" for name, one in losses.items())
        written = {name: finite(one) for name, one in losses.items()}
        tell("evaluation", step, f"held-out loss after step {step}: {text}", loss=finite(loss), losses=written)
        board.add(step, **{f"evaluation_loss/{name}": one for name, one in losses.items()})
        for name, limit in self._settings.limits.items():
            if name in first and not losses[name] <= first[name] * (1 + limit):  # also one that is not finite
                self._warn(step, name, losses[name], first[name], limit, tell)

    def _warn(self, step: int, name: str, loss: float, first: float, limit: float, tell: Callable[..., None]) -> None:
        rise = loss / first - 1
        text = (
            f"forgetting: the held-out loss of {name} after step {step}, {loss:.4f}, is {rise:.1%} above its first, "
            f"{first:.4f}: evaluation.limits allows {limit:.1%}"
        )
        tell("forgetting", step, text, set=name, loss=finite(loss), first=first, rise=finite(rise), limit=limit)


def finite(value: float) -> float | None:
    """JSON knows no other number."""
    return value if isfinite(value) else None


def evaluate(
    engine: Engine, prepared: Prepared, layout: BatchLayout, batches: int, runtime: Runtime, stop: Stop
) -> float | Agreement:
    """Mean loss a valid token over the held-out batches; or the agreement to stop, which breaks it off."""
    total, tokens = torch.zeros((), dtype=torch.float64, device=runtime.device), 0
    with forward_only(engine.module), Feed(evaluation_batches(prepared, layout, runtime.rank, batches)) as feed:
        while (agreement := stop.agree(feed)).reason is None and (batch := feed.take()) is not None:
            for micro in batch.micro_batches:
                total += engine.loss(micro.to(runtime.device))
            engine.stopwatch.lap()  # nobody asks for these
            tokens += agreement.valid_tokens
    if agreement.reason is not None:
        return agreement
    return runtime.sum(float(total)) / max(1, tokens)
