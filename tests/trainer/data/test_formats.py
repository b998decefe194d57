"""Every format of input gives the same documents; what is broken is counted with its place, or refused in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from settings import ConfigError
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer.data.files import find, format_of
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.sources import Data, Source

ROWS = [*texts(150), {"text": 'a "quoted", text\nof two lines, and ünïcödé 文'}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path / "tokenizer")


def run(tmp_path: Path, tokenizer: str, files: list[str], **settings: Any) -> Prepared:
    data = Data(train=files, **{"seq_len": 8, "max_rejects": 1.0, **settings})
    return prepare(data, tokenizer, tmp_path / "cache", "train", say=lambda _: None)


def rejects(prepared: Prepared) -> list[tuple[int, str]]:
    lines = (prepared.folder / "rejects.jsonl").read_text().splitlines()
    return [(line["line"], line["reason"]) for line in map(json.loads, lines)]


def table() -> pa.Table:
    return pa.Table.from_pylist([{"id": i, **row} for i, row in enumerate(ROWS)])


def jsonl() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8-sig" if delimiter == "," else "utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text"])
        writer.writerows((i, row["text"]) for i, row in enumerate(ROWS))


def write_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table().schema) as stream:
        stream.write_table(table(), max_chunksize=100)


FORMATS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(jsonl()),
    "a.ndjson": lambda path: path.write_bytes(jsonl()),
    "a.JSONL": lambda path: path.write_bytes(jsonl()),
    "lines.json": lambda path: path.write_bytes(jsonl()),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text("\n" + json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl()[:500]) + gzip.compress(jsonl()[500:])),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(jsonl())),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(jsonl())),
    "a.jsonl.zst": lambda path: path.write_bytes(pa.Codec("zstd").compress(jsonl(), asbytes=True)),
    "a.csv": lambda path: write_csv(path, ","),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pa.parquet.write_table(table(), path, row_group_size=70),
    "a.feather": lambda path: pa.feather.write_feather(table(), path),
    "a.arrow": write_stream,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path: Path, tokenizer: str, name: str) -> None:
    FORMATS[name](tmp_path / name)
    wanted = run(tmp_path, tokenizer, [write_rows(tmp_path / "wanted.jsonl", ROWS)])
    found = run(tmp_path, tokenizer, [str(tmp_path / name)])
    for file in ("tokens.bin", "loss.bin", "starts.bin", "pieces.bin", "packs.bin", "rejects.jsonl"):
        assert (found.folder / file).read_bytes() == (wanted.folder / file).read_bytes(), file


def test_an_array_in_blocks_of_any_size(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS[:20], {"text": 'a \\ " [ { , ] }', "more": [{"a": [1, "]"]}, {}]}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    wanted = run(tmp_path, tokenizer, [write_rows(tmp_path / "wanted.jsonl", rows)])
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("trainer.data.readers._BLOCK", block)
        found = run(tmp_path / str(block), tokenizer, [str(tmp_path / "a.json")])
        assert found.tokens.tolist() == wanted.tokens.tolist()


def test_plain_text_is_one_document_or_each_of_its_lines(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("the run goes on\n\nuntil it is done\r\n" * 3)
    assert run(tmp_path, tokenizer, [str(tmp_path / "a.txt")]).manifest.documents == 1
    lines = run(tmp_path, tokenizer, [str(tmp_path / "a.txt")], sample_by="line")
    assert lines.manifest.documents == lines.manifest.rows == 6


def test_a_dataset_that_was_saved(tmp_path: Path, tokenizer: str) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).shuffle(seed=1).save_to_disk(tmp_path / "saved", num_shards=3)
    found = run(tmp_path, tokenizer, find([str(tmp_path / "saved")]))
    assert found.manifest.documents == len(ROWS)
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(ConfigError, match="both holds the splits train, test: name one: .*both/train"):
        find([str(tmp_path / "both")])
    assert len(find([str(tmp_path / "both" / "train")])) == 1


def make(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return str(folder)


def test_folders_and_globs_are_sorted(tmp_path: Path) -> None:
    names = ("b.jsonl", "sub/a.jsonl", "a.jsonl", "10.jsonl", "README.md", ".hidden.jsonl", ".git/c.jsonl", "LICENSE")
    folder = make(tmp_path / "f", *names)
    assert find([folder]) == [f"{folder}/{name}" for name in ("10.jsonl", "a.jsonl", "b.jsonl", "sub/a.jsonl")]
    assert find([f"{folder}/[ab]*.jsonl"]) == [f"{folder}/a.jsonl", f"{folder}/b.jsonl"]
    assert find([f"{folder}/**/a.jsonl"]) == [f"{folder}/a.jsonl", f"{folder}/sub/a.jsonl"]
    assert find([f"{folder}/b.jsonl", f"{folder}/a*.jsonl"]) == [f"{folder}/b.jsonl", f"{folder}/a.jsonl"]


def test_what_a_link_leads_to_is_data_too_and_counts_once(tmp_path: Path) -> None:
    there = make(tmp_path / "scratch", "b.jsonl", "sub/c.jsonl")
    folder = make(tmp_path / "f", "a.jsonl")
    (tmp_path / "f" / "part").symlink_to(there)
    (tmp_path / "f" / "same").symlink_to(there)
    (tmp_path / "scratch" / "back").symlink_to(folder)
    assert find([folder]) == [f"{folder}/{name}" for name in ("a.jsonl", "part/b.jsonl", "part/sub/c.jsonl")]


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "f", "a.jsonl", "sub/b.jsonl")
    scandir = os.scandir

    def stale(path: str) -> Any:
        if str(path).endswith("/sub"):
            raise OSError(116, "Stale file handle", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(ConfigError, match="/sub: Stale file handle"):
        find([folder])


@pytest.mark.parametrize(
    ("names", "name", "line"),
    [
        (["a.jsonl", "b.parquet"], "", "holds several formats (1 jsonl, 1 parquet): name one by a glob"),
        (["train-0.jsonl", "test-0.jsonl"], "", "holds the splits test, train: name one by a glob"),
        (["data/train/0.jsonl", "data/validation/0.jsonl"], "", "holds the splits train, validation"),
        (["README.md"], "", "holds no data"),
        (["a.jsonl", "b.docx"], "", "b.docx: the suffix .docx names no format that is read: .jsonl, "),
        (["a.docx"], "a.docx", "a.docx: the suffix .docx names no format that is read: .jsonl, "),
        (["a"], "a", "/a: the suffix (none) names no format"),
        (["a.parquet.gz"], "a.parquet.gz", "parquet is compressed inside"),
        (["a.jsonl"], "*.parquet", "no file is called like "),
        ([], "a.jsonl", "there is no file "),
        (["state.json"], "", "state.json: cannot be read"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, names: list[str], name: str, line: str) -> None:
    make(tmp_path, *names)
    with pytest.raises(ConfigError) as error:
        find([str(tmp_path / name)])
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_split_is_no_part_of_a_word(tmp_path: Path) -> None:
    assert len(find([make(tmp_path, "constraint.jsonl", "latest.jsonl", "training.jsonl", "device.jsonl")])) == 4
    assert format_of("a.train.JSONL.GZ") == ("jsonl", ".gz")


# --- broken input ---------------------------------------------------------------------------------------

GOOD = b'{"text": "the run goes on until it is done"}'
COUNTED: list[tuple[str, bytes, list[tuple[int, str]]]] = [
    ("a.jsonl", b'\n{"text": "a"', [(2, "not valid JSON")]),
    ("a.jsonl", GOOD + GOOD, [(1, "not valid JSON")]),
    ("a.jsonl", b'{"text": "\xc3"}', [(1, "not valid UTF-8")]),
    ("a.jsonl", b"\xff\xfe{\x00}\x00", [(1, "not valid UTF-8")]),
    ("a.jsonl", b'{"text": NaN}', [(1, "not valid JSON")]),
    ("a.jsonl", b'{"text": null}', [(1, "'text' is not a text")]),
    ("a.jsonl", b'"text"', [(1, "not an object")]),
    ("a.jsonl", b'{"text": "\\t \\n"}', [(1, "empty")]),
    ("a.jsonl", b'{"a":' * 5000, [(1, "not valid JSON")]),
    ("a.jsonl", b"\x00\x00", [(1, "not valid JSON")]),
    ("a.json", b'[{"text": "a"},\n{"text" "b"},\n\n{"text": 3}]', [(2, "not valid JSON"), (4, "'text' is not a text")]),
    ("a.json", b"[\n" + GOOD + b",\n" + GOOD, [(3, "the array does not end")]),
    ("a.json", b"[" + GOOD + b',\n{"text": "open', [(2, "the array does not end")]),
    ("a.json", b"[" + GOOD + b",\n]", [(2, "not valid JSON")]),
    ("a.json", b"[" + GOOD + b"]\n" + GOOD, [(2, "more stands behind the array")]),
    ("a.json", b'[{"text": "\xff"}]', [(1, "not valid UTF-8")]),
    ("a.json", b"[1, [2]]", [(1, "not an object")] * 2),
    ("a.json", b'{\n"data": []}', [(1, "not valid JSON"), (2, "not valid JSON")]),
    ("a.csv", b"text\n\xff\xfe\nfine\n", [(2, "not valid UTF-8")]),
    ("a.csv", b"id,text\n1\n2,b,c\n3,fine\n", [(2, "more or fewer fields than the header")] + [(3, "more or fewer fields than the header")]),
    ("a.csv", b'id,text\n1,"two\nlines"\n2,"open\n\n', [(4, "not valid CSV")]),
    ("a.csv", b'id,text\n1,"a"b\n2,fine\n', [(2, "not valid CSV")]),
    ("a.csv", b"id,text\n1,\n", [(2, "empty")]),
    ("a.csv", b"id,body\n1,a\n", [(2, "no column 'text'")]),
    ("a.tsv", b"id\ttext\n1,a\n", [(2, "more or fewer fields than the header")]),
    ("a.txt", b"\xff\xfea", [(1, "not valid UTF-8")]),
    ("a.txt", b"", [(1, "empty")]),
]  # fmt: skip
GZ, TABLE = gzip.compress(GOOD * 1000), pa.BufferOutputStream()
pa.parquet.write_table(pa.Table.from_pylist(ROWS), TABLE)
PARQUET = TABLE.getvalue().to_pybytes()
REFUSED: list[tuple[str, bytes, str]] = [
    ("a.jsonl.gz", GOOD, "a.jsonl.gz: damaged after 0 (line, or row): no jsonl: Not a gzipped file"),
    ("a.jsonl.gz", GZ[:-20], "a.jsonl.gz: damaged after 0 (line, or row): no jsonl: Compressed file ended"),
    ("a.jsonl.gz", GZ[:20] + b"\xff" * 20 + GZ[40:], "a.jsonl.gz: damaged after 0 (line, or row): no jsonl: "),
    ("a.jsonl.bz2", GOOD, "a.jsonl.bz2: damaged after 0 (line, or row): no jsonl: Invalid data stream"),
    ("a.jsonl.xz", GOOD, "a.jsonl.xz: damaged after 0 (line, or row): no jsonl: Input format not supported"),
    ("a.jsonl.zst", GOOD, "a.jsonl.zst: damaged after 0 (line, or row): no jsonl: "),
    ("a.parquet", GOOD, "a.parquet: damaged after 0 (line, or row): no parquet: "),
    ("a.parquet", PARQUET[:-100], "a.parquet: damaged after 0 (line, or row): no parquet: "),
    ("a.parquet", b"", "a.parquet: damaged after 0 (line, or row): no parquet: "),
    ("a.arrow", GOOD, "a.arrow: damaged after 0 (line, or row): no arrow: "),
    ("a.arrow", b"ARROW1" + GOOD, "a.arrow: damaged after 0 (line, or row): no arrow: "),
]


@pytest.mark.parametrize(("name", "content", "wanted"), COUNTED, ids=[str(i) for i in range(len(COUNTED))])
def test_what_is_broken_is_counted(
    tmp_path: Path, tokenizer: str, name: str, content: bytes, wanted: list[tuple[int, str]]
) -> None:
    (tmp_path / name).write_bytes(content)
    good = write_rows(tmp_path / "good.jsonl", texts(9))
    prepared = run(tmp_path, tokenizer, [str(tmp_path / name), good])
    assert rejects(prepared) == wanted
    assert prepared.manifest.rows == prepared.manifest.documents + len(wanted)
    with pytest.raises(ConfigError, match=f"the first is {tmp_path / name}:{wanted[0][0]}: "):
        run(tmp_path, tokenizer, [str(tmp_path / name), good], max_rejects=0.0)


@pytest.mark.parametrize(("name", "content", "line"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_damaged_as_a_whole_is_refused(
    tmp_path: Path, tokenizer: str, name: str, content: bytes, line: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        run(tmp_path, tokenizer, [str(tmp_path / name)])
    assert line in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_rows_of_tables_are_counted_by_number(tmp_path: Path, tokenizer: str) -> None:
    raw = pa.array([b"the run", b"\xff", None, b"", b"goes on until it is done"]).cast(pa.binary())
    broken = pa.Table.from_arrays([pa.Array.from_buffers(pa.string(), 5, raw.buffers())], ["text"])
    pa.parquet.write_table(broken, tmp_path / "a.parquet")
    wanted = [(2, "not valid UTF-8"), (3, "'text' is not a text"), (4, "empty")]
    assert rejects(run(tmp_path, tokenizer, [str(tmp_path / "a.parquet")])) == wanted
    pa.parquet.write_table(pa.table({"body": ["a", "b"]}), tmp_path / "b.parquet")
    both = [str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")]
    wanted = [(1, "no column 'text'"), (2, "no column 'text'"), *wanted]
    assert rejects(run(tmp_path, tokenizer, both)) == wanted


def test_other_columns_of_a_table_are_not_read(tmp_path: Path, tokenizer: str) -> None:
    source = Source([str(tmp_path / "a.parquet")], column="body")
    pa.parquet.write_table(pa.table({"text": [1] * 9, "body": ["the run goes on"] * 9}), tmp_path / "a.parquet")
    data = Data(train={"a": source}, seq_len=8)
    assert prepare(data, tokenizer, tmp_path / "cache", "train.a", lambda _: None).manifest.documents == 9
