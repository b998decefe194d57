"""Code as it was at submission."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ConfigError
from slurm import snapshot


def write(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names(code: snapshot.CommandCode | None) -> set[str]:
    assert code is not None
    return set(map(str, code.files))


def test_ours_is_whole_and_known_by_its_hash(tmp_path: Path) -> None:
    snapshot.copy_ours(tmp_path)
    first = json.loads((tmp_path / "code.json").read_text())
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    argv = [sys.executable, "-P", "-c", "import slurm.supervisor, trainer.run; print(slurm.supervisor.__file__)"]
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.startswith(str(tmp_path / "code"))
    snapshot.copy_ours(tmp_path)  # --update-code
    again = json.loads((tmp_path / "code.json").read_text())
    assert again["sha256"] == first["sha256"] and again["files"] > 60
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_without_git_is_copied_without_what_is_no_code(tmp_path: Path) -> None:
    write(
        tmp_path,
        "train.py",
        "lib/model.py",
        "config.yaml",
        "weights.bin",
        "data/a.json",
        "runs/x/job.yaml",
        ".cache/a.py",
    )
    write(tmp_path, "env/pyvenv.cfg", "env/lib/x.py")
    code = snapshot.of_command(["python", "train.py", "--config", "config.yaml", "weights.bin"], tmp_path)
    assert code is not None and names(code) == {"train.py", "lib/model.py", "config.yaml"}
    target = tmp_path / "copy"
    words = snapshot.copied(["python", "train.py", "--config", "config.yaml", "weights.bin"], code, target, tmp_path)
    assert words == ["python", f"{target}/train.py", "--config", f"{target}/config.yaml", "weights.bin"]
    first = snapshot.copy_command(code, target)
    write(tmp_path, "train.py", text="edited")
    assert (target / "train.py").read_text() == "x"
    assert snapshot.copy_command(code, target) != first


def test_a_repository_is_copied_whole_without_what_it_ignores(tmp_path: Path) -> None:
    write(tmp_path, "src/train.py", "lib.py", "notes.md", "big.bin", ".gitignore", text="big.bin\n")
    write(tmp_path, "src/data/loader.py", "data/rows.json", "data/tracked.json", "data/new.py")
    write(tmp_path, "conf/data/small.yaml")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "src", "conf", "data/tracked.json"], check=True)
    code = snapshot.of_command(["bash", "-c", "true", "src/train.py"], tmp_path)
    # A folder of data is none, but for code and settings that are tracked.
    tracked = {"src/data/loader.py", "conf/data/small.yaml"}
    assert names(code) == {"src/train.py", *tracked, "lib.py", "notes.md", ".gitignore"}


@pytest.mark.parametrize("submodule", [True, False])
def test_repositories_inside_are_copied_too(tmp_path: Path, submodule: bool) -> None:
    """What `import` finds beside the script must be there in the copy."""
    write(tmp_path / "other", "megatron/core.py", "big.bin", ".gitignore", text="big.bin\n")
    write(tmp_path / "mine", "train.py")
    git = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=x", "-c", "user.email=x"]
    for name in ("other", "mine"):
        subprocess.run([*git, "init", "-q", str(tmp_path / name)], check=True)
        subprocess.run([*git, "-C", str(tmp_path / name), "add", "."], check=True)
        subprocess.run([*git, "-C", str(tmp_path / name), "commit", "-qm", "x"], check=True)
    words = ["submodule", "--quiet", "add"] if submodule else ["clone", "-q"]
    argv = [*git, "-C", str(tmp_path / "mine"), *words, str(tmp_path / "other"), "third_party/it"]
    subprocess.run(argv, check=True)
    code = snapshot.of_command(["python", "train.py"], tmp_path / "mine")
    inside = {"third_party/it/megatron/core.py", "third_party/it/.gitignore"}
    assert names(code) == {"train.py", *inside, *[".gitmodules"] * submodule}


def test_a_repository_inside_runs_no_program_of_its_own(tmp_path: Path) -> None:
    """As in an archive that somebody has packed with its .git: it is this user's own when it is unpacked."""
    for folder in (tmp_path, tmp_path / "corpus"):
        write(folder, "train.py")
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
    hook = ["config", "core.fsmonitor", f"touch {tmp_path}/ran; false"]
    subprocess.run(["git", "-C", str(tmp_path / "corpus"), *hook], check=True)
    assert names(snapshot.of_command(["python", "train.py"], tmp_path)) == {"train.py", "corpus/train.py"}
    assert not (tmp_path / "ran").exists()


def test_a_module_of_the_working_folder_is_taken_from_the_copy(tmp_path: Path) -> None:
    write(tmp_path, "pkg/__init__.py", text="")
    write(tmp_path, "pkg/__main__.py", text="print('before')")
    command = [sys.executable, "-m", "pkg"]
    code = snapshot.of_command(command, tmp_path)
    assert code is not None
    snapshot.copy_command(code, tmp_path / "copy")
    write(tmp_path, "pkg/__main__.py", text="print('after')")
    env = {**os.environ, **snapshot.module_path(command, code, tmp_path / "copy", tmp_path)}
    assert subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True).stdout == "before\n"
    assert snapshot.of_command([sys.executable, "-m", "json.tool"], tmp_path) is None
    assert snapshot.of_command(["hostname"], tmp_path) is None


def test_too_many_files_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_FILES", 3)
    write(tmp_path, "train.py", *(f"many/{i}.json" for i in range(5)))
    with pytest.raises(ConfigError, match="more than 3 files; largest: many .*job.snapshot=false"):
        snapshot.of_command(["python", "train.py"], tmp_path)


def test_a_read_only_checkout_gives_a_writable_copy(tmp_path: Path) -> None:
    write(tmp_path / "ro", "train.py", "lib/a.sh")
    (tmp_path / "ro" / "lib" / "a.sh").chmod(0o555)
    (tmp_path / "ro" / "lib").chmod(0o555)
    code = snapshot.of_command(["python", "train.py"], tmp_path / "ro")
    assert code is not None
    for _ in range(2):  # the second takes the first one's place
        snapshot.copy_command(code, tmp_path / "copy")
    assert os.access(tmp_path / "copy" / "lib" / "a.sh", os.X_OK)
    assert (tmp_path / "copy" / "lib").stat().st_mode & 0o200
    (tmp_path / "ro" / "lib").chmod(0o755)
