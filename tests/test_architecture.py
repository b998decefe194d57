"""The house rules as tests: what may import what, who reads the environment, how large a thing may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import slurm.exits
import trainer.exits
from trainer.schema import EngineSettings

ROOT = Path(__file__).parent.parent
TOP = [ROOT / f"{name}.py" for name in ("command", "launch", "flags", "settings", "durable", "timeline")]
PRODUCT = [*TOP, *(p for d in ("slurm", "trainer", "envs") for p in (ROOT / d).rglob("*.py"))]
OURS = {"launch", "flags", "settings", "durable", "timeline", "slurm", "trainer", "envs", "recipes"}
STDLIB = sys.stdlib_module_names


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, also those inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*full.split("."))).with_suffix(".py").exists() or (
                    ROOT / Path(*full.split("."))
                ).is_dir()
                yield full if is_module and str(node.module).split(".")[0] in OURS else str(node.module)


def outside(path: Path, allowed: set[str]) -> set[str]:
    """Imports of a file that are neither the standard library's nor allowed by a prefix."""
    return {
        module
        for module in imports(path)
        if module.split(".")[0] not in STDLIB and not any(module == a or module.startswith(f"{a}.") for a in allowed)
    }


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_arrows_run_one_way() -> None:
    for path in files("slurm"):
        submitit = {"submitit"} if path.name == "submit.py" else set()
        assert not outside(path, {"slurm", "settings", "durable", "timeline", "msgspec", *submitit}), name(path)
    for path in files("trainer"):
        found = {module.split(".")[0] for module in imports(path)}
        assert not found & {"slurm", "submitit", "envs", "launch", "flags"}, name(path)
    for path in files("envs/pocket"):
        assert not outside(path, {"envs"}), name(path)
    assert not outside(ROOT / "settings.py", {"msgspec", "yaml"})
    assert not outside(ROOT / "durable.py", set())
    assert not outside(ROOT / "timeline.py", set())
    assert not outside(ROOT / "flags.py", {"settings"})
    assert not outside(
        ROOT / "launch.py",
        {"flags", "settings", "slurm", "trainer.recipe", "trainer.plan", "envs.pocket", "envs.drill"},
    )


def test_the_shim_needs_the_standard_library_only() -> None:
    modules = (
        *(f"node.{path.stem}" for path in files("slurm/node") if path.stem != "__init__"),
        "exits",
        "step",
        "rundir",
        "environment",
        "errors",
    )
    for module in modules:
        allowed = {"durable", *(f"slurm.{other}" for other in modules)}
        assert not outside((ROOT / "slurm" / module.replace(".", "/")).with_suffix(".py"), allowed), module
    code = "import sys, slurm.node.shim; print(sorted(m for m in sys.modules if m in ('msgspec', 'yaml', 'torch', 'numpy')))"
    argv = [sys.executable, "-P", "-S", "-c", code]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert shown.stdout.strip() == "[]"


def engines() -> list[str]:
    """Their folders."""
    return sorted(path.parent.name for path in (ROOT / "trainer" / "engines").glob("*/engine.py"))


def test_an_engine_is_a_folder_and_a_word_of_the_recipe() -> None:
    """What else asks which engine it is, asks for something that it alone can do."""
    known = {str(one.__struct_config__.tag) for one in get_args(EngineSettings)}
    assert engines() == sorted(known) and len(known) >= 3
    for kind in known:
        assert {path.name for path in (ROOT / "trainer" / "engines" / kind).iterdir()} >= {"settings.py", "plan.py"}


def test_no_import_cycles_and_short_chains() -> None:
    modules = {name(p).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): p for p in PRODUCT}
    graph = {module: {i for i in imports(path) if i in modules and i != module} for module, path in modules.items()}
    depth: dict[str, int] = {}

    def chain(module: str, above: tuple[str, ...]) -> int:
        assert module not in above, f"import cycle: {' -> '.join([*above, module])}"
        if module not in depth:
            depth[module] = 1 + max((chain(i, (*above, module)) for i in graph[module]), default=0)
        return depth[module]

    longest = max(graph, key=lambda module: chain(module, ()))
    assert depth[longest] <= 9, f"{longest}: a chain of {depth[longest]} imports"


def test_one_file_reads_slurms_variables_and_one_reads_torchs() -> None:
    for path in PRODUCT:
        text = path.read_text()
        if name(path) != "slurm/environment.py" and not name(path).startswith("envs/"):
            strings = [
                n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            named = [s for s in strings if re.fullmatch(r"(SLURM|SBATCH|SRUN)_[A-Z_]+", s)]
            assert not named or name(path) == "launch.py" and named == ["SLURM_CONF"] * len(named), name(path)
        if name(path) not in ("slurm/environment.py", "slurm/node/shim.py", "trainer/runtime.py"):
            assert not re.search(r"environ\S*[\"'](LOCAL_)?(RANK|WORLD_SIZE)[\"']", text), name(path)


def test_slurm_is_called_in_three_files() -> None:
    commands = re.compile(r"(?<!Literal)[\[(]\s*[\"'](scontrol|squeue|scancel|sbatch|sinfo|srun)[\"'],")
    callers = {name(p) for p in files("slurm") if commands.search(p.read_text())}
    assert callers == {"slurm/commands.py", "slurm/step.py", "slurm/submit.py"}


@pytest.mark.parametrize(
    "pattern", [r"shell=True", r"os\.system", r"\bpickle\b\.", r"torch\.load\(", r"yaml\.load\([^)]*\)$", r"\beval\("]
)
def test_nothing_dangerous(pattern: str) -> None:
    allowed = {r"\beval\(": {"trainer/engines/engine.py"}}  # module.eval()
    found = {name(p) for p in PRODUCT if re.search(pattern, p.read_text(), re.MULTILINE)}
    assert found <= allowed.get(pattern, set())


def test_sizes() -> None:
    for path in PRODUCT:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"{name(path)}: {len(lines)} lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{name(path)}: {node.name} has {length} lines"


def test_only_main_files_read_argv_and_exit() -> None:
    for path in PRODUCT:
        reads = (n for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))
        uses = [n for n in reads if ast.unparse(n) in ("sys.argv", "sys.exit")]
        assert not uses or '__name__ == "__main__"' in path.read_text(), name(path)


def test_kind_is_the_word_of_unions_alone() -> None:
    engine = [f"trainer/engines/{kind}/settings.py" for kind in engines()]
    for file in ("trainer/schema.py", "trainer/shape.py", "slurm/config.py", "slurm/sites/profile.py", *engine):
        classes = [n for n in ast.walk(tree(ROOT / file)) if isinstance(n, ast.ClassDef)]
        fields = [ast.unparse(n.target) for one in classes for n in one.body if isinstance(n, ast.AnnAssign)]
        assert (fields or file in engine) and "kind" not in fields, file


def test_both_halves_mean_the_same_by_an_exit_code() -> None:
    for code, value in vars(trainer.exits).items():
        if code.isupper() and code != "CRASHED":  # the job side knows no code for it: any other is a crash
            assert getattr(slurm.exits, code) == value, code


def test_what_a_login_node_runs_loads_no_torch() -> None:
    plans = ", ".join(f"trainer.engines.{kind}.plan" for kind in engines())
    code = f"import sys, trainer.config, trainer.evaluate.compare, trainer.plan.command, {plans}, trainer.prepare, trainer.report.files, trainer.schedule; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "False"


def test_every_public_class_and_module_says_what_it_is() -> None:
    for path in PRODUCT:
        if path.read_text().strip():
            assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"
