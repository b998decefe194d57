"""Times as people say them."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """`41 s`, `12 min`, `3 h 58 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86_400, whole // 3600, whole // 60
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 10 else f"{whole} s"


def clock(when: float) -> str:
    """`at 06:10`, on another day `on Sun 29 Nov at 06:10`."""
    then, now = time.localtime(when), time.localtime()
    same = then[:3] == now[:3]
    return time.strftime("at %H:%M" if same else "on %a %d %b at %H:%M", then)
