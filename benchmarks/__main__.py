"""`make bench`: measurements side by side in one run, as ratios of medians, since the machines are noisy."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

from benchmarks import command_line

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    rows = command_line.measure()
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    record = {"date": time.strftime("%Y-%m-%d"), **machine, "rows": rows}
    for row in rows:
        print(f"{row['name']:<40} {row['seconds']:.3f} s   {row['ratio']:.1f} x {row['peer']}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
