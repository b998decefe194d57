"""What reaches the ranks of a job that was submitted from inside another one, and a secret over two jobs."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from slurm.environment import Layout, promised
from tests.cluster.conftest import Launch, causes, job_log, over
from tests.slurm.test_environment import OUTER

SECRET = "hf_not-for-any-file"
# Writes down its environment, the secret as a hash; in the first attempt it runs until TERM.
DUMP = """
import hashlib, json, os, signal, sys, time
seen = dict(os.environ)
seen["hash"] = hashlib.sha256(seen.pop("HF_TOKEN").encode()).hexdigest()
with open(f"{seen['SEEN']}/{seen['OUTLAST_ATTEMPT']}-{seen['RANK']}", "w") as file:
    json.dump(seen, file)
if seen["OUTLAST_ATTEMPT"] == "1":
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
    while True:
        time.sleep(0.05)
"""


def test_an_outer_job_stays_out_and_a_secret_goes_on(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()
    shell = {**dict.fromkeys(OUTER, "of-the-outer-job"), "HF_TOKEN": SECRET, "MINE": "kept", "SEEN": str(folder)}
    words = ["--nodes", "2", "--gpus", "2", "-t", "00:01:00", "job.lead_seconds=55"]
    run = launch(*words, program=DUMP, **shell)
    over(run)
    assert causes(run) == ["timeout", "done"], job_log(run)
    first, second = run.attempts()
    assert first["job_id"] != second["job_id"]  # a successor, queued by the first job's supervisor

    names = {name for name, _ in promised(Layout(2, 2), run.path, {}, {}, "")} - {
        "GLOO_SOCKET_IFNAME"
    }  # where it is needed
    for attempt in (1, 2):
        for rank in range(4):
            seen = json.loads((folder / f"{attempt}-{rank}").read_text())
            assert not [name for name, value in seen.items() if "of-the-outer-job" in value]
            assert seen["MINE"] == "kept" and seen["hash"] == sha256(SECRET.encode()).hexdigest()
            assert names <= set(seen) and seen["RANK"] == str(rank) and seen["WORLD_SIZE"] == "4"
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if SECRET.encode() in path.read_bytes()]
