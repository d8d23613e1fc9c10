"""The page of the experiments has all of them, and shows the code as it is."""

import re

from conftest import ROOT

from r1mini.experiments import grpo_bugs, sft_bugs
from r1mini.experiments.catalog import EXPERIMENTS

PAGE = ROOT / "r1mini/docs/experiments.md"


def test_page_has_every_experiment():
    text = PAGE.read_text(encoding="utf-8")
    for name, experiment in EXPERIMENTS.items():
        assert experiment.claim in text.replace("\n", " "), name
        assert f"python -m r1mini.experiments {name}\n" in text
        assert f"](experiments/{name}.png)" in text
        assert (PAGE.parent / "experiments" / f"{name}.png").stat().st_size < 40_000
        for arm in experiment.arms:
            assert f"| {arm.label} | " + f"`{arm.flags}`" * bool(arm.flags) in text, arm.label
    named = re.findall(r"python -m r1mini.experiments (\S+)", text)
    assert set(named) == {"all", "list", *EXPERIMENTS}


def test_bugs_on_the_page_are_lines_of_the_code():
    files = [ROOT / "r1mini/experiments" / name for name in ("grpo_bugs.py", "sft_bugs.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    lines = re.findall(r"^.*# the bug$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == len(grpo_bugs.BUGS) + len(sft_bugs.BUGS)
    assert all(line.strip() in source for line in lines)
