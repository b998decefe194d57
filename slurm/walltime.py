"""A time limit as Slurm writes it."""

from __future__ import annotations

import re
from datetime import timedelta

_FORM = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d{1,2}))?(?::(?P<c>\d{1,2}))?")


class Walltime(timedelta):
    """A time limit, written `[D-]HH:MM:SS` (also `HH:MM:SS`, `D-HH`, `D-HH:MM`).

    Slurm's short forms `MM` and `MM:SS` are refused: `--time=24:00` is 24 minutes, and few who write it mean that.
    """

    @classmethod
    def parse(cls, text: object) -> Walltime:
        match = _FORM.fullmatch(str(text).strip())
        if match is None or (match["days"] is None and match["c"] is None):
            raise ValueError("a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00")
        hours, minutes, seconds = (int(match[part] or 0) for part in "abc")
        if minutes > 59 or seconds > 59:
            raise ValueError("minutes and seconds go to 59; a walltime is written [D-]HH:MM:SS")
        try:
            limit = cls(days=int(match["days"] or 0), hours=hours, minutes=minutes, seconds=seconds)
        except OverflowError:
            raise ValueError("a walltime of so many days is none") from None
        if not limit:
            raise ValueError("a walltime must be longer than zero")
        return limit

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        days = f"{self.days}-" if self.days else ""
        return f"{days}{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
