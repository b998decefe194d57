"""What the documents name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs import errors, reference
from settings import read_yaml
from tests.test_architecture import OURS, PRODUCT, imports

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]


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


def test_every_issue_form_asks_for_the_doctor() -> None:
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        asked = [part["attributes"]["label"] for part in read_yaml(form)["body"] if part.get("validations")]
        assert "launch.py doctor --json" in asked, form.name


def test_a_release_has_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert read_yaml(ROOT / "CITATION.cff")["version"] == version


def test_ci_tries_what_the_project_allows() -> None:
    """Every Python and every torch that pyproject.toml names, and the torch that the set-up takes."""
    matrix = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [f"Programming Language :: Python :: {python}" for python in matrix["python"]] == project["classifiers"]
    (lowest, above) = re.findall(r"torch>=2\.(\d+),<2\.(\d+)", "\n".join(project["dependencies"]))[0]
    tried = {int(torch.split(".")[1]) for torch in matrix["torch"]}
    assert tried == set(range(int(lowest), int(above)))
    assert re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0] in matrix["torch"]


def test_no_path_or_host_of_a_machine_stands_in_the_project() -> None:
    listed = [
        p for d in ("slurm", "trainer", "envs", "recipes", "tests", "docs", "benchmarks") for p in (ROOT / d).rglob("*")
    ]
    hidden = (".venv", ".checkpoint", ".forgetting", ".goodput", ".stops")  # what runs have made, which no commit holds
    listed = [path for path in listed if not set(hidden) & set(path.relative_to(ROOT).parts)]
    for path in [*listed, ROOT / "README.md", ROOT / "Makefile", ROOT / "launch.py", ROOT / "settings.py"]:
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".txt") and path != Path(__file__):
            assert not re.search(r"/work/(main|shared)|index[-]url|extra[-]index", path.read_text()), path


def test_the_reference_is_that_of_the_code() -> None:
    assert reference.PAGE.read_text() == reference.page(), "python -m docs.reference"


def test_the_page_of_errors_is_that_of_the_tables() -> None:
    assert errors.PAGE.read_text() == errors.page(), "python -m docs.errors"


def test_every_page_has_its_place_in_the_site() -> None:
    placed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(placed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_drawing_of_the_house_is_that_of_the_code() -> None:
    drawn = re.findall(r"^    (\S+) ──► (.+)$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    arrows = {room: set(below.split(", ")) for room, below in drawn}
    found: dict[str, set[str]] = {}
    for path in PRODUCT:
        modules = [room(module) for module in imports(path) if module.split(".")[0] in OURS]
        here = room(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
        if below := set(modules) - {here}:
            found.setdefault(here, set()).update(below)
    assert arrows == found


def room(module: str) -> str:
    """launch, slurm, trainer ...; of envs/ the room inside."""
    parts = module.split(".")
    return "/".join(parts[:2]) if parts[0] == "envs" else parts[0]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_each_page_starts_with_what_its_reader_will_have(page: Path) -> None:
    title, first, *_ = page.read_text().split("\n\n")
    assert title.startswith("# ") and "\n" not in title
    assert re.search(r"^At the end of this page|^You will find here|On this page you", first, re.M)
