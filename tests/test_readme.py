"""The documentation is true: its commands parse, its links and tests exist, its table of papers matches the code."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from update_docs import EXCERPT, LESSONS, STEP, with_counts, with_line_numbers

from r1mini import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "r1mini/docs").glob("*.md"), *LESSONS]
}
SOURCES = [*sorted((ROOT / "r1mini").rglob("*.py")), *sorted(ROOT.glob("*.py"))]
TAG = re.compile(r"\[((?:R1|DeepSeekMath|DAPO) (?:§|Eq\. )\d+(?:\.\d+)*)")


def commands():
    blocks = [
        block
        for page in PAGES.values()
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith(("python ", "make "))]


def test_readme_has_commands():
    assert {"make r1", "make test"} <= set(commands())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_linked_files_exist(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", PAGES[path])
    assert all((path.parent / link).exists() for link in links)


def test_tests_named_in_the_docs_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    tests = set(re.findall(r"def (test_\w+)\(", text))
    named = {name for page in PAGES.values() for name in re.findall(r"`(test_\w+)`", page)}
    assert named and named <= tests


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.startswith("python ") and "-m pytest" not in c]
)
def test_every_python_command_in_the_docs_parses(command):
    words = shlex.split(command)[1:]
    if words[0] == "-m":
        mains = {
            "r1mini": "r1mini.recipe.stages",
            "r1mini.bench": "r1mini.bench.__main__",
            "r1mini.checkpoint": "r1mini.checkpoint.__main__",
            "r1mini.experiments": "r1mini.experiments.__main__",
            "r1mini.look": "r1mini.look.__main__",
            "r1mini.reward_model": "r1mini.reward_model.training",
        }
        name, flags = mains.get(words[1], words[1]), words[2:]
    else:
        name, flags = Path(words[0]).stem, words[1:]
    module = importlib.import_module(name)
    config.parse(module.Config, flags, getattr(module, "PRESETS", None))


def test_make_targets_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile


def test_paper_table_matches_the_tags_in_the_code():
    in_code = {tag for path in SOURCES for tag in TAG.findall(path.read_text(encoding="utf-8"))}
    table = README[README.index("## Paper → code") :]
    table = table[: table.index("\n## ")]
    assert {tag for tag in TAG.findall(table)} == in_code


DEFINED = r"^(?: *(?:def|class) {0}\b|{0}\b.* = )"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_functions_are_in_the_files_that_the_pages_name(path):
    for name, link in re.findall(r"`(\w+)` in\s\[[^]]+\]\(([^)]+\.py)\)", PAGES[path]):
        source = (path.parent / link).read_text(encoding="utf-8")
        assert re.search(DEFINED.format(name), source, re.MULTILINE), f"{name} in {link}"


def test_functions_of_the_call_tree_are_in_its_files():
    page = (ROOT / "r1mini/docs/grpo_step.md").read_text(encoding="utf-8")
    lines = page.split("```")[1].strip().splitlines()
    assert len(lines) > 15
    for line in lines:
        names, file, *_ = re.split(r"  +", line.strip())
        path = ROOT / file if "/" not in file else ROOT / "r1mini" / file
        for name in names.split(", "):
            source = path.read_text(encoding="utf-8")
            assert re.search(DEFINED.format(name), source, re.MULTILINE), f"{name} in {path.name}"


def test_line_counts_of_the_reading_list_are_right():
    assert with_counts(README) == README, "run python tests/update_docs.py"


def test_excerpts_of_the_annotated_step_are_the_source():
    page = STEP.read_text(encoding="utf-8")
    assert len(EXCERPT.findall(page)) > 30
    assert page.count("```python") == len(EXCERPT.findall(page))
    assert with_line_numbers(page) == page, "run python tests/update_docs.py"


def test_changed_excerpts_are_noticed():
    page = STEP.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="rl/grpo.py does not have these lines"):
        with_line_numbers(page.replace("adv_NG = rewards_NG - ", "adv_NG = rewards_NG + "))
