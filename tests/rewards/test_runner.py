"""Calling the rewards: command line, functions pasted from other projects, checks, threads."""

import gc
import importlib.util
import json
import re
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, jsonl, score

from r1mini import rewards
from r1mini.records import Problem, Rollout
from r1mini.rewards import rules
from r1mini.rewards.runner import (
    Rewards,
    Term,
    call_checked,
    group_rewards,
    load_rewards,
    parse_spec,
    score_async,
    worker_pool,
)
from r1mini.rewards.trl_adapter import Text, per_completion

PROBLEM = Problem(
    "countdown", "k", "en", "Make 14 from 2, 3, 4.\n", {"numbers": [2, 3, 4], "target": 14}
)
DATA = Problem("data", "", "en", "What is 2+2?", {"answer": "4", "solution": r"It is \boxed{4}."})
GOOD = "<think>\n2+2 is 4\n</think>\n<answer>\n4\n</answer>"


def rollouts(*texts):
    return [Rollout((1,), tuple(range(len(text))), (), text, True) for text in texts]


def called(reward, *texts, **columns):
    problem = replace(DATA, columns={**DATA.columns, **columns})
    return call_checked("mine", reward, problem, rollouts(*texts))


@pytest.fixture
def file(tmp_path):
    def write(text, name="my_rewards.py"):
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        return str(tmp_path / name)

    return write


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, expected",
    [
        ("accuracy", {"accuracy": 1.0}),
        (" accuracy , format:0.1", {"accuracy": 1.0, "format": 0.1}),
        ("length:-0.5", {"length": -0.5}),
        ("my.py:brevity", {"brevity": 1.0}),
        ("a/b.py:f:2,cosine:1e-1", {"f": 2.0, "cosine": 0.1}),
        (r"C:\my.py:f:0.5", {"f": 0.5}),
    ],
)
def test_reward_weights_are_parsed(flag, expected):
    assert {term.name: term.weight for term in parse_spec(flag)} == expected


@pytest.mark.parametrize(
    "flag, term",
    [
        ("accuracy", Term("accuracy")),
        ("accuracy:2@0.5", Term("accuracy", 2.0, 0.5)),
        ("format@0.25", Term("format", 1.0, 0.25)),
        ("my.py:brevity@0.5", Term("brevity", 1.0, 0.5, file="my.py")),
        ("a/b.py:f:-2@0", Term("f", -2.0, 0.0, file="a/b.py")),
        ("helpful=runs/rm", Term("helpful", folder="runs/rm")),
        (" helpful=runs/rm:0.5 ", Term("helpful", 0.5, folder="runs/rm")),
        ("helpful=runs/rm@0.75", Term("helpful", 1.0, 0.75, folder="runs/rm")),
        ("helpful=runs/rm:-1e-1@.75", Term("helpful", -0.1, 0.75, folder="runs/rm")),
        ("a=../r1.py/my rm=2", Term("a", folder="../r1.py/my rm=2")),
        (
            "rm=Skywork/Skywork-Reward-V2-Qwen3-0.6B:1@0.5",
            Term("rm", 1.0, 0.5, folder="Skywork/Skywork-Reward-V2-Qwen3-0.6B"),
        ),
    ],
)
def test_terms_of_a_reward_are_parsed(flag, term):
    assert parse_spec(flag) == (term,)
    assert parse_spec(f"language,{flag}")[1:] == (term,)


@pytest.mark.parametrize(
    "flag, why",
    [
        ("helpful=", "helpful=: give the folder of a reward model"),
        ("helpful=:2", "helpful=: give the folder of a reward model"),
        ("helpful=@0.5", "helpful=: give the folder of a reward model"),
        ("=runs/rm", "'=runs/rm' is not one of accuracy, .*, nor name=folder of a reward model"),
        ("my-rm=runs/rm", "'my-rm=runs/rm' is not one of"),
        ("helpful", "'helpful' is not one of accuracy, .*, nor name=folder of a reward model"),
        ("accuracy=runs/rm", "'accuracy' is the name of a built-in reward; choose another name"),
        ("length=runs/rm", "'length' is the name of a built-in reward"),
        ("overlong=runs/rm", "'overlong' is the name of a built-in reward"),
        ("x=runs/rm:abc", "'abc' is not a number"),
        ("x=runs/rm:nan", "'nan' is not a finite number"),
        ("x=runs/rm:1:2", "'1:2' is not a number"),
        ("x=runs/rm@1", "@1: after @ comes the share of the run"),
        ("x=runs/rm@-0.1", "@-0.1: after @ comes the share of the run"),
        ("x=runs/rm@nan", "@nan: after @ comes the share of the run"),
        ("x=runs/rm@late", "@late: after @ comes the share of the run"),
        ("x=runs/rm@0.5:2", "@0.5:2: after @ comes the share of the run"),
        ("accuracy@2", "@2: after @ comes the share of the run"),
        ("accuracy@", "@: after @ comes the share of the run"),
        ("x=runs/rm,x=runs/other", "'x' is listed twice"),
        ("my.py:x,x=runs/rm", "'x' is listed twice"),
    ],
)
def test_bad_term_of_a_reward_is_quoted(flag, why):
    with pytest.raises(ValueError, match=f"--reward {re.escape(flag)}: {why}") as error:
        parse_spec(flag)
    assert "\n" not in str(error.value)


def test_reward_counts_from_its_share_of_the_run_on():
    functions = {"format": None, "a": None, "b": None}
    rewards = Rewards(functions, {"format": 0.5, "a": 1.0, "b": -2.0}, {"a": 0.5, "b": 0.75})
    for progress, a, b in ((0.0, 0, 0), (0.49, 0, 0), (0.5, 1, 0), (0.75, 1, -2), (1.0, 1, -2)):
        assert rewards.at(progress) == (functions, {"format": 0.5, "a": a, "b": b}, rewards.starts)
    assert rewards.weights == {"format": 0.5, "a": 1.0, "b": -2.0}  # not changed in place
    loaded = load_rewards("accuracy:2,format@0.5")
    assert loaded.at(0.25).weights == {"accuracy": 2.0, "format": 0.0} != loaded.at(0.5).weights


def test_late_reward_adds_nothing_before_its_start():
    """Its score is still computed, so that it is logged, and it may not apply."""
    rewards = Rewards({}, {"format": 0.5, "helpful": 3.0}, {"helpful": 0.5})
    scores = [{"format": 1.0, "helpful": -7.0}, {"format": 1.0, "helpful": None}]
    assert group_rewards(DATA, scores, rewards.at(0.4).weights) == (0.5, 0.5)
    assert group_rewards(DATA, scores, rewards.at(0.5).weights) == (-20.5, 0.5)


def test_models_are_opened_by_name_and_folder():
    opened = []
    loaded = load_rewards(
        "accuracy,a=runs/rm:2,b=owner/name@0.5", lambda *args: opened.append(args) or "model"
    )
    assert opened == [("a", "runs/rm"), ("b", "owner/name")]
    assert loaded.weights == {"accuracy": 1.0, "a": 2.0, "b": 1.0}
    assert loaded.functions["a"] == loaded.functions["b"] == "model"
    assert loaded.starts == {"accuracy": 0.0, "a": 0.0, "b": 0.5}


class Collects:
    """A reward that scores all waiting completions when the first result is asked for."""

    def __init__(self):
        self.waiting, self.batches, self.threads = [], [], []

    def enqueue(self, problem, rollouts):
        waiting, start = self.waiting, len(self.waiting)
        waiting += [len(rollout.text) for rollout in rollouts]

        def result():
            if waiting is self.waiting:
                self.waiting = []
                self.batches.append(waiting)
                self.threads.append(threading.current_thread())
            return waiting[start : start + len(rollouts)]

        return result


def test_waiting_completions_of_all_problems_are_scored_together():
    reward, named = Collects(), {"accuracy": rewards.REWARDS["accuracy"]}
    with worker_pool() as pool:
        texts = (["a", "bb"], ["ccc"], ["", "dddd"])
        pending = [
            score_async(DATA, rollouts(*part), {**named, "helpful": reward}, pool) for part in texts
        ]
        assert not reward.batches  # nothing is scored before the first result
        results = [scoring.result() for scoring in pending]
    assert reward.batches == [[1, 2, 3, 0, 4]]
    assert reward.threads == [threading.main_thread()]
    assert [[row["helpful"] for row in rows] for rows in results] == [[1, 2], [3], [0, 4]]
    assert all(list(row) == ["accuracy", "helpful"] for rows in results for row in rows)


@pytest.mark.parametrize(
    "flag, why",
    [
        ("my.py:f,f", "'f' is not one of"),
        ("my.py:f,other.py:f", "'f' is listed twice"),
        ("my.py:f:x", "'x' is not a number"),
        ("my.py:", "no function ''"),
        ("my.py", "'my.py' is not one of"),
        ("my.py:accuracy", "name of a built-in reward"),
        ("absent.py:f", "absent.py: no such file"),
        ("my.py:absent", "no function 'absent'"),
        ("my.py:waits", "'waits' is async; a reward must be a plain function"),
        ("my.py:NUMBER", "no function 'NUMBER'"),
        ("broken.py:f", "broken.py: SyntaxError"),
        ("exits.py:f", "exits.py: SystemExit"),
        ("accuracy:1e300", "1e300.*finite"),
    ],
)
def test_bad_reward_flag_is_a_one_line_error(file, monkeypatch, tmp_path, flag, why):
    plain = "def f(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    file("NUMBER = 3\n" + plain + "async " + plain.replace("f(", "waits("), "my.py")
    file("def f(:\n", "broken.py")
    file("raise SystemExit(0)\n", "exits.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=why) as error:
        load_rewards(flag)
    assert "\n" not in str(error.value)


class Waits:
    async def __call__(self, completions, **columns):
        return [1.0] * len(completions)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "reward, why",
    [
        (Waits(), "returned a coroutine, not a list; row 1 of 2"),
        (lambda **columns: Waits()(**columns), "returned a coroutine, not a list; row 1"),
    ],
)
def test_async_reward_is_refused_without_pythons_warning(reward, why, recwarn):
    with pytest.raises(ValueError, match=f"reward mine: .*{why}"):
        called(reward, "first", "second")
    gc.collect()
    assert not recwarn.list


def test_functions_from_one_file_share_its_state(file):
    path = file("""
        seen = []
        def first(completions, **kwargs):
            seen.append(len(completions))
            return [0.0] * len(completions)
        def second(completions, **kwargs):
            return [float(len(seen))] * len(completions)
    """)
    functions = load_rewards(f"{path}:first,{path}:second:0.5").functions
    assert list(functions) == ["accuracy", "format", "language", "first", "second"]
    assert [row["second"] for row in score_async(DATA, rollouts("a", "b"), functions).result()] == [
        1.0,
        1.0,
    ]


# -- rewards pasted from other projects --------------------------------------------------------------------------------

# Written from scratch, with the public signatures of open-r1 and TRL: message lists, keywords, columns, completion ids,
# factories.
PASTED = r"""
import math
import re
from typing import Optional

def format_reward(completions, **kwargs):
    pattern = r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
    contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content, re.DOTALL | re.MULTILINE) for content in contents]
    return [1.0 if match else 0.0 for match in matches]

def tag_count_reward(completions, **kwargs) -> list[float]:
    def count_tags(text: str) -> float:
        return 0.25 * sum(text.count(tag) == 1 for tag in ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"))
    return [count_tags(completion[0]["content"]) for completion in completions]

def accuracy_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs) -> list[Optional[float]]:
    rewards = []
    for content, sol in zip([completion[0]["content"] for completion in completions], solution):
        gold = re.search(r"\\boxed\{(.*?)\}", sol)
        rewards.append(float(gold.group(1) in content) if gold else None)
    return rewards

def len_reward(completions: list[dict[str, str]], solution: list[str], **kwargs) -> float:
    lengths = [len(completion[0]["content"]) for completion in completions]
    low, high = min(lengths), max(lengths)
    return [0.0 if high == low else 0.5 - (length - low) / (high - low) for length in lengths]

def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int):
    def soft_overlong_punishment_reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
        rewards = []
        for ids in completion_ids:
            length = len(ids)
            if length <= max_completion_len - soft_punish_cache:
                rewards.append(0.0)
            elif length <= max_completion_len:
                rewards.append((max_completion_len - soft_punish_cache - length) / soft_punish_cache)
            else:
                rewards.append(-1.0)
        return rewards
    return soft_overlong_punishment_reward

soft_overlong = get_soft_overlong_punishment(20, 10)

def code_reward(completions, **kwargs) -> list[float]:
    snippets = [re.findall(r"```python\n(.*?)```", completion[-1]["content"], re.DOTALL) for completion in completions]
    return [float(bool(found) and info["language"] == "python") for found, info in zip(snippets, kwargs["verification_info"])]

def correctness_reward_func(prompts, completions, answer, **kwargs) -> list[float]:
    question = prompts[0][-1]["content"]
    responses = [completion[0]["content"] for completion in completions]
    return [2.0 if "2+2" in question and a in r else 0.0 for r, a in zip(responses, answer)]

# TRL's documentation: completions that are strings.
def reward_len(completions, **kwargs):
    return [float(len(set(completion))) for completion in completions]

def starts(completions, **kwargs):
    return [1.0 if completion[0] == "<" and completion[-1] == ">" and re.match("<think>", completion) else 0.0
            for completion in completions]

def mixed(prompts, completions, completion_ids, task, **kwargs):
    return [None if t != "data" else float(len(ids)) for t, ids in zip(task, completion_ids)]
"""


@pytest.mark.parametrize(
    "name, expected",
    [
        ("format_reward", [1.0, 0.0]),
        ("tag_count_reward", [1.0, 0.0]),
        ("accuracy_reward", [1.0, 0.0]),
        ("len_reward", [-0.5, 0.5]),
        ("soft_overlong", [-1.0, 0.0]),
        ("code_reward", [0.0, 0.0]),
        ("correctness_reward_func", [2.0, 0.0]),
        ("reward_len", [float(len(set(GOOD))), 2.0]),
        ("starts", [1.0, 0.0]),
        ("mixed", [float(len(GOOD)), 2.0]),
    ],
)
def test_pasted_rewards_run_unchanged(file, name, expected):
    functions = load_rewards(f"{file(PASTED)}:{name}").functions
    assert called(functions[name], GOOD, "no", verification_info={"language": "python"}) == expected


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_trls_own_files_run_unchanged(file):
    folder = Path(importlib.util.find_spec("trl").origin).parent / "rewards"
    path = file(
        (folder / "format_rewards.py").read_text()
        + (folder / "other_rewards.py").read_text()
        + "\ntoo_long = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10)\n"
        + "repetition = get_repetition_penalty_reward()\n"
    )
    for name, expected in (
        ("think_format_reward", [1.0, 0.0]),
        ("too_long", [-1.0, 0.0]),
        ("repetition", [0.0, 0.0]),
    ):
        functions = load_rewards(f"{path}:{name}").functions
        assert called(functions[name], GOOD, "no") == expected


def test_language_column_is_passed_only_if_a_row_has_one():
    seen = []
    reward = lambda completions, **columns: (
        seen.append("language" in columns) or [1.0] * len(completions)
    )
    for language in ("", "en"):
        problem = Problem("data", "", language, "p", {})
        call_checked("mine", reward, problem, rollouts("a"))
    assert seen == [False, True]


def test_pasted_reward_is_trained_on_and_logged_by_name(script, file, folder, tmp_path):
    path = file(PASTED)
    code, out, err = script(
        "train_grpo.py",
        "--model",
        folder,
        "--out",
        tmp_path / "out",
        "--steps",
        1,
        "--problems",
        2,
        "--completions",
        2,
        "--minibatches",
        1,
        "--max-new-tokens",
        5,
        "--device",
        "cpu",
        "--no-progress",
        "--reward",
        f"{path}:tag_count_reward:0.5,{path}:reward_len:0.25,soft_overlong_punishment",
    )
    assert code == 0, err
    for row in jsonl(tmp_path / "out/rollouts.jsonl"):
        scores = row["rewards"]
        assert list(scores) == [
            "accuracy",
            "format",
            "language",
            "tag_count_reward",
            "reward_len",
            "soft_overlong_punishment",
        ]
        assert scores["reward_len"] == len(set(row["completion"]))
        assert row["reward"] == pytest.approx(
            0.5 * scores["tag_count_reward"]
            + 0.25 * scores["reward_len"]
            + scores["soft_overlong_punishment"]
        )
    assert (
        "rewards/reward_len/mean" in jsonl(tmp_path / "out/metrics.jsonl")[0]
        and "reward_len" in out
    )


def test_text_acts_as_a_string_and_as_a_message():
    text = Text("ab")
    assert (
        text == "ab"
        and text[0] == "a"
        and text[-1] == "b"
        and text[:1] == "a"
        and list(text) == ["a", "b"]
    )
    assert (
        text[0]["content"] == text[-1]["content"] == "ab"
        and json.dumps(text) == '"ab"'
        and Text("")[0]["content"] == ""
    )
    with pytest.raises(KeyError):
        text[0]["contents"]


# -- failures never become a reward ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned, why",
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 1.0, 1.0], "returned 3 values"),
        ([], "returned 0 values"),
        (None, "returned a NoneType"),
        (1.0, "returned a float"),
        ("11", "returned a str"),
        ({0: 1.0, 1: 1.0}, "returned a dict"),
        ({0.0, 1.0}, "returned a set"),
        ([1.0, float("nan")], "'nan' is not a finite number.*row 2 of 2"),
        ([float("inf"), 1.0], "'inf' is not a finite.*row 1 of 2"),
        ([1.0, 1e39], "1e.39.*row 2"),
        ([1.0, 10**400], "not a number.*row 2"),
        ([1.0, "1.0"], "'1.0' is text, not a finite number.*row 2"),
        ([1.0, [1.0]], "not a number.*row 2"),
        ([1j, 1.0], "not a number.*row 1"),
    ],
)
def test_return_value_that_is_not_a_list_of_finite_numbers_names_the_row(returned, why):
    with pytest.raises(ValueError, match=f"reward mine: .*{why}") as error:
        called(lambda **columns: returned, "first", "second\n\x1b[31m")
    assert re.search(
        r"task 'data', prompt 'What is 2\+2\?', completion '(first|second\\n\\x1b)",
        str(error.value),
    )


def test_any_numeric_type_is_accepted():
    torch = pytest.importorskip("torch")
    assert called(lambda **columns: (True, 0), "a", "b") == [1.0, 0.0]
    assert called(lambda **columns: torch.tensor([0.5, 1.5]), "a", "b") == [0.5, 1.5]
    assert called(
        lambda **columns: (None if c == "a" else 1 for c in columns["completions"]), "a", "b"
    ) == [None, 1.0]


@pytest.mark.parametrize(
    "bad", [KeyError("answer"), ZeroDivisionError(), SystemExit(0), ValueError("two\nlines\x1b[0m")]
)
def test_exception_in_a_reward_names_the_row(bad):
    def reward(completions, **kwargs):
        if "poison" in completions:
            raise bad
        return [1.0] * len(completions)

    with pytest.raises(
        ValueError, match=f"reward mine: {type(bad).__name__}.*row 2 of 3.*completion 'poison'"
    ) as error:
        called(reward, "a", "poison", "b")
    assert str(error.value).isprintable()


def test_interrupt_passes_through_a_reward():
    def reward(**columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(reward, "a")


def test_bad_reward_ends_the_run_with_one_line_and_exit_code_2(script, file, folder, tmp_path):
    path = file("def bad(completions, **kwargs):\n    return [1 / 0 for _ in completions]\n")
    code, out, err = script(
        "train_grpo.py",
        "--model",
        folder,
        "--out",
        tmp_path / "out",
        "--max-new-tokens",
        3,
        "--device",
        "cpu",
        "--no-progress",
        "--reward",
        f"accuracy,{path}:bad",
    )
    assert code == 2 and re.fullmatch(
        r"train_grpo\.py: reward bad: ZeroDivisionError: [^\n]*; row 1 of 8: task 'countdown', "
        r"prompt '[^\n]*', completion [^\n]*\n",
        err,
    )


def test_sandbox_fault_is_not_a_reward(monkeypatch):
    def broken(*args):
        raise rules.sandbox.SandboxError("no seccomp here")

    monkeypatch.setattr(rules.sandbox, "judge", broken)
    problem = Problem("code", "", "en", "p", {"tests": [{"stdin": "", "stdout": "1"}]})
    with pytest.raises(ValueError, match="reward code: SandboxError: no seccomp here; row 2 of 2"):
        score(problem, rollouts("<think>", "```\nprint(1)\n```"), ("code",))


def test_unparsable_gold_ends_the_run():
    with pytest.raises(ValueError, match="reward accuracy: ValueError: gold answer"):
        score(
            Problem("data", "", "en", "p", {"answer": r"\frac{1}{"}), rollouts("<answer>1</answer>")
        )


def test_problem_without_an_applicable_reward_is_an_error():
    scores = score(PROBLEM, rollouts("a", "b"), ("code", "accuracy"))
    assert group_rewards(PROBLEM, scores, {"code": 1.0, "accuracy": 1.0}) == (0.0, 0.0)
    with pytest.raises(
        ValueError,
        match="--reward code: none of these rewards applies to the problem of task 'countdown', prompt 'Make 14",
    ):
        group_rewards(PROBLEM, scores, {"code": 1.0})


def test_reward_cannot_modify_the_input_of_the_next_one():
    def greedy(completions, **columns):
        values = [1.0] * len(completions)
        completions.clear()
        return values

    [row] = score_async(DATA, rollouts(GOOD), {"greedy": greedy, "format": rewards.format}).result()
    assert row == {"greedy": 1.0, "format": 1.0}


# -- threads -----------------------------------------------------------------------------------------------------------


def test_builtin_rewards_run_in_threads_and_user_functions_in_the_main_thread(monkeypatch):
    where, begun = {}, threading.Event()

    @per_completion
    def slow(problem, completion):
        where["slow"] = threading.current_thread()
        begun.set()
        return 1.0

    def users(completions, **columns):
        where["users"] = threading.current_thread()
        return [2.0] * len(completions)

    monkeypatch.setitem(rewards.REWARDS, "slow", slow)
    with worker_pool() as pool:
        scoring = score_async(DATA, rollouts("a"), {"slow": slow, "users": users}, pool)
        assert begun.wait(10) and "users" not in where  # before the result is requested
        assert scoring.result() == [{"slow": 1.0, "users": 2.0}]
    assert where["users"] is threading.main_thread() is not where["slow"]


def test_error_does_not_wait_for_rewards_that_have_not_started():
    with pytest.raises(ZeroDivisionError), worker_pool() as pool:
        jobs = [pool.submit(time.sleep, 0.2) for _ in range(400)]
        raise ZeroDivisionError
    assert jobs[-1].cancelled()


def test_scores_do_not_depend_on_the_number_of_threads():
    problem = Problem("code", "", "en", "p", {"tests": [{"stdin": "3\n", "stdout": "6\n"}]})
    texts = [
        "```python\nprint(2 * int(input()))\n```",
        "```\nprint(7)\n```",
        "```\nprint(6)\n```",
        "none",
    ]
    with worker_pool() as pool:
        pending = [
            score_async(problem, rollouts(*texts), {"code": rewards.code}, pool) for _ in range(6)
        ]
        assert [[row["code"] for row in scoring.result()] for scoring in pending] == [
            [1.0, 0.0, 1.0, 0.0]
        ] * 6


def test_groups_are_scored_while_others_are_sampled(model, tokens):
    from r1mini.sampler.sampler import sample
    from r1mini.sampler.sampling import SamplingParams

    reported = []
    groups = sample(
        model,
        tokens,
        ["a\n", "b\n", "c\n"],
        2,
        SamplingParams(3),
        seed=0,
        max_rows=3,
        on_finished=lambda n, rollouts: reported.append((n, list(rollouts))),
    )
    assert reported == list(enumerate(groups)) and all(len(group) == 2 for group in groups)


def test_training_loop_has_no_branch_per_reward():
    loop = (ROOT / "train_grpo.py").read_text(encoding="utf-8")
    assert not [name for name in rewards.REWARDS if f'== "{name}"' in loop]


def test_columns_do_not_override_a_rewards_settings():
    problem = Problem("x.jsonl", "0", "", "p", {"answer": "2", "max_len": 3, "ngram_size": "x"})
    rollouts = [Rollout((1,), (2,), (0.0,), r"\boxed{2}", True)]
    [scores] = score(problem, rollouts, ("cosine", "repetition_penalty"))
    assert scores["cosine"] > 0.99
