"""What the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(r"`((?:slurm|trainer|envs|recipes|tests|docs)/[\w./-]+\.(?:py|yaml|md|sh))`", text):
        assert (ROOT / path).exists(), path


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text())) <= targets
    assert {"setup", "demo", "test", "check", "bench", "docs", "clean"} <= targets


def test_ci_calls_the_readmes_commands() -> None:
    assert "make check test" in (ROOT / ".ci" / "run").read_text()


def test_no_path_or_host_of_a_machine_stands_in_the_project() -> None:
    listed = [
        p for d in ("slurm", "trainer", "envs", "recipes", "tests", "docs", "benchmarks") for p in (ROOT / d).rglob("*")
    ]
    hidden = (".venv", ".checkpoint", ".forgetting", ".goodput", ".stops")  # what runs have made, which no commit holds
    listed = [path for path in listed if not set(hidden) & set(path.relative_to(ROOT).parts)]
    for path in [*listed, ROOT / "README.md", ROOT / "Makefile", ROOT / "launch.py", ROOT / "settings.py"]:
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".txt") and path != Path(__file__):
            assert not re.search(r"/work/(main|shared)|index-url|extra-index", path.read_text()), path
