"""Every command of the documents is one that is taken as it stands; what can be rehearsed is."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

import flags
import launch
from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer
from settings import dump_yaml, read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(
    r"^(?:    |\$ )((?:python )?launch\.py .*|python -m .*|make .*|outlast .*|torchrun .*)$", re.MULTILINE
)
LINES = sorted({(page.name, line) for page in PAGES for line in COMMAND.findall(page.read_text())} - {
    ("README.md", "launch.py      the command line: parse, check, dispatch"),
})  # fmt: skip
REHEARSED = ("submit", "sweep", "plan", "prepare")


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return words[1:] if words[:2] == ["python", "launch.py"] else words


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[:60]}" for page, line in LINES])
def test_it_is_taken(page: str, line: str) -> None:
    program, *words = words_of(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif program == "launch.py":
        assert words[0] == "pocket" or taken(words)
    else:
        module = words[words.index("-m") + 1]
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert not spec.submodule_search_locations or importlib.util.find_spec(f"{module}.__main__"), module


def taken(words: list[str]) -> str:
    """The verb."""
    at = words.index("--") if "--" in words else len(words)
    return flags.parse(words[:at], words[at + 1 :] or None)[0]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes that the documents name: the demo, with a page of text."""
    folder = tmp_path_factory.mktemp("desk")
    tree = read_yaml(ROOT / "recipes" / "demo.yaml")
    (folder / "text.jsonl").write_text('{"text": "Now is the winter of our discontent."}\n' * 2000)
    tree["data"] |= {"train": [str(folder / "text.jsonl")], "evaluation": [str(folder / "text.jsonl")]}
    tree["model"]["tokenizer"] = str(folder / "tokenizer")
    tree["train"] |= {"global_batch_size": 96}  # by 2 to 16 ranks
    (folder / "tokenizer").mkdir()
    train_tokenizer(["Now is the winter of our discontent."] * 50).save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    for name in ("sft.yaml", "cpt.yaml", "recipe.yaml", "recipes/demo.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dump_yaml(tree))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, '
        '"num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 512}')  # fmt: skip
    (folder / "ours.yaml").write_text("description: ours\n")
    (folder / "new_tokens.txt").write_text("winter\n")
    return folder


ELSEWHERE = (
    "recipes/regulator",
    "--suggest-tokens",
    "--show",
    "--calibrate",
    "--table",
    "prepare sft.yaml job.archive",
)
"""Their own tests run them."""
REHEARSALS = [
    (page, line)
    for page, line in LINES
    if "launch.py" in words_of(line)[0]
    and words_of(line)[1] != "pocket"
    and taken(words_of(line)[1:]) in REHEARSED
    and not any(words in line for words in ELSEWHERE)
]


@pytest.mark.parametrize(("page", "line"), REHEARSALS, ids=[f"{page}: {line[:60]}" for page, line in REHEARSALS])
def test_it_can_be_rehearsed(
    page: str, line: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *words = words_of(line)
    verb = taken(words)
    own = ["--dry-run"] if verb in ("submit", "sweep") and "--dry-run" not in words else []
    own += ["--cluster", "generic"] if "--cluster" not in words else []
    monkeypatch.chdir(desk)
    monkeypatch.setenv("SCRATCH", str(desk))
    if "--check" in words:  # of what is prepared
        assert launch.main([word for word in words if word != "--check"]) == 0
    at = words.index("--") if "--" in words else len(words)
    assert launch.main([*words[:at], *own, *words[at:]]) == 0, capsys.readouterr().err
