"""What every phase of an attempt needs: its peers, the agreed stop, the watchdog, and a voice."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from settings import ConfigError
from trainer.config import cache_folder
from trainer.data.prepare import prepare_source
from trainer.data.prepared import Prepared
from trainer.model.new_tokens import tokenizer_folder
from trainer.records import events
from trainer.records.events import Events
from trainer.runtime import Runtime
from trainer.schema import TrainConfig
from trainer.sources import Source
from trainer.stop.lead import LeadTime
from trainer.stop.star import Star
from trainer.stop.stop import Stop
from trainer.stop.stragglers import Stragglers
from trainer.stop.watchdog import Watchdog

T = TypeVar("T")


class Attempt:
    def __init__(self, settings: TrainConfig, runtime: Runtime) -> None:
        """Collective."""
        self.runtime = runtime
        self._events = Events(runtime.run_dir, runtime.epoch, runtime.leads)
        before = events.read(runtime.run_dir) if runtime.leads else []
        self.lead = LeadTime(before, on_gpu=runtime.device.type == "cuda")
        self.watchdog = Watchdog(settings.watchdog, runtime, self.lead.step_seconds)
        self.stop = Stop(runtime, Star(runtime), self.lead, self.watchdog.alive)
        self._stragglers = Stragglers(runtime.gather(os.uname().nodename))

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank, and wait for all. One rank's ConfigError is raised on all, so that none waits for
        it; so is Stopped."""
        value, error = None, None
        try:
            value = work()
        except ConfigError as mistake:
            error = str(mistake)
        self.stop.wait_for_all()
        errors = [text for text in self.runtime.gather(error) if text]
        if errors:
            raise ConfigError(errors[0])
        return value  # type: ignore[return-value]

    def prepared(self, settings: TrainConfig, name: str, source: Source) -> Prepared:
        """Collective. A source's data, which rank 0 prepares where it is not there. `name`: as the user calls it."""
        run_dir = self.runtime.run_dir
        cache, tokenizer = cache_folder(settings.data, run_dir), tokenizer_folder(settings.model, run_dir)
        about = (name, source, settings.data, tokenizer, cache, self.say, self.stop.still_working)
        made = self.together(lambda: prepare_source(*about).folder if self.runtime.leads else None)
        folder = self.runtime.from_leader(made)
        return self.together(lambda: Prepared.open(folder))

    def tell(self, event: str, step: int, text: str = "", **values: Any) -> None:
        """By rank 0: a line in the events, and one in the log."""
        self._events.write(event, step=step, **values)
        if text:
            self.say(text)

    def say(self, text: str) -> None:
        if self.runtime.leads:
            with suppress(OSError):  # the log's disk is full: it has this line when there is room again
                print(text, flush=True)

    def saw_step(self, step: int, seconds: list[float]) -> None:
        """Each rank's own seconds, which rank 0 knows."""
        for rank, host, ratio in self._stragglers.saw_step(seconds) if self.runtime.leads else ():
            text = f"rank {rank} on {host} is slow: its own share of a step takes {ratio:.2f} x the median"
            self.tell("straggler", step, text, rank=rank, host=host, ratio=ratio)
