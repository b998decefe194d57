"""What a user may get wrong before any Slurm is asked: one line, exit 78, nothing written, nothing queued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from recipes.demo_data import TOKENIZER_CONFIG
from settings import dump_yaml
from slurm import control, snapshot
from tests.trainer.data.samples import texts, write_rows, write_tokenizer

SMALL = {"vocab_size": 512, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}

# What is wrong, the words that are typed, the line that answers. {here} is the folder where they are typed.
ZERO_3 = "engine={kind: deepspeed, config: {zero_optimization: {stage: 3}}}"
WORDS = [
    # --- flags
    ("flag", ["--ndoes", "2"], "unrecognized arguments: --ndoes 2: did you mean --nodes?; launch.py --help shows every flag"),
    ("its value", ["--nodes", "two"], "argument -N/--nodes: invalid int value: 'two'; launch.py --help shows every flag"),
    ("its value is missing", ["--nodes"], "argument -N/--nodes: expected one argument; launch.py --help shows every flag"),
    ("no nodes", ["--nodes", "0"], "command line: nodes=0: expected int >= 1"),
    ("half a GPU", ["--gpus", "0.5"], "argument --gpus/--gpus-per-node: invalid int value: '0.5'; launch.py --help shows every flag"),
    ("launcher", ["--launcher", "mpi"], "command line: launcher=mpi: valid here: srun, torchrun, deepspeed, fork"),
    ("continuation", ["--continue-by", "chian"], "command line: continue_by=chian: did you mean chain?"),
    ("minutes", ["-t", "12:99:00"], "command line: walltime=12:99:00: minutes and seconds go to 59; a walltime is written [D-]HH:MM:SS"),
    ("hours or minutes", ["-t", "24:00"], "command line: walltime=24:00: a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00"),
    ("no time", ["-t", "00:00:00"], "command line: walltime=00:00:00: a walltime must be longer than zero"),
    ("seconds", ["-t", "3600"], "command line: walltime=3600: a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00"),
    ("shorter limit", ["-t", "01:00:00", "--time-min", "02:00:00"], "--time-min 02:00:00 is longer than --walltime 01:00:00: Slurm may only shorten it"),
    ("no such time", ["-t", "9999999999-00:00:00"], "command line: walltime=9999999999-00:00:00: a walltime of so many days is none"),
    ("a form of what is not asked for", ["--json"], "submit --json: it is the form of a --dry-run"),
    ("a command's lead", ["--lead", "300"], "command line: lead_seconds is for a command after --"),
    ("a fork by its key", ["fork=runs/x/checkpoints/y"], "sft.yaml: fork: take --fork RUN@STEP"),
    ("a flag twice", ["--sbatch", "nodes=3"], "--sbatch nodes: launch.py sets it: see its own flags in --help"),
    ("what continuation needs", ["--sbatch", "requeue"], "--sbatch requeue: launch.py sets it: see its own flags in --help"),
    ("short option", ["--sbatch", "t=3"], "--sbatch t: launch.py sets it: see its own flags in --help"),
    ("cluster", ["--cluster", "pockte"], "--cluster pockte: there is no such profile: did you mean pocket?"),
    ("another verb's flag", ["--update-code"], "submit takes no --update-code: see launch.py submit --help"),
    ("no allocation", ["--here"], "--here: this shell is in no allocation: take one first: salloc --nodes 2 --ntasks-per-node 8 --gpus-per-node 8"),
    ("budget", ["--max-attempts", "0"], "command line: max_attempts=0: expected int >= 1"),
    # --- names and folders
    ("name with a space", ["--name", "my run"], "the name 'my run': letters, digits and . _ + - only, at most 100: take --name my-run"),
    ("name that is a flag", ["job.name=-rf"], "the name '-rf': letters, digits and . _ + - only, at most 100: take --name rf"),
    ("name with a command", ["--name", "$(id)"], "the name '$(id)': letters, digits and . _ + - only, at most 100: take --name id"),
    ("name with a folder", ["--name", "../x"], "the name '../x': letters, digits and . _ + - only, at most 100: take --name x"),
    ("name with a line break", ["--name", "a\nb"], "the name 'a\\nb': letters, digits and . _ + - only, at most 100: take --name a-b"),
    ("runs folder", ["--runs-dir", "a\nb"], "the folder '{here}/a\\nb/sft': a batch script cannot name it: take another --runs-dir"),
    ("runs folder with a backslash", ["--runs-dir", "a\\b"], "the folder '{here}/a\\\\b/sft': a batch script cannot name it: take another --runs-dir"),
    ("runs folder with a colon", ["--runs-dir", "a:b"], "the folder '{here}/a:b/sft': a batch script cannot name it: take another --runs-dir"),
    # --- layout
    ("batch", ["--gpus", "5"], "train.global_batch_size=48 does not divide by 5 ranks (48 / 5 = 9.60): take 4 ranks, or train.global_batch_size=50"),
    ("micro batch", ["train.micro_batch_size=5"], "train.micro_batch_size=5 does not divide a rank's share of 24 sequences (48 / 2 ranks): take train.micro_batch_size=4"),
    ("more ranks than can be", ["--cluster", "generic", "--nodes", "99999999999999", "--dry-run"], "train.global_batch_size=48 does not divide by 99999999999999 ranks"),
    ("GPUs", ["--gpus", "32"], "--gpus 32: local has 16 GPUs a node: --nodes 2 --gpus 16 is the same 32 ranks (2 nodes x 16 GPUs = 32 ranks)"),
    ("nodes", ["--nodes", "2"], "--nodes 2: local has 1 node: take --nodes 1, a cluster of this machine (launch.py pocket up --nodes 2), or look at the script: --cluster NAME --dry-run"),
    # --- keys and values
    ("key", ["optim.lrr=1"], "sft.yaml: unknown key optim.lrr: did you mean optim.lr?"),
    ("type", ["optim.lr=fast"], "sft.yaml: optim.lr=fast: expected float | null, got str"),
    ("no number", ["optim.lr=.nan"], "sft.yaml: optim.lr=nan: a finite number is expected"),
    ("for ever", ["job.poll_seconds=.inf"], "command line: poll_seconds=inf: a finite number is expected"),
    ("range", ["optim.clip=0"], "sft.yaml: optim.clip=0: expected float > 0.0"),
    ("section", ["data=3"], "sft.yaml: data=3: expected object, got int"),
    ("job's key", ["job.nodess=2"], "command line: unknown key nodess: did you mean nodes?"),
    ("job's section", ["job=3"], "job=3: a mapping of job settings is expected, as job.nodes=2"),
    ("half a word", ["optim.=3"], "'optim.=3': an override is written key=value, for example optim.lr=2e-5"),
    ("engine", ["engine.kind=fdsp"], "sft.yaml: engine.kind=fdsp: did you mean fsdp?"),
    ("no rate", ["optim.lr=null"], "sft.yaml: optim.lr is missing: a model that starts from nothing (model.config) has no default rate"),
    ("steps and epochs", ["train.epochs=1"], "sft.yaml: give either train.steps or train.epochs, not both or none"),
    ("evaluation without data", ["evaluation.every=5"], "sft.yaml: evaluation.every=5 needs data.evaluation: a held-out file"),
    ("save's interval", ["checkpoint.every=30min"], "sft.yaml: checkpoint.every=30min: a number of steps, a time such as 30m or 2h, or auto"),
    ("save's steps", ["checkpoint.every=0"], "sft.yaml: checkpoint.every=0: expected int >= 1"),
    ("best of nothing", ["checkpoint.keep_best=2"], "sft.yaml: checkpoint.keep_best=2 needs evaluation.every: losses to choose by"),
    ("two models", ["model.path=tokenizer"], "sft.yaml: give either model.path (a folder) or model.config (a new model), not both or none"),
    ("no file to train on", ["data.train=[]"], "sft.yaml: data.train: no file is given"),
    ("offload of nothing", ["train.activation_offload=true"], "sft.yaml: train.activation_offload needs train.gradient_checkpointing=true or every_k"),
    ("compiled, selective", ["train.compile=true", "train.gradient_checkpointing=selective"], "sft.yaml: train.compile leaves gradient_checkpointing=selective nothing"),
    ("ZeRO in bf16", ["engine={kind: deepspeed, config: {}}", "train.precision=bf16"], "engine.kind=deepspeed keeps fp32 weights and steps by torch's AdamW: not with train.precision=bf16"),
    ("ZeRO 3, selective", [ZERO_3, "train.gradient_checkpointing=selective"], "train.gradient_checkpointing=selective: ZeRO 3 gathers weights inside a layer"),
    ("ZeRO 3, compiled", [ZERO_3, "train.compile=true"], "train.compile: ZeRO 3 gathers weights inside a layer"),
    # --- vocabulary and context
    ("no new token", ["model.new_tokens=[]"], "sft.yaml: model.new_tokens is empty: leave it out"),
    ("a token twice", ["model.new_tokens=[10-K, 10-K]"], "sft.yaml: model.new_tokens: '10-K' stands there twice: keep one"),
    ("a token that is one", ["model.new_tokens=[10-K, ' goes']"], "model.new_tokens: ' goes' is one token already ("),
    ("tokens' file", ["model.new_tokens=gone.txt"], "model.new_tokens: {here}/gone.txt: No such file or directory"),
    ("new rows and LoRA", ["model.new_tokens=[10-K]", "lora.r=4"], "sft.yaml: model.new_tokens under lora: the rows of the new tokens"),
    ("rope's type", ["model.rope.rope_type=yarm"], "sft.yaml: model.rope.rope_type=yarm: did you mean yarn?"),
    ("rope's factor", ["model.rope.rope_type=yarn"], "sft.yaml: model.rope.factor is missing"),
    ("rope's lists", ["model.rope={rope_type: longrope, factor: 2, short_factor: [1], long_factor: [1]}"], "model.rope.short_factor has 1 numbers"),
    # --- files
    ("data file", ["data.train=[gone.jsonl]"], "sft.yaml: data.train: there is no file {here}/gone.jsonl"),
    ("tokenizer", ["model.tokenizer=gone"], "sft.yaml: model.tokenizer: there is no folder {here}/gone"),
    ("model folder", ["model.config=null", "model.path=gone"], "sft.yaml: model.path: there is no folder {here}/gone"),
    ("fork of nothing", ["--fork", "other"], "there is no run other: looked in runs; another folder: --runs-dir DIR"),
    ("fork's step", ["--fork", "other@last"], "--fork other@last: a step is a number: --fork other@1200"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_imports: None) -> Path:
    """A recipe with its files, in a folder of its own, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(control, "run_here", lambda *words: pytest.fail("the run was started"))
    write_tokenizer(tmp_path / "tokenizer")
    write_rows(tmp_path / "train.jsonl", texts(2000))
    recipe = {
        "model": {"config": {"model_type": "llama", **SMALL}, "tokenizer": "tokenizer"},
        "data": {"train": ["train.jsonl"], "seq_len": 8},
        "train": {"steps": 10, "global_batch_size": 48},
        "optim": {"lr": 1e-3},
    }
    (tmp_path / "sft.yaml").write_text(dump_yaml(recipe))
    return tmp_path


def files() -> list[Path]:
    """What lies here, without the cache of prepared data, which may stay."""
    return [path for path in sorted(Path().rglob("*")) if ".prepared" not in path.parts and path != Path("runs")]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command is refused; nothing was written."""
    before = files()
    assert launch.main([*([] if "--cluster" in argv else ["--cluster", "local"]), *argv]) == 78
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("outlast: ") and not any("Traceback" in line for line in lines)
    assert files() == before
    return lines[-1].removeprefix("outlast: ")


@pytest.mark.parametrize(("words", "line"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS])
def test_words(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert refused(capsys, "sft.yaml", *words).startswith(line.replace("{here}", str(here)))


FILES: list[tuple[str, str, str, str]] = [
    ("no YAML", "sft.yaml", "train: [1, 2", "sft.yaml line 2: not YAML"),
    ("a list", "sft.yaml", "- train", "sft.yaml: a mapping of keys is expected, this is a list"),
    ("a key twice", "sft.yaml", "name: a\nname: b\n", "sft.yaml: line 2: the key 'name' stands twice: keep one"),
    ("nothing in it", "sft.yaml", "", "sft.yaml: model is missing: give it in the recipe, or as model=VALUE"),
    ("the job's section", "sft.yaml", "job: 3\n", "sft.yaml: job=3: a mapping of job settings is expected, as nodes: 2"),
    ("bytes", "sft.yaml", "\udcff", "sft.yaml: cannot be read"),
    ("no JSON in the data", "train.jsonl", "not json\n" * 3, "data.train: 3 of 3 rows cannot be used (not valid JSON: 3)"),
    ("data without texts", "train.jsonl", '{"body": "x"}\n', "data.train: 1 of 1 rows cannot be used (no column 'text': 1)"),
    ("no data", "train.jsonl", "\n", "data.train: 0 tokens in 0 rows: no token has a target"),
    ("no tokenizer", "tokenizer/tokenizer.json", "{}", "{here}/tokenizer/tokenizer.json: no tokenizer"),
    ("tokenizer's settings", "tokenizer/tokenizer_config.json", "{", "{here}/tokenizer/tokenizer_config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text", "line"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_files(here: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, line: str) -> None:
    (here / file).write_bytes(text.encode(errors="surrogateescape"))
    assert line.replace("{here}", str(here)) in refused(capsys, "sft.yaml")


def test_a_tokenizer_without_a_chat_template(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {key: value for key, value in TOKENIZER_CONFIG.items() if key != "chat_template"}
    (here / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (here / "train.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    assert "the tokenizer has no chat template: data.format=chat needs one" in refused(
        capsys, "sft.yaml", "data.format=chat"
    )


def test_a_model_that_the_tokenizer_does_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tokens, the model's vocab_size is 10" in refused(capsys, "sft.yaml", "model.config.vocab_size=10")
    assert "model.config: Unrecognized model identifier: llamaa" in refused(
        capsys, "sft.yaml", "model.config.model_type=llamaa"
    )
    assert "did you mean hidden_size?" in refused(capsys, "sft.yaml", "model.config.hiden_size=10")


@pytest.mark.parametrize("verb", ["plan", "prepare", "drill"])
def test_every_verb_looks_at_the_job(here: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    cluster = () if verb == "drill" else ("--cluster", "local")
    said = "command line: nodes=two: expected int, got str"
    assert launch.main([verb, *cluster, "sft.yaml", "job.nodes=two"]) == 78
    assert capsys.readouterr().err.splitlines()[-1] == f"outlast: {said}"
    (here / "sft.yaml").write_text((here / "sft.yaml").read_text() + "job:\n")
    assert launch.main([verb, *cluster, "sft.yaml"]) == 78
    assert "sft.yaml: job=None: a mapping of job settings is expected" in capsys.readouterr().err


def test_a_lead_as_long_as_the_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each job would be told to stop at once, and the next one, for ever."""
    line = refused(capsys, "-t", "01:00:00", "--lead", "3600", "--", "true")
    assert line.startswith("--walltime 01:00:00: the command is told to stop 3600 s before its end, which is at once")
    line = refused(capsys, "-t", "01:00:00", "--time-min", "00:01:00", "--", "true")
    assert line.startswith("--time-min 00:01:00: the command is told to stop 120 s") and line.endswith("--lead 15")


def test_the_wrong_verb_or_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "statsu").endswith("did you mean the verb status?")
    assert refused(capsys, "resum", "sft").endswith("did you mean the verb resume?")
    assert refused(capsys, "sft.yml").endswith("there is no such file: did you mean sft.yaml?")
    assert refused(capsys, "status", "--cluster", "local").startswith("status takes no --cluster")
    assert refused(capsys, "sft.yaml", "--", "true").startswith("sft.yaml: with -- COMMAND only its job section counts")
    assert launch.main(["stop", "a", "b"]) == 78
    assert "one run at a time, not: a b" in capsys.readouterr().err
    assert launch.main(["status", "--", "true"]) == 78
    assert "status takes no command, not: true" in capsys.readouterr().err


def test_a_folder_that_is_in_the_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "sft").mkdir(parents=True)
    assert "is there and is no run: take another --name or --runs-dir" in refused(capsys, "sft.yaml")


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A folder on a full file system; elsewhere than as root, one that may not be written."""
    folder = here / "full"
    folder.mkdir()
    if os.getuid():
        folder.chmod(0o500)
        yield folder
    else:
        assert os.system(f"mount -t tmpfs -o size=4k tmpfs '{folder}'") == 0
        yield folder
        assert os.system(f"umount '{folder}'") == 0


def test_a_full_quota(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's reason, and no half of a run is left."""
    assert launch.main(["--cluster", "local", "sft.yaml", "--runs-dir", str(small_disk)]) == 78
    lines = capsys.readouterr().err.splitlines()
    why = "Permission denied" if os.getuid() else "No space left on device"
    assert lines == [f"outlast: --runs-dir {small_disk}: {why}: choose another folder for the runs"]
    assert not (small_disk / "sft").exists()


def test_code_that_is_too_large_names_what_is_no_code(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 1000)
    (here / "train.py").write_text("pass")
    (here / "big").mkdir()
    (here / "big" / "table.json").write_text("x" * 30_000)
    line = refused(capsys, "--", "python", "train.py")
    assert "largest: big" in line and "job.snapshot=false" in line
