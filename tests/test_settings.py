"""The settings reader: YAML 1.2, one-line errors, trees."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import ConfigError, Struct, convert, dump_yaml, merge, override, parse_yaml, read_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
)
TREES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z]{1,5}\Z"), x, max_size=3)
)


class Leaf(Struct, frozen=True):
    rate: float
    size: int = 1
    mode: Literal["slow", "fast"] = "slow"


class Left(Struct, frozen=True, tag_field="kind", tag="left"):
    depth: int = 1


class Right(Struct, frozen=True, tag_field="kind", tag="right"):
    width: int = 1


class Tree(Struct, frozen=True):
    leaf: Leaf
    side: Left | Right = Left()


def error(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        convert(data, Tree, "recipe.yaml")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(TREES)
def test_what_is_written_is_read_back(tree: object) -> None:
    assert parse_yaml(dump_yaml(tree), "x") == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24:00:00", "24:00:00"),
        ("1e-5", 1e-5),
        ("yes", "yes"),
        ("on", "on"),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("2026-11-24", "2026-11-24"),
        ("-.inf", float("-inf")),
        ("~", None),
        ("True", True),
    ],
)
def test_yaml_1_2_scalars(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value


def test_numbers_that_are_none() -> None:
    with pytest.raises(ConfigError, match="^x line 1: not YAML: a number of too many digits$"):
        parse_yaml(f"steps: {'9' * 5000}", "x")


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^recipe.yaml: line 3: the key 'lr' stands twice"):
        parse_yaml("lr: 1\nseed: 2\nlr: 3\n", "recipe.yaml")


def test_broken_yaml_names_file_and_line(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match=r"bad.yaml line 2: not YAML"):
        read_yaml(path)


def test_a_missing_file_names_the_nearest(tmp_path) -> None:
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"there is no such file: did you mean .*demo.yaml"):
        read_yaml(tmp_path / "deno.yaml")


def test_errors_are_one_line_with_key_value_and_nearest_name() -> None:
    assert error({"leaf": {"rate": 1, "sise": 2}}) == "recipe.yaml: unknown key leaf.sise: did you mean leaf.size?"
    assert error({"leaf": {"rate": 1, "zzz": 2}}) == "recipe.yaml: unknown key leaf.zzz: valid here: rate, size, mode"
    assert error({"leaf": {"rate": "fast"}}) == "recipe.yaml: leaf.rate=fast: expected float, got str"
    assert error({"leaf": {}}) == "recipe.yaml: leaf.rate is missing: give it in the recipe, or as leaf.rate=VALUE"
    assert error({"leaf": {"rate": 1}, "side": {"kind": "lefft"}}) == "recipe.yaml: side.kind=lefft: did you mean left?"
    assert error({"leaf": {"rate": 1, "mode": "zzz"}}) == "recipe.yaml: leaf.mode=zzz: valid here: slow, fast"
    assert error({"leaf": {"rate": 1}, "side": {"kind": "right", "depth": 2}}).startswith(
        "recipe.yaml: unknown key side.depth"
    )


def test_another_kind_does_not_inherit_the_old_kinds_fields() -> None:
    base = {"leaf": {"rate": 1}, "side": {"kind": "left", "depth": 3}}
    assert convert(override(base, "side.kind=right"), Tree, "x").side == Right()
    words = override(override({}, "side.depth=5"), "side.kind=left")  # in any order
    assert convert({"leaf": {"rate": 1}, **words}, Tree, "x").side == Left(depth=5)
    assert convert(override(base, "side.depth=4"), Tree, "x").side == Left(4)


def test_override_reads_yaml_and_refuses_what_is_no_assignment() -> None:
    assert override({"optim": {"lr": 1}}, "optim.lr=2e-5") == {"optim": {"lr": 2e-5}}
    assert override({}, "a.b=[1, x]") == {"a": {"b": [1, "x"]}}
    for bad in ("optim.lr", "=3", "a..b=1"):
        with pytest.raises(ConfigError, match="key=value"):
            override({}, bad)


def test_entries_of_a_list_are_called_by_their_names() -> None:
    tree = {"stages": [{"name": "language", "steps": 3}, {"name": "task", "optim": {"lr": 1}}], "files": ["a"]}
    assert override(tree, "stages.task.optim.lr=2")["stages"] == [
        tree["stages"][0],
        {"name": "task", "optim": {"lr": 2}},
    ]
    assert override(tree, "stages=[]")["stages"] == []
    assert override(tree, "stages.task=5")["stages"] == [tree["stages"][0], 5]  # refused by its type later
    assert override(tree, "files.a=1")["files"] == {"a": 1}
    with pytest.raises(ConfigError, match=r"stages.tusk: no entry has that name: did you mean task\?"):
        override(tree, "stages.tusk.steps=1")


@given(TREES.filter(lambda t: isinstance(t, dict)))
def test_merge_with_itself_and_with_nothing_changes_nothing(tree: dict) -> None:
    assert merge(tree, tree) == tree == merge(tree, {}) == merge({}, tree)


class Forest(Struct, frozen=True):
    trees: dict[str, Leaf] = {}
    groups: list[dict[str, int]] = []


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"trees": {"oak": {"rate": "fast"}}}, "x.yaml: trees.oak.rate=fast: expected float, got str"),
        ({"trees": {"elm": {"rate": 1.0}, "oak": 3}}, "x.yaml: trees.oak=3: expected object, got int"),
        ({"groups": [{"a": 1}, {"b": "two"}]}, "x.yaml: groups[1].b=two: expected int, got str"),
    ],
)
def test_an_entry_of_a_mapping_is_named(data: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(data, Forest, "x.yaml")
    assert str(caught.value) == line
