"""EWC and L2-SP: weights held near those that the run started from, by as much as each one matters for general text.

How much it matters is the diagonal of the Fisher information: squared gradients of the log-likelihood, one sequence at
a time (the square of a batch's mean gradient would be too small by about the number of its sequences), summed and
divided by the tokens that counted. It is made once, before the first step, and kept in a folder beside the prepared
data, which every run with the same weights, data and settings finds. The run's own folder says in forgetting.json which
it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from durable import write_atomic
from settings import ConfigError
from trainer.attempt import Attempt
from trainer.checkpoint import artifact
from trainer.config import cache_folder
from trainer.data.batches import Batches
from trainer.data.prepared import Prepared
from trainer.engines.anchored import IMPORTANCE, Anchored, fingerprint
from trainer.engines.engine import Engine, without_dropout
from trainer.engines.shard import Shard
from trainer.layout import BatchLayout
from trainer.model.weights import fill
from trainer.schema import TrainConfig

NAME = "forgetting.json"
_FORMAT = 1  # rises when the same parts give another artifact


class Known(msgspec.Struct, frozen=True):
    """What the run's folder says: from here a resume has to find the same."""

    weights: str
    """Fingerprint of those that the run started from."""
    artifact: str | None
    """Its folder; None: model.path alone holds them, and all matter alike."""
    digest: str | None
    """Of the artifact."""


class Forgetting:
    def __init__(self, settings: TrainConfig, attempt: Attempt, engine: Engine, model: dict[str, Any]) -> None:
        """`model`: what it computes, as a resume compares it."""
        assert settings.forgetting is not None
        self._settings, self._forgetting = settings, settings.forgetting
        self._attempt, self._runtime, self._engine, self._model = attempt, attempt.runtime, engine, model
        self._ewc = self._forgetting.method == "ewc"
        self._anchored = Anchored(engine, self._forgetting.device == "cpu", self._ewc)
        self._path = self._runtime.run_dir / NAME

    # --- before the first step ---

    def begin(self, forked: bool) -> None:
        """Collective. The run starts from the weights that it has now; `forked`: no folder holds them. Raises
        ConfigError; Stopped."""
        self._anchored.take_weights()
        weights, kinds = self._fingerprint(), [IMPORTANCE] * self._ewc
        if forked or self._settings.model.path is None:
            kinds.append("weights")
        folder = self._find_or_make(weights, kinds) if kinds else None
        known = Known(weights, str(folder) if folder else None, artifact.digest(folder) if folder else None)
        if folder:
            self._read(folder, kinds, "remove this folder, and it is made again")
        self._attempt.together(lambda: self._note(known))
        self._hold()

    def resume(self) -> None:
        """Collective. The run goes on: what held its weights is read again. Raises ConfigError where it has changed."""
        known = self._attempt.together(self._known)
        kinds, advice = [IMPORTANCE] * self._ewc, "restore it, or start a new run"
        if known.artifact is not None:
            folder = self._runtime.from_leader(self._where(known.artifact))
            if self._runtime.from_leader(artifact.digest(folder)) not in (None, known.digest):
                raise ConfigError(f"{folder} is not what this run was trained with ({self._path}): {advice}")
            kinds += ["weights"] * ("weights" in self._kinds(folder, advice))
            self._read(folder, kinds, advice)
        if "weights" not in kinds:
            self._attempt.together(lambda: fill(self._anchored.shards, self._settings.model, self._settings.train.seed))
        if self._fingerprint() != known.weights:
            where = f"model.path={self._settings.model.path}"
            raise ConfigError(f"{where} no longer holds the weights that the run started from: {advice}")
        self._hold()

    def penalty(self) -> float:
        """Collective. strength / 2 x sum of importance x (distance from the start)^2."""
        total = self._runtime.sum(self._anchored.distance()) / self._engine.replicas[1]
        return self._forgetting.strength / 2 * total

    def _hold(self) -> None:
        self._anchored.pull(self._forgetting.strength)

    # --- what the run knows ---

    def _note(self, known: Known) -> None:
        if self._runtime.leads:
            write_atomic(self._path, msgspec.json.format(msgspec.json.encode(known)).decode() + "\n")

    def _known(self) -> Known:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Known)
        except FileNotFoundError:
            what = "is missing"
        except msgspec.DecodeError as error:
            what = f"is damaged ({error})"
        raise ConfigError(
            f"{self._path} {what}: it says what the run's weights are held near to: restore it, or start a new run"
        )

    def _where(self, noted: str) -> Path:
        """The artifact: where it was, or in the folder of prepared data as that is called now."""
        cache = cache_folder(self._settings.data, self._runtime.run_dir)
        now = cache / Path(noted).name
        return now if now.is_dir() and not Path(noted).is_dir() else Path(noted)

    def _fingerprint(self) -> str:
        """Collective. Of the anchor, however it is shared out."""
        sums = {shard.name: fingerprint(shard, self._engine.replicas) for shard in self._anchored.shards}
        said = self._runtime.gather(sums)
        whole = [(s.name, s.shape, sum(one[s.name] for one in said) % (1 << 64)) for s in self._anchored.shards]
        return xxhash.xxh3_128_hexdigest(repr(whole).encode())

    # --- the artifact ---

    def _find_or_make(self, weights: str, kinds: list[str]) -> Path:
        """Collective."""
        to_keep = self._settings.to_keep.items()
        prepared = [self._attempt.prepared(self._settings, name, source) for name, source in to_keep]
        parts = {
            "format": _FORMAT,
            "weights": weights,
            "kinds": kinds,
            "model": self._model,
            "bf16": self._settings.train.bf16_passes,
            "data": [one.fingerprint for one in prepared],
            "sequences": self._forgetting.sequences if self._ewc else 0,
        }
        cache = cache_folder(self._settings.data, self._runtime.run_dir)
        folder = cache / f"{self._forgetting.method}-{artifact.name_of(parts)}"
        if self._runtime.from_leader(folder.is_dir()):
            self._attempt.say(f"found how much each weight matters: {folder}" if self._ewc else f"found {folder}")
            return folder
        about = self._estimate(prepared) if self._ewc else {}
        data = " ".join(one.fingerprint for one in prepared)
        shards = list(self._with(kinds))
        artifact.write(
            *(folder, shards, self._engine.replicas, {**parts, **about}, data),
            *(self._runtime, self._attempt.together),
        )
        return folder

    def _read(self, folder: Path, kinds: list[str], advice: str) -> None:
        """Collective."""
        manifest = self._attempt.together(lambda: artifact.read(folder, self._with(kinds), advice))
        if self._ewc:  # to an average of 1: the strength is in the same units for every model, and for l2sp
            for shard in self._anchored.shards:
                shard.tensors[IMPORTANCE][:].div_(manifest.config["mean"])

    def _kinds(self, folder: Path, advice: str) -> list[str]:
        return list(self._attempt.together(lambda: artifact.read(folder, [], advice)).config["kinds"])

    def _with(self, kinds: list[str]) -> Iterator[Shard]:
        for shard in self._anchored.shards:
            yield replace(shard, tensors={kind: shard.tensors[kind] for kind in kinds})

    # --- the Fisher information ---

    def _estimate(self, prepared: list[Prepared]) -> dict[str, Any]:
        """Collective. The importance, in the engine's own passes: every rank has the same sequence, so that the
        gradient that the ranks agree on, of which each is shown its share, is that of one sequence alone."""
        attempt, wanted = self._attempt, self._forgetting.sequences
        attempt.watchdog.enter("importance")
        sources = [Batches(one, BatchLayout(1, 1, 1), 0, 0) for one in prepared]
        sequences = min(wanted, len(sources) * min(one.sequences for one in prepared))
        fewer = f", which is all that forgetting.data has of the {wanted} wanted" if sequences < wanted else ""
        attempt.say(f"how much each weight matters is read from {sequences} sequences{fewer}")
        tokens = 0
        with without_dropout(self._engine.module), self._engine.optimizer.shown(self._anchored.add_square):
            for index in range(sequences):
                attempt.stop.wait_for_all()  # a stop is heard here, by all ranks alike
                batch = sources[index % len(sources)].get(index // len(sources))
                micro = batch.micro_batches[0].to(self._runtime.device)
                self._engine.backward(micro, self._runtime.world_size, last=True)  # of the sum over its tokens
                self._engine.step(0.0, 0)
                tokens += batch.valid_tokens
        total, count = 0.0, 0
        for shard in self._anchored.shards:
            values = shard.tensors[IMPORTANCE][:].div_(max(1, tokens))
            total += float(values.double().sum())
            count += math.prod(shard.shape)
        mean = self._runtime.sum(total) / self._engine.replicas[1] / count
        if not (math.isfinite(mean) and mean > 0):
            raise ConfigError(f"forgetting.data: its gradients are {mean} on the average: no weight can be told apart")
        attempt.tell("importance", 0, sequences=sequences, tokens=tokens, mean=mean)
        return {"mean": mean, "read": sequences, "tokens": tokens}
