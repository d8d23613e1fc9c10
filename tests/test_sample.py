import datetime
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from conftest import ROOT, jsonl, score

import sample as script_sample
from r1mini import config, tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.evaluation import answer, jobs, rejection
from r1mini.evaluation.config import BOXED
from r1mini.infra.journal import Journal
from r1mini.records import Problem, Rollout
from r1mini.rewards import rules
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.tasks.corpus import completion
from r1mini.tasks.trace import Style

PROBLEM = Problem("countdown", "k", "en", "p\n", {"numbers": [2, 3, 4], "target": 14})


@pytest.fixture
def run(folder):
    def call(**changes):
        drawn = {"tasks": ("countdown", "elements"), "problems": 3, "samples": 2}
        return script_sample.main(
            script_sample.Config(
                **{
                    "model": folder,
                    "device": "cpu",
                    "max_new_tokens": 5,
                    **(drawn if changes.get("eval") or changes.get("reject") else {}),
                    **changes,
                }
            )
        )

    return call


@pytest.fixture
def no_sampling(monkeypatch):
    """Makes sampling raise: a mistake that is detected only after sampling could cost an hour."""

    def never(*args, **kwargs):
        raise AssertionError("sampled before the mistake was found")

    monkeypatch.setattr(jobs, "sample", never)
    monkeypatch.setattr(answer, "sample", never)
    monkeypatch.setattr(answer, "stream", never)


# -- prompts --------------------------------------------------------------------------------------


def test_prompt_gets_the_samplers_completion(run, capsys, model, tokens):
    run(prompt="Make 24 from 3, 5, 9.", temperature=0.0)
    [[expected]] = sample(
        model, tokens, ["Make 24 from 3, 5, 9.\n"], 1, SamplingParams(5, 0.0), seed=0
    )
    assert capsys.readouterr().out == expected.text + "\n"


def test_each_non_empty_line_of_a_pipe_is_a_prompt(run, capsys, monkeypatch, model, tokens):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n\nc\n"))
    run(temperature=0.0)
    expected = sample(model, tokens, ["a\n", "b\n", "c\n"], 1, SamplingParams(5, 0.0), seed=0)
    assert capsys.readouterr().out == "".join(group[0].text + "\n" for group in expected)


@pytest.fixture
def chatting(folder, tmp_path):
    """A model folder with a chat template that opens <think>."""
    path = tmp_path / "chatting"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content.split('</think>')[-1] }}<answer>{% "
        "endfor %}{% if add_generation_prompt %}a:<think>{% endif %}"
    )
    return str(path)


@pytest.fixture
def ending(tokens):
    """The tokenizer of `chatting`, which stops at its template's end of turn."""
    return Tokenizer(tokens.backend, {*tokens.stop_ids, *tokens.encode("<answer>")})


def test_prompt_is_rendered_by_the_folders_template(run, capsys, model, ending, chatting):
    run(model=chatting, prompt="x", system="s", temperature=0.0, max_new_tokens=60)
    [[expected]] = sample(
        model, ending, ["s:s<answer>u:x<answer>a:<think>"], 1, SamplingParams(60, 0.0), seed=0
    )
    assert capsys.readouterr().out == "<think>" + expected.text + "\n"


def test_template_can_be_chosen(run, capsys, model, tokens, chatting):
    run(model=chatting, prompt="x", template="plain", temperature=0.0)
    [[expected]] = sample(model, tokens, ["x\n"], 1, SamplingParams(5, 0.0), seed=0)
    assert capsys.readouterr().out == expected.text + "\n"


def test_missing_template_is_an_error(run, no_sampling):
    with pytest.raises(ValueError, match="--template chat"):
        run(prompt="x", template="chat")


# -- prompts of a file ----------------------------------------------------------------------------


def test_prompts_of_a_file_get_the_same_answers_as_single_prompts(
    run, tmp_path, model, ending, chatting, capsys
):
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "a", "answer": 3}\n\n{"prompt": [{"role": "user", "content": "b"}, '
        '{"role": "assistant", "content": "B"}, {"role": "user", "content": "ü"}]}\n'
    )
    run(
        model=chatting,
        prompts=str(tmp_path / "in.jsonl"),
        out=str(tmp_path / "new/out.jsonl"),
        temperature=0.0,
    )
    texts = ["u:a<answer>a:<think>", "u:b<answer>a:B<answer>u:ü<answer>a:<think>"]
    expected = [
        group[0] for group in sample(model, ending, texts, 1, SamplingParams(5, 0.0), seed=0)
    ]
    rows = jsonl(tmp_path / "new/out.jsonl")
    assert [row["completion"] for row in rows] == ["<think>" + rollout.text for rollout in expected]
    assert [row["finished"] for row in rows] == [rollout.finished for rollout in expected]
    assert rows[0]["prompt"] == "a" and rows[0]["answer"] == 3 and len(rows[1]["prompt"]) == 3
    assert "out.jsonl: 2 answers" in capsys.readouterr().out


def test_lines_of_a_text_file_are_prompts(run, tmp_path, model, tokens, capsys):
    (tmp_path / "in.txt").write_text("a\n\n  b  \r\n")
    run(prompts=str(tmp_path / "in.txt"), temperature=0.0, sampler_rows=1)
    expected = sample(model, tokens, ["a\n", "b\n", "c\n"], 1, SamplingParams(5, 0.0), seed=0)
    assert capsys.readouterr().out == f"> a\n{expected[0][0].text}\n> b\n{expected[1][0].text}\n"


@pytest.mark.parametrize(
    "content, names",
    [
        (None, "--prompts .*in.jsonl: no such file"),
        ("\n", "--prompts .*in.jsonl: no prompts"),
        (
            '{"prompt": "a"}\n{"question": "b"}',
            "in.jsonl:2: no text or messages in column 'prompt'",
        ),
        ('{"prompt": 7}', "in.jsonl:1: no text or messages"),
        ('["a"]', "in.jsonl:1: no text or messages"),
        ('{"prompt": ["a"]}', "in.jsonl:1: message 1 of 1: no text in 'role'"),
        ('{"prompt": [{"role": "user"}]}', "in.jsonl:1: message 1 of 1: no text in 'content'"),
        (
            '{"prompt": "a"}\n{"prompt": ' + json.dumps("<think>" * 130) + "}",
            "in.jsonl:2: a prompt of 131 tokens.*context of 128",
        ),
        ('{"prompt": "\\ud800"}', "in.jsonl:1: not Unicode text"),
        ("{", "in.jsonl:1: not valid JSON"),
    ],
)
def test_bad_prompt_of_a_file_is_named_before_anything_is_sampled(
    run, no_sampling, tmp_path, content, names
):
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ValueError, match=names):
        run(prompts=str(tmp_path / "in.jsonl"))


def test_two_system_messages_are_refused(run, no_sampling, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}'
    )
    with pytest.raises(
        ValueError, match="in.jsonl:1: has its own system message, so it cannot take --system 't'"
    ):
        run(prompts=str(tmp_path / "in.jsonl"), system="t")
    text = (tmp_path / "in.jsonl").read_text().replace('"s"', '""')  # an empty one is none
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(AssertionError, match="sampled before"):
        run(prompts=str(tmp_path / "in.jsonl"), system="t")


# -- chat -----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def typed(run, monkeypatch, capsys):
    """What a chat prints after each of these input lines, and at the end."""

    def call(*lines, **changes):
        rest = iter(lines)

        def typing(prompt):
            print(end="\0")
            line = next(rest, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", typing)
        run(**{"temperature": 0.0, **changes})
        return capsys.readouterr().out.split("\0")[1:]

    return call


def test_chat_sees_its_earlier_turns(typed, model, ending, chatting):
    params = SamplingParams(5, 0.0)
    [[first]] = sample(model, ending, ["s:s<answer>u:a<answer>a:<think>"], 1, params, seed=0)
    said = ("<think>" + first.text).split("</think>")[-1]
    [[second]] = sample(
        model,
        ending,
        [f"s:s<answer>u:a<answer>a:{said}<answer>u:b<answer>a:<think>"],
        1,
        params,
        seed=0,
    )
    shown = typed("a", "b", "/new", "a", model=chatting, system="s")
    assert [text.partition(" [")[0] for text in shown] == [
        "<think>" + first.text,
        "<think>" + second.text,
        "",
        "<think>" + first.text,
        "\n",
    ]


def test_each_turn_has_new_random_numbers_and_is_reproducible(typed, chatting):
    first = typed("a", "/new", "a", model=chatting, temperature=1.0, seed=3)
    assert first == typed("a", "/new", "a", model=chatting, temperature=1.0, seed=3)
    assert first[0] != first[2]


def test_chat_without_a_template_answers_each_prompt_on_its_own(typed, model, tokens):
    expected = sample(model, tokens, ["a\n", "b\n"], 1, SamplingParams(5, 0.0), seed=0)
    shown = typed("a", "b")
    assert [text.partition(" [")[0] for text in shown[:2]] == [group[0].text for group in expected]


def test_conversation_longer_than_the_context_is_reported_and_not_truncated(typed, chatting):
    long = "<think>" * 60
    shown = typed(long, long, "/new", long, model=chatting)
    assert re.fullmatch(
        r"not sent: a prompt of 1[34]\d tokens does not fit the model's context of 128: '.{60}'; "
        r"/new starts a new conversation\n",
        shown[1],
    )
    assert shown[3].partition(" [")[0] == shown[0].partition(" [")[0]


def test_truncated_answer_is_marked(typed, chatting):
    assert typed("a", model=chatting)[0].endswith(" [cut off at 5 tokens]\n")


def test_ctrl_c_stops_the_answer_and_keeps_it_in_the_conversation(typed, chatting, monkeypatch):
    real, seen = answer.stream, []

    def stopped(model, tokens, prompt, params, **keywords):
        seen.append(prompt)
        for number, token in enumerate(real(model, tokens, prompt, params, **keywords)):
            if len(seen) == 1 and number == 2:
                raise KeyboardInterrupt
            yield token

    whole = (
        typed("a", model=chatting, max_new_tokens=2)[0].partition(" [")[0].rstrip("\ufffd")
    )  # an incomplete character is not printed
    monkeypatch.setattr(answer, "stream", stopped)
    shown = typed("a", "b", model=chatting)
    assert shown[0] == whole + " [stopped]\n"
    assert seen[1] == f"u:a<answer>a:{whole.split('</think>')[-1]}<answer>u:b<answer>a:<think>"


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, EOFError])
def test_ctrl_c_or_ctrl_d_at_the_prompt_exits(run, monkeypatch, capsys, leaving):
    def typing(prompt):
        raise leaving

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing)
    run()
    assert capsys.readouterr().out.endswith("no chat template: each prompt is independent.\n\n")


@pytest.fixture
def screen(monkeypatch):
    """What is written to a terminal for these pieces of text."""

    def call(*pieces, **environment):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        shown = Terminal()
        monkeypatch.setattr("sys.stdout", shown)
        with answer.Screen() as screen:
            for piece in pieces:
                screen.write(piece)
        assert screen.text == "".join(pieces)
        return shown.getvalue()

    return call


DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def test_thinking_is_dimmed_even_if_its_tags_are_split(screen):
    text = "a<b <think>c <d</think>e<"
    for pieces in ([text], text, [text[:7], text[7:20], text[20:]]):
        assert screen(*pieces) == f"a<b {DIM}<think>c <d</think>{PLAIN}e<{PLAIN}\n"


def test_truncated_thinking_does_not_dim_later_text(screen):
    assert screen("<think>a").endswith(PLAIN + "\n")


def test_no_colour_if_disabled(screen):
    assert screen("<think>a</think>b", NO_COLOR="1") == "<think>a</think>b\n"
    assert DIM in screen("<think>", NO_COLOR="")  # as defined by no-color.org


def test_control_characters_do_not_reach_the_terminal(screen):
    assert (
        screen("a\x1b]0;title\x07\x9b2J\tb\n", NO_COLOR="1")
        == "a\ufffd]0;title\ufffd\ufffd2J\tb\n\n"
    )


def test_chat_in_a_real_terminal(chatting):
    terminal, terminal_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / "sample.py", "--model", chatting, "--max-new-tokens", "5"],
        stdin=terminal_end,
        stdout=terminal_end,
        stderr=terminal_end,
        start_new_session=True,
        preexec_fn=controlling(terminal_end),
        env={**os.environ, "NO_COLOR": ""},
    )
    os.close(terminal_end)
    try:
        assert b"Ctrl-C stops an answer" in until(terminal, b"> ")
        os.write(terminal, b"a\n")
        shown = until(terminal, b"> ")
        assert (DIM + "<think>").encode() in shown and PLAIN.encode() in shown
        os.write(terminal, b"\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(terminal)


def controlling(terminal):
    import fcntl
    import termios

    return lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def until(terminal, end, seconds=60):
    shown, started = b"", time.monotonic()
    while not shown.endswith(end):
        assert time.monotonic() - started < seconds, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1000)
    return shown


# -- evaluation -----------------------------------------------------------------------------------


def test_evaluation_writes_its_figures_and_every_completion(run, tmp_path):
    results = run(eval=True, out=str(tmp_path / "new/eval.json"))
    assert json.loads((tmp_path / "new/eval.json").read_text()) == results
    assert results.keys() == {"countdown", "elements", "mean", "settings"}
    rows = jsonl(tmp_path / "new/eval.jsonl")
    assert [(row["task"], row["sample"]) for row in rows] == [
        (task, sample)
        for task in ("countdown", "elements")
        for _ in range(3)
        for sample in range(2)
    ]
    assert rows[0].keys() >= {
        "prompt",
        "completion",
        "answer",
        "rewards",
        "finished",
        "problem",
        "language",
    }
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["eval.json", "eval.jsonl"]


def test_figures_do_not_overwrite_the_completions(run, tmp_path):
    try:
        run(eval=True, out=str(tmp_path / "eval.jsonl"))
    except ValueError as error:  # refusing the name is fine too
        assert "--out" in str(error)
    else:
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"eval": True, "reject": True}, "--eval and --reject"),
        ({"reject": True}, "--reject needs --out"),
        ({"eval": True, "tasks": ("countdwn",)}, "--tasks.*countdwn"),
        ({"eval": True, "problems": -1}, "--problems"),
        (
            {"eval": True, "template": "chat", "instruction": "x"},
            "--instruction x: has no effect without --data",
        ),
        ({"data": ("x.jsonl",)}, "--data x.jsonl: has no effect without --eval or --reject"),
        (
            {"eval": True, "data": ("absent/aime24.jsonl",), "tasks": tasks.DEFAULT, "problems": 0},
            "aime24.jsonl: no such file; download it from "
            "https://huggingface.co/datasets/HuggingFaceH4/aime_2024",
        ),
        (
            {"eval": True, "data": ("x.jsonl",)},
            "--tasks countdown elements: has no effect with --data x.jsonl",
        ),
        ({"eval": True, "samples": 0}, "--samples"),
        ({"eval": True, "top_p": 0.0}, "--top-p"),
        ({"reference": "base"}, "--reference base: has no effect without --eval"),
        ({"prompt": "a", "prompts": "b"}, "--prompt and --prompts"),
        (
            {"prompt": "a", "out": "rows.jsonl"},
            "--out rows.jsonl: only --eval, --reject and --prompts",
        ),
        ({"prompt": "a", "problems": 3}, "--problems 3: has no effect without --eval or --reject"),
        ({"prompt": "a", "keep": 3}, "--keep 3: has no effect without --reject"),
        ({"eval": True, "keep": 3}, "--keep 3: has no effect without --reject"),
        ({"eval": True, "system": "s"}, "--system s: has no effect with --eval"),
        ({"eval": True, "template": "chat"}, "--template chat: has no effect without --data"),
        ({"eval": True, "prompt": "a"}, "--prompt a: has no effect with --eval"),
        (
            {"sampler_rows": 3},
            "--sampler-rows 3: has no effect without --eval, --reject or --prompts",
        ),
        ({"eval": True, "reference": "base"}, "--reference base: its tokenizer"),
        (
            {"eval": True, "reference": "base", "top_p": 0.9},
            "--reference base: the KL needs samples of the full",
        ),
        ({"eval": True, "reference": "base", "temperature": 0.0}, "--reference base: the KL needs"),
        ({"model": "absent"}, "absent: no such model folder"),
    ],
)
def test_bad_flag_is_named_before_anything_is_sampled(run, no_sampling, changes, names):
    with pytest.raises(ValueError, match=names):
        run(**changes)


@pytest.mark.parametrize("mode", ["eval", "reject"])
@pytest.mark.parametrize("bad", ["file/out.json", "file/deeper/out.json", "folder"])
def test_out_that_cannot_be_written_is_named_before_anything_is_sampled(
    run, no_sampling, tmp_path, mode, bad
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path))):
        run(**{mode: True}, out=str(tmp_path / bad))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


GSM8K = str(ROOT / "tests/data/gsm8k.jsonl")
OF_DATA = {"tasks": tasks.DEFAULT, "problems": 0}


def test_evaluation_of_files_has_a_row_per_file_and_all_gold_answers(run, tmp_path, capsys):
    humaneval = str(ROOT / "tests/data/humaneval.jsonl")
    results = run(eval=True, data=(GSM8K, humaneval), out=str(tmp_path / "eval.json"), **OF_DATA)
    rows = jsonl(tmp_path / "eval.jsonl")
    assert results.keys() == {"gsm8k.jsonl", "humaneval.jsonl", "mean", "settings"}
    assert results["humaneval.jsonl"]["cons@2"] is None
    assert all(row["gold"] for row in rows if row["task"] == "gsm8k.jsonl")
    assert results["settings"]["data"] == [GSM8K, humaneval]
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.split("\n")[-5:-2]] == [
        "---",
        *list(results)[:2],
    ]


def test_instruction_follows_each_question(run, tmp_path):
    run(
        eval=True, data=(GSM8K,), instruction=" Box it.", out=str(tmp_path / "eval.json"), **OF_DATA
    )
    assert all(row["prompt"].endswith(" Box it.\n") for row in jsonl(tmp_path / "eval.jsonl"))


@pytest.mark.parametrize(
    "mode, file", [({"eval": True}, "eval.json"), ({"reject": True}, "rows.jsonl")]
)
def test_killed_job_resumes_to_the_same_rows(run, tmp_path, monkeypatch, mode, file):
    """With completions that are all correct."""
    (tmp_path / "sums.jsonl").write_text(
        "".join(f'{{"prompt": "{n}+{n}?", "answer": {2 * n}}}\n' for n in range(4))
    )
    monkeypatch.setattr(rules, "is_correct", lambda problem, text: True)
    monkeypatch.setattr(rejection, "breaks_format", lambda *_: False)
    monkeypatch.setattr(rejection, "verdict", lambda *_: "kept")
    mode = {**mode, "data": (str(tmp_path / "sums.jsonl"),), "sampler_rows": 2, **OF_DATA}
    run(**mode, out=str(tmp_path / "whole" / file))
    calls, real = [], jobs.sample

    def killed(*args, **keywords):
        calls.append(keywords["first_prompt"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **keywords)

    monkeypatch.setattr(jobs, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        run(**mode, out=str(tmp_path / "cut" / file))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [f"{file}.partial"]
    calls[:] = [None] * 9
    run(**mode, out=str(tmp_path / "cut" / file))
    assert calls[9] == 2  # two problems were finished and saved before the kill
    rows = [
        path.with_suffix(".jsonl").read_bytes()
        for path in (tmp_path / "whole" / file, tmp_path / "cut" / file)
    ]
    assert rows[0] == rows[1] and not (tmp_path / "cut" / f"{file}.partial").exists()


class Day(datetime.date):
    today_is = "2026-02-03"

    @classmethod
    def today(cls):
        return cls.fromisoformat(cls.today_is)


@pytest.mark.parametrize("job", ["eval", "reject", "prompts"])
def test_interrupted_job_keeps_the_first_day_of_its_template(
    run, tmp_path, monkeypatch, chatting, job
):
    template = Path(chatting) / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}|" + template.read_text())
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"prompt": "{n}?", "answer": {n}}}\n' for n in range(4)))
    monkeypatch.setattr(jobs, "date", Day)
    monkeypatch.setattr(rejection, "verdict", lambda *_: "kept")
    flags = {"eval": True, "data": (str(problems),), **OF_DATA, "template": "chat"}
    if job == "reject":
        flags = {**flags, "eval": False, "reject": True}
    elif job == "prompts":
        flags = {"prompts": str(problems)}
    flags |= (
        {"model": chatting, "sampler_rows": 1, "samples": 1}
        if job != "prompts"
        else {"model": chatting}
    )
    name = {"eval": "out.json", "reject": "out.jsonl", "prompts": "out.jsonl"}[job]
    real = Journal.add

    def killed(journal, part):
        if len(journal.parts) == 2:
            raise KeyboardInterrupt
        real(journal, part)

    def rows(folder):
        return (tmp_path / folder / name).with_suffix(".jsonl").read_bytes()

    run(**flags, out=str(tmp_path / "whole" / name))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            run(**flags, out=str(tmp_path / "cut" / name))
    monkeypatch.setattr(Day, "today_is", "2026-02-04")
    run(**flags, out=str(tmp_path / "cut" / name))
    assert rows("cut") == rows("whole")
    run(**flags, out=str(tmp_path / "next" / name))
    if job == "eval":
        settings = [
            json.loads((tmp_path / folder / name).read_text())["settings"]["date"]
            for folder in ("whole", "cut", "next")
        ]
        assert settings == ["2026-02-03", "2026-02-03", "2026-02-04"]
        assert rows("next") != rows("whole")


def test_presets_follow_r1s_protocol():
    cfg = config.parse(script_sample.Config, ["--preset", "aime24"], script_sample.PRESETS)
    assert cfg == script_sample.Config(
        eval=True,
        data=("aime24.jsonl",),
        samples=64,
        temperature=0.6,
        top_p=0.95,
        max_new_tokens=32_768,
        instruction=BOXED,
    )


# -- rejection sampling ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, finished, thinking_tokens, why",
    [
        ("<think>2+3=5 no\n</think><answer>2+3*4</answer>", True, 50, "kept"),
        ("<think>2+3=5 no\n</think><answer>2+3*4</answer>", True, 51, "long"),
        ("<think>2+3=5 no\n</think><answer>2+3*4</answer>", False, 50, "cut off"),
        ("<think>2+3=5 no\n</think><answer>2+3+4</answer>", True, 50, "wrong"),
        ("<think>2+3=5 no\n</think> so <answer>2+3*4</answer>", True, 50, "format"),
        ("<think>2+3=5 错\n3*4=12 no\n</think><answer>2+3*4</answer>", True, 50, "mixed languages"),
        (
            "<think>2+3=5 no\n3*4=12 no\n2+3=5 no\n</think><answer>2+3*4</answer>",
            True,
            50,
            "repetition",
        ),
        (f"<think>2+3=5 {'no ' * 600}\n</think><answer>2+3*4</answer>", True, 50, "long paragraph"),
        (
            "<think>2+3=5 no\n```\n2+3*4\n```\n</think><answer>2+3*4</answer>",
            True,
            50,
            "code block",
        ),
        (
            "<think>2+3=5 no\n\n\n3*4=12 no\n</think><answer>2+3*4</answer>",
            True,
            50,
            "kept",
        ),  # empty lines may repeat
    ],
)
def test_reasons_to_reject_a_completion(text, finished, thinking_tokens, why):
    [scores] = score(PROBLEM, [Rollout((1,), (2,), (0.0,), text, finished)], rejection.REWARDS)
    assert rejection.verdict(PROBLEM, text, finished, scores, thinking_tokens, 50) == why


@pytest.fixture
def rejected(run, tmp_path, monkeypatch):
    """Rows from a fake sampler that writes demonstrations: of six completions, one is wrong, one is a duplicate,
    and four are good."""
    drawn, real = {}, tasks.problem

    def recording(*args):
        problem = real(*args)
        return drawn.setdefault(problem.prompt, problem)

    def demonstrate(model, tokens, prompts, group, params, **rest):
        assert group == 6
        groups = []
        for prompt in prompts:
            texts = [
                completion(
                    *tasks.demonstrate(drawn[prompt], Style(), Random(i))[:2],
                    drawn[prompt].language,
                    True,
                    True,
                )
                for i in range(4)
            ]
            texts += [texts[0], re.sub("<answer>.*</answer>", "<answer>1</answer>", texts[0])]
            groups.append([Rollout((1,), (2,), (0.0,), text, True) for text in texts])
        return groups

    monkeypatch.setattr(tasks, "problem", recording)
    monkeypatch.setattr(jobs, "sample", demonstrate)
    summary = run(
        reject=True,
        out=str(tmp_path / "rows.jsonl"),
        problems=20,
        samples=6,
        keep=2,
        plain_rows=7,
        max_thinking=10_000,
    )
    return summary, jsonl(tmp_path / "rows.jsonl"), drawn


def test_rejection_keeps_correct_completions_and_counts_the_others(rejected):
    summary, rows, drawn = rejected
    reasoned = [row for row in rows if row["task"] == "countdown"]
    assert all(rules.is_correct(drawn[row["prompt"]], row["completion"]) for row in reasoned)
    assert summary["verdicts"] == {"kept": 100, "wrong": 20} and summary["rows"] == len(rows)


def test_rejection_keeps_a_few_distinct_rows_per_problem(rejected):
    _, rows, _ = rejected
    reasoned = [(row["problem"], row["completion"]) for row in rows if row["task"] == "countdown"]
    kept = Counter(problem for problem, _ in reasoned)
    assert len(kept) == 20 and set(kept.values()) <= {1, 2} and 2 in kept.values()
    assert len(set(reasoned)) == len(reasoned)


def test_rejection_adds_rows_without_thinking(rejected):
    _, rows, _ = rejected
    plain = [row for row in rows if row["task"] == "elements"]
    assert len(plain) == 7 and any("<think>" not in row["completion"] for row in plain)


def test_rejection_uses_no_held_out_problem(rejected):
    _, rows, drawn = rejected
    assert len(drawn) == 27 and not any(tasks.is_held_out(problem) for problem in drawn.values())
    assert {row["prompt"] for row in rows} == drawn.keys()


def test_rejection_rows_of_a_file_are_messages_with_their_origin(tokens):
    problem = Problem(
        "gsm8k.jsonl",
        "7",
        "",
        "1+1?<think>\n",
        {"answer": "2"},
        ({"role": "user", "content": "1+1?"},),
    )
    texts = [
        "1+1=2\n</think>\n\\boxed{2}",
        "1+1=2\n</think>\n\\boxed{3}",
        "1+1=2\n\\boxed{2}",
        "</think></think>\\boxed{2}",
    ]
    rollouts = [Rollout((1,), (2,), (0.0,), text, True) for text in texts]
    result = rejection.select_rows(
        problem,
        rollouts,
        score(problem, rollouts, rejection.REWARDS),
        tokens,
        keep=2,
        max_thinking=99,
        seed=5,
        model="m",
    )
    assert result == {
        "verdicts": {"kept": 1, "wrong": 2, "format": 1},
        "rows": [
            {
                "prompt": [{"role": "user", "content": "1+1?"}],
                "completion": [{"role": "assistant", "content": "<think>\n" + texts[0]}],
                "task": "gsm8k.jsonl",
                "problem": "7",
                "model": "m",
                "seed": 5,
                "sample": 0,
                "rewards": {"accuracy": 1.0, "format": 0.0},
            }
        ],
    }


def test_rejecting_every_completion_is_an_error_with_the_reasons(run, tmp_path):
    with pytest.raises(
        ValueError, match="no completion.*was kept.*cut off|no completion.*was kept.*wrong"
    ):
        run(reject=True, out=str(tmp_path / "rows.jsonl"), tasks=("kinetics",))
    assert not (tmp_path / "rows.jsonl").exists()
