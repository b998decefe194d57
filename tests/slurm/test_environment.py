"""What the ranks get, and what they must not get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError
from slurm.config import make_job
from slurm.environment import (
    CACHES,
    Layout,
    allocation,
    attempt_variables,
    is_secret,
    promised,
    rank_variables,
    without_job,
)

OUTER = [
    *(
        "SLURM_JOB_ID",
        "SLURM_CPU_BIND",
        "SLURMD_NODENAME",
        "SBATCH_PARTITION",
        "SRUN_CPUS_PER_TASK",
        "SALLOC_ACCOUNT",
        "SUBMITIT_EXECUTOR",
        "OUTLAST_ATTEMPT",
    ),
    *("PMI_RANK", "PMI2_JOBID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "TORCHELASTIC_RUN_ID"),
    *(
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "ROLE_RANK",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CROSS_RANK",
        "LOCAL_SIZE",
    ),
]


def test_nothing_of_an_outer_job_stays() -> None:
    kept = {
        "SLURM_CONF": "x",
        "HOME": "x",
        "HF_TOKEN": "x",
        "CUDA_VISIBLE_DEVICES": "0",
        "MYRANK": "x",
        "OMP_NUM_THREADS": "1",
    }
    assert without_job({**dict.fromkeys(OUTER, "outer"), **kept}) == kept


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_table_of_what_is_promised_is_what_the_ranks_get(nodes: int) -> None:
    layout = Layout(nodes, 8)
    got = {
        **rank_variables(layout, 3, "n1", 1),
        **attempt_variables(Path("/run"), 1, 1.0, False, Path("/hosts"), Path("/progress")),
    }
    by_the_shim = {"OMP_NUM_THREADS", *CACHES, *(["GLOO_SOCKET_IFNAME"] if nodes > 1 else [])}
    site = {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_IB_TIMEOUT": 18, "NCCL_DEBUG": "INFO"}
    table = promised(layout, Path("/run"), {"NCCL_DEBUG": "WARN"}, site, "i", {"NCCL_IB_TIMEOUT": "22"})
    assert {name for name, _ in table} == {*got, *by_the_shim, *site} and len(table) == len(dict(table))
    assert dict(table)["WORLD_SIZE"] == got["WORLD_SIZE"] and dict(table)["NCCL_DEBUG"] == "WARN"
    assert dict(table)["NCCL_SOCKET_IFNAME"] == "ib0 (the site's)"
    assert dict(table)["NCCL_IB_TIMEOUT"] == "22 (your shell's)"
    assert ("name with i behind it" in dict(table)["MASTER_ADDR"]) is (nodes > 1)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[
            (name, True)
            for name in (
                *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "Db_Password", "KEY", "TOKEN_2"),
                *("PGPASSWORD", "DB_PASSWD", "MYSQL_PWD", "OPENAI_APIKEY"),
            )
        ],
        *[(name, False) for name in ("MONKEY", "TOKENIZERS_PARALLELISM", "KEYBOARD", "SECRETARY", "PASSWORDS", "")],
        *[(name, False) for name in ("PWD", "OLDPWD", "MAX_TOKENS")],
    ],
)
def test_secrets_are_known_by_a_word_of_their_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


@pytest.mark.parametrize(
    ("words", "where", "name"),
    [
        ({"environment": {"HF_TOKEN": "hf_1"}}, "environment", "HF_TOKEN"),
        ({"setup": ["module load cuda", "export A=1 && export HF_TOKEN=hf_1"]}, "setup", "HF_TOKEN"),
        ({"setup": ["WANDB_API_KEY='1' true"]}, "setup", "WANDB_API_KEY"),
        ({"setup": ["export A=1 HF_TOKEN=hf_1"]}, "setup", "HF_TOKEN"),
        ({"rank_command": ["apptainer", "exec", "--env", "A=1,HF_TOKEN=hf_1"]}, "command", "HF_TOKEN"),
        ({"command": ["env", "HF_TOKEN=hf_1", "python", "train.py"]}, "command", "HF_TOKEN"),
        ({"sbatch": {"export": "ALL,HF_TOKEN=hf_1"}}, "export", "HF_TOKEN"),
        ({"srun_args": ["--export=ALL,HF_TOKEN=hf_1"]}, "export", "HF_TOKEN"),
    ],
)
def test_a_secret_is_never_taken_down(words: dict[str, Any], where: str, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_job({"name": "x", **words}, "sft.yaml")
    assert str(error.value) == (
        f"sft.yaml: {where}: {name} is a secret and would be written to files: type `export {name}=...` in your shell"
        " before launch.py, and the ranks get it from there"
    )


def test_what_only_looks_like_a_secret_is_taken() -> None:
    make_job(
        {
            "name": "x",
            "environment": {"MONKEY": "1"},
            "setup": ["export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$MY_TOKEN"', "tool --key=a"],
            "srun_args": ["--container-image=my.sif"],
            "command": ["train.py", "--text-key=text", "--SORT-KEY=a"],
        },
        "sft.yaml",
    )


def test_a_folder_that_no_runtime_could_bind() -> None:
    make_job({"name": "x", "binds": ["/a:b"]}, "sft.yaml")
    with pytest.raises(ConfigError, match="^/a:b: a folder with a colon or a comma cannot be bound"):
        make_job({"name": "x", "binds": ["/a:b"], "rank_command": ["run", "--bind={binds}"]}, "sft.yaml")


def test_a_job_that_is_no_array_is_none_by_what_an_outer_one_left() -> None:
    """sbatch hands the variables of the job around it on."""
    left = {"SLURM_JOB_ID": "200", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "3"}
    assert allocation(left, array=False).job_id == "200"
    assert allocation(left).job_id == "100_3"
