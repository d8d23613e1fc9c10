"""What the design promises of the code itself."""

import ast
import doctest
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = sorted((ROOT / "r1mini").rglob("*.py"))
WITH_EXAMPLES = [path for path in PACKAGE if ">>> " in path.read_text(encoding="utf-8")]
SCRIPTS = {"train_sft", "train_grpo", "sample"}


def imports(path, anywhere=True):
    """Names of the modules a file imports; without `anywhere` only those of its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(names):
    return {name.split(".")[0] for name in names} - {"__future__"}


def test_grpo_is_pure_tensor_functions():
    assert packages(imports(ROOT / "r1mini/grpo.py")) == {"torch"}


@pytest.mark.parametrize("module", ["rewards", "score", "filters", "answers", "sandbox", "tasks", "data", "problems", "formats", "config"])
def test_what_makes_and_judges_text_needs_no_torch(module):
    code = f"import sys, r1mini.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nothing_but_the_recipe_the_comparison_and_the_benchmark_imports_a_script():
    for path in PACKAGE:
        if path.name not in ("__main__.py", "recipe.py", "compare.py", "bench.py"):
            assert not SCRIPTS & packages(imports(path)), path


def test_core_does_not_import_what_stands_above_it():
    above = {"rollout", "batch", "evaluate", "data", "optim", "weights", "checkpoint"}
    for name in ("records", "rewards", "score", "grpo", "model", "tokenizer"):
        found = {module.split(".")[1] for module in imports(ROOT / f"r1mini/{name}.py") if module.startswith("r1mini.")}
        assert not found & above, name


def test_text_is_executed_nowhere_but_behind_the_sandbox():
    for path in PACKAGE:
        allowed = ["exec", "compile"] if path == ROOT / "r1mini/sandbox_child.py" else []
        found = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("eval", "exec", "compile", "__import__"):
                    found.append(node.func.id)
        assert found == allowed, path


def test_no_error_is_swallowed():
    for path in [*PACKAGE, *(ROOT / f"{name}.py" for name in SCRIPTS)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}: bare except"
                assert not isinstance(node.body[0], ast.Pass), f"{path}:{node.lineno}: except and pass"


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
