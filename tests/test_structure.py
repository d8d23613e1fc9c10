"""What the design promises about the code itself."""

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
    """Names of the modules that a file imports; with anywhere=False, only imports at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return imports


def packages(names):
    return {name.split(".")[0] for name in names} - {"__future__"}


# A package may import only from the lines above its own; packages on the same line are independent.
ORDER = [
    ["records", "model", "answers", "sandbox"],
    ["infra", "tasks"],
    ["config"],
    ["checkpoint", "rewards"],
    ["training"],
    ["sampler", "data"],
    ["reward_model"],
    ["rl", "evaluation"],
    ["recipe", "bench"],
    ["compare", "look", "experiments", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def package_of(path):
    return path.relative_to(ROOT / "r1mini").parts[0].removesuffix(".py")


def test_imports_between_packages_go_one_way():
    for path in PACKAGE:
        if path == ROOT / "r1mini/__init__.py":
            continue
        own = package_of(path)
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "r1mini" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != own:
                assert LEVEL[parts[1]] < LEVEL[own], f"{path}: {own} imports {module}"


def test_every_package_is_in_the_import_order():
    assert {package_of(path) for path in PACKAGE} - {"__init__"} == set(LEVEL)


def test_grpo_is_pure_tensor_functions():
    assert packages(imports(ROOT / "r1mini/rl/grpo.py")) == {"torch"}


@pytest.mark.parametrize(
    "module",
    [
        *("rewards", "rewards.runner", "evaluation.rejection", "answers", "sandbox", "tasks"),
        *("data.files", "data.problems", "data.formats", "data.sft", "data.preferences", "config"),
    ],
)
def test_text_and_reward_modules_need_no_torch(module):
    code = f"import sys, r1mini.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_library_module_imports_a_script():
    for path in PACKAGE:
        assert not SCRIPTS & packages(imports(path)), path


def test_only_the_sandbox_executes_text():
    for path in PACKAGE:
        allowed = ["exec", "compile"] if path == ROOT / "r1mini/sandbox/child.py" else []
        calls = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("eval", "exec", "compile", "__import__"):
                    calls.append(node.func.id)
        assert calls == allowed, path


def identifiers(path):
    """Every name, attribute, imported name and text in a file's code."""
    identifiers = {part for name in imports(path) for part in name.split(".")}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(name) | ast.Attribute(attr=name) | ast.Constant(str(name)):
                identifiers.add(name)
    return identifiers


def test_training_never_sees_the_utility_of_an_answer():
    hidden = {"utility", "annotator"}
    for path in PACKAGE:
        if package_of(path) in ("rl", "training", "rewards"):
            assert not hidden & identifiers(path), path
    for name in ("train_grpo.py", "train_sft.py"):
        assert not hidden & identifiers(ROOT / name), name
    assert hidden < identifiers(ROOT / "r1mini/tasks/__init__.py")  # where both are


def test_no_error_is_swallowed():
    for path in [*PACKAGE, *(ROOT / f"{name}.py" for name in SCRIPTS)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}: bare except"
                assert not isinstance(node.body[0], ast.Pass), (
                    f"{path}:{node.lineno}: except and pass"
                )


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed


CORE = [
    *("r1mini/records.py", "r1mini/rl/grpo.py", "train_grpo.py", "r1mini/rl/rollouts.py"),
    *("r1mini/rewards/rules.py", "r1mini/rl/learner.py", "r1mini/training/logprobs.py"),
    *("r1mini/model/transformer.py", "r1mini/model/attention.py"),
]


def test_core_files_are_short_enough_for_one_sitting():
    lines = {name: (ROOT / name).read_text(encoding="utf-8").split("\n") for name in CORE}
    assert sum(map(len, lines.values())) <= 1200
    assert max(len(line) for text in lines.values() for line in text) <= 100


def test_functions_fit_on_a_screen():
    for path in [*PACKAGE, *(ROOT / f"{name}.py" for name in SCRIPTS)]:
        limit = 60 if str(path.relative_to(ROOT)) in CORE else 80
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < limit, f"{path}:{node.lineno} {node.name}"


def test_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
