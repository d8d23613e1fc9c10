"""The scripts as a user sees them: flags in, and a one-line error if something is wrong."""

import dataclasses
import re
import subprocess
import sys

import pytest
from conftest import ROOT, random_model

import sample
import train_grpo
import train_sft
from r1mini import checkpoint

SCRIPTS = {"train_sft.py": train_sft, "train_grpo.py": train_grpo, "sample.py": sample}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_flag_with_its_default(script, name):
    code, out, err = script(name, "--help")
    assert code == 0 and err == ""
    shown = {}
    for entry in re.split(r"\n  (?=--?\w)", out)[1:]:
        flag = re.match(r"--[\w-]+", entry)
        default = re.search(r"\(default: (.*?)\)\s*$", entry)
        if flag and default:
            shown[flag[0]] = default[1]
    assert shown == {
        "--" + field.name.replace("_", "-"): (
            " ".join(field.default) if isinstance(field.default, tuple) else str(field.default)
        )
        or "none"
        for field in dataclasses.fields(SCRIPTS[name].Config)
    }


def assert_one_line(result, name, names):
    code, out, err = result
    assert code == 2 and out == ""
    assert re.fullmatch(f"{name}: [^\n]*{re.escape(names)}[^\n]*\n", err)


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_flag_is_named(script, name):
    assert_one_line(script(name, "--lerning-rate", "1"), name, "--lerning-rate")


@pytest.mark.parametrize("name", SCRIPTS)
def test_missing_model_is_named_and_nothing_is_written(script, name, tmp_path):
    mode = ["--eval"] if name == "sample.py" else []
    result = script(name, "--model", tmp_path / "absent", "--out", tmp_path / "out", *mode)
    assert_one_line(result, name, f"{tmp_path / 'absent'}: no such model folder")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == []


@pytest.mark.parametrize(
    "name, extra",
    [
        ("train_sft.py", ["--rows", 1]),
        ("train_grpo.py", ["--steps", 1]),
        ("sample.py", ["--eval", "--problems", 1, "--samples", 1]),
    ],
)
def test_out_that_cannot_be_written_is_named(script, name, extra, folder, tmp_path):
    (tmp_path / "file").touch()
    # A path below a file: not even root can write it.
    assert_one_line(
        script(name, "--model", folder, "--out", tmp_path / "file/out", *extra),
        name,
        str(tmp_path / "file"),
    )
    assert (tmp_path / "file").read_text() == "" and len(list(tmp_path.iterdir())) == 1


def test_prompt_longer_than_the_context_is_quoted(script, folder):
    assert_one_line(
        script("sample.py", "--model", folder, "--prompt", "<think>" * 128),
        "sample.py",
        "context of 128: '<think>",
    )


def test_problem_longer_than_the_context_stops_training(script, tmp_path, tokens):
    checkpoint.save(
        tmp_path / "short",
        random_model(vocab_size=tokens.vocab_size, max_position_embeddings=4),
        tokens,
    )
    assert_one_line(
        script("train_grpo.py", "--model", tmp_path / "short", "--out", tmp_path / "out"),
        "train_grpo.py",
        "context of 4",
    )


def test_scripts_run_from_a_shell(folder):
    """A shell sees the same as the tests above, which call the scripts in this process."""
    process = subprocess.run(
        [sys.executable, ROOT / "sample.py", "--model", folder, "--prompt", "<think>" * 200],
        capture_output=True,
        cwd=folder,
        timeout=60,
        text=True,
    )
    assert_one_line(
        (process.returncode, process.stdout, process.stderr), "sample.py", "context of 128"
    )
