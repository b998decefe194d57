"""The pocket cluster: a real Slurm with several nodes on this one machine.

    pocket = up(nodes=2, gpus=8)
    subprocess.run(["sbatch", "--nodes=2", "job.sh"], env=pocket.env())
    pocket.kill_node("node2")
    pocket.down()

From a shell: `python -m envs.pocket up`, `status`, `down`.
"""

from envs.pocket.cluster import NodeStatus, Pocket, Status
from envs.pocket.errors import PocketError
from envs.pocket.life import find, up

__all__ = ["NodeStatus", "Pocket", "PocketError", "Status", "find", "up"]
