"""The pocket cluster: a real Slurm with several nodes on this one machine.

    pocket = up(nodes=2, gpus=8)
    subprocess.run(["sbatch", "--nodes=2", "job.sh"], env=pocket.env())
    pocket.kill_node("node2")
    pocket.down()

From a shell: `python -m envs.pocket up`, `status`, `down`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.pocket.cluster import NodeStatus, Pocket, Status
    from envs.pocket.errors import PocketError
    from envs.pocket.life import find, up

__all__ = ["NodeStatus", "Pocket", "PocketError", "Status", "find", "up"]
_MODULES = {"PocketError": "errors", "find": "life", "up": "life"}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a command line that finds no pocket pays for none."""
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'cluster')}"), name)
