"""A pocket cluster with accounting: Slurm counts the age of jobs only where a slurmdbd stands behind it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.processes import Unable
from envs.pocket import Pocket

PORT = 21990
PATIENCE = 30.0  # seconds
PACKAGES = "slurmdbd mariadb-server"


@contextmanager
def multifactor(pocket: Pocket) -> Iterator[None]:
    """The pocket with a database of its own, and jobs ordered by their age. Raises Unable without the packages."""
    if missing := [name for name in ("slurmdbd", "mariadbd") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]:
        raise Unable(f"{', '.join(missing)} not found: apt-get install --no-install-recommends {PACKAGES}")
    pocket.stop_controller()
    text = pocket.slurm_conf.read_text().replace("AccountingStorageType=accounting_storage/none\n", "")
    pocket.slurm_conf.write_text(f"{text}{_slurm_conf(pocket)}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        socket = stack.enter_context(_database(folder))
        stack.enter_context(_slurmdbd(pocket, socket))
        for words in (["cluster", pocket.name], ["account", "all", "Fairshare=1"], ["user", "root", "account=all"]):
            pocket.ask("sacctmgr", "--immediate", "add", *words)
        pocket.start_controller()
        pocket.ask("scontrol", "reconfigure")
        pocket.wait_ready()
        yield


def _slurm_conf(pocket: Pocket) -> str:
    lines = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={PORT}",
        f"AccountingStoragePass={pocket.layout.munge_socket}",
        "PriorityType=priority/multifactor",
        "PriorityWeightAge=1000000",
        "PriorityMaxAge=01:00:00",
        "PriorityCalcPeriod=1",  # minutes: ages are counted anew as often
    ]
    return "\n".join([*lines, ""])


@contextmanager
def _database(folder: Path) -> Iterator[Path]:
    """A MariaDB that listens on a socket alone. Yields the socket."""
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, "mysql")
    install = ["mariadb-install-db", f"--datadir={data}", "--user=mysql", "--auth-root-authentication-method=socket"]
    subprocess.run(install, check=True, capture_output=True)
    socket = data / "socket"
    options = [f"--datadir={data}", f"--socket={socket}", f"--pid-file={data}/pid", "--skip-networking", "--user=mysql"]
    with _running(["mariadbd", "--no-defaults", *options], folder / "mariadbd.log"):
        _wait(socket.exists, "mariadbd")
        create = ["mariadb", f"--socket={socket}", "--execute=create database slurm_acct_db"]
        subprocess.run(create, check=True, capture_output=True)
        yield socket


@contextmanager
def _slurmdbd(pocket: Pocket, socket: Path) -> Iterator[None]:
    conf = pocket.folder / "slurmdbd.conf"  # it looks beside slurm.conf
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={pocket.layout.munge_socket}",
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={PORT}",
        "SlurmUser=root",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm_acct_db",
        f"PidFile={pocket.folder}/pid/slurmdbd",
    ]
    conf.write_text("\n".join([*lines, ""]))
    conf.chmod(0o600)
    variables = {**pocket.env(), "MYSQL_UNIX_PORT": str(socket)}
    with _running(["slurmdbd", "-D"], pocket.folder / "log" / "slurmdbd.log", variables):
        _wait(
            lambda: (
                subprocess.run(["sacctmgr", "show", "cluster"], env=pocket.env(), capture_output=True).returncode == 0
            ),
            "slurmdbd",
        )
        yield


@contextmanager
def _running(argv: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    with open(log, "w") as file:
        process = subprocess.Popen(argv, env=env, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise Unable(f"{what} does not answer")
        time.sleep(0.2)
