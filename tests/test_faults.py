"""No fault silently produces a wrong number: each one is injected here. The table is r1mini/docs/faults.md."""

import copy
import json
import math
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import jsonl, random_model

import train_grpo
import train_sft
from r1mini import checkpoint, rewards
from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows
from r1mini.infra.files import read_metrics
from r1mini.recipe import scheduler
from r1mini.records import Group, Problem, Rollout
from r1mini.rewards import runner
from r1mini.rl import learner
from r1mini.rl import rollouts as rl_rollouts
from r1mini.rl.metrics import LOGS, NEEDED
from r1mini.rl.samples import make_samples
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import memory, optim, run_state

CPU = torch.device("cpu")
QUESTION = {"prompt": "1+1?\n", "completion": "<think>2</think><answer>2</answer>"}


@pytest.fixture
def rl(tiny_grpo):
    return partial(tiny_grpo, minibatches=2)


@pytest.fixture
def sft(tmp_path, folder):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({**QUESTION, "prompt": f"{n}+{n}?\n"}) + "\n" for n in range(6))
    )

    def call(name="out", **changes):
        return train_sft.main(
            train_sft.Config(
                **{
                    "out": str(tmp_path / name),
                    "model": folder,
                    "data": str(path),
                    "device": "cpu",
                    "epochs": 4,
                    "batch_tokens": 64,
                    "learning_rate": 1e-3,
                    **changes,
                }
            )
        )

    return call


def poisoned(monkeypatch, where, value, calls, row=0):
    """Adds `value` to the log-probabilities of one row in these calls of the learner's pass, counted from 1."""
    real, count = where.token_logprobs, []

    def pass_(*args):
        logp_BT = real(*args)
        count.append(1)
        if len(count) in calls:
            logp_BT = logp_BT.index_add(0, torch.tensor([row]), torch.full_like(logp_BT[:1], value))
        return logp_BT

    monkeypatch.setattr(where, "token_logprobs", pass_)


def weights_of(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


# -- a loss or gradient that is not finite --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rollouts(model, tokens):
    rows = [
        r
        for group in sample(
            model, tokens, ["Make 24 from 3, 5, 9.\n", "x\n"], 3, SamplingParams(8), seed=0
        )
        for r in group
    ]
    return rows


ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -0.5, 1.0, 2.0])


def samples_of(cfg, policy, rollouts):
    return make_samples(
        cfg, policy, [Group(Problem("", "", "", ""), rollouts, [], ())], ADVANTAGES[None]
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("fault", ["nan loss", "inf gradient"])
def test_non_finite_update_leaves_weights_and_moments_unchanged(
    model, rollouts, monkeypatch, kind, fault
):
    policy, cfg = copy.deepcopy(model).requires_grad_(True), train_grpo.Config()
    optimizers = optim.build_optimizers(policy, kind, 0.1)
    samples = samples_of(cfg, policy, rollouts)
    update = lambda: learner.update_minibatch(cfg, policy, None, optimizers, samples, 1e-2)
    assert math.isfinite(update()["grad_norm"])  # after this, the optimizers have moments
    before = copy.deepcopy(
        [policy.state_dict(), *(optimizer.state_dict()["state"] for optimizer in optimizers)]
    )
    if fault == "nan loss":
        poisoned(monkeypatch, learner, math.nan, {1}, row=2)
    else:
        policy.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    stats = update()
    assert not math.isfinite(stats["grad_norm"]) and stats.get("bad") == (
        [2] if fault == "nan loss" else None
    )
    after = [policy.state_dict(), *(optimizer.state_dict()["state"] for optimizer in optimizers)]
    for one, other in zip(before, after):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_non_finite_loss_is_detected_even_if_its_gradient_is_finite():
    # The gradient of a clamp is 0 where its argument is NaN.
    weight = torch.nn.Parameter(torch.ones(2))
    loss = weight.sum() + torch.tensor([math.nan], requires_grad=True).clamp(min=0.0).sum()
    loss.backward()
    assert not math.isfinite(
        optim.step([torch.optim.SGD([weight], lr=1.0)], [weight], 1.0, 9.0, loss.detach())
    )
    assert weight.tolist() == [1.0, 1.0]


def test_skipped_rl_update_is_reported_with_its_rows_and_the_run_continues(
    rl, tmp_path, monkeypatch, capsys
):
    poisoned(monkeypatch, learner, math.nan, {2})
    rl()
    lines = re.findall(r"^out: step \d.*not finite.*$", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 1 and re.fullmatch(
        r"out: step 0: the loss or its gradient is not finite, no update \(1 in a row\); rows: problem (\d) sample (\d)",
        lines[0],
    )
    first, second = (
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    )
    assert (
        first["updates_skipped"] == 1
        and math.isfinite(first["grad_norm"])
        and "updates_skipped" not in second
    )


def test_third_skipped_update_in_a_row_ends_the_run_without_saving(
    rl, sft, tmp_path, monkeypatch, capsys
):
    poisoned(monkeypatch, learner, math.inf, {1, 3, 4, 5})
    with pytest.raises(
        ValueError,
        match=r"out: step 2: .* no update \(3 in a row\); rows: problem .* lower --learning-rate",
    ):
        rl(steps=9)
    poisoned(monkeypatch, train_sft, math.nan, {1, 3, 4, 5})
    with pytest.raises(
        ValueError,
        match=r"sft: step 4: .* no update \(3 in a row\); rows: '\d\+\d\?.*<answer>2</answer>'\. ",
    ):
        sft("sft", epochs=9)
    assert capsys.readouterr().out.count("no update (1 in a row)") == 4
    assert (
        not (tmp_path / "out/model.safetensors").exists()
        and not (tmp_path / "sft/model.safetensors").exists()
    )


def test_sft_without_any_update_saves_no_model(sft, tmp_path, monkeypatch):
    poisoned(monkeypatch, train_sft, math.nan, {1, 2})
    with pytest.raises(ValueError, match="out: no update was made"):
        sft(epochs=1, batch_tokens=80)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_non_finite_weights_are_not_saved(tmp_path, model, tokens):
    lost = copy.deepcopy(model)
    with torch.no_grad():
        lost.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(
        ValueError,
        match="model.safetensors: model.layers.1.mlp.down_proj.weight contains NaN or infinity",
    ):
        checkpoint.save(tmp_path, lost, tokens)
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ValueError, match=f"{tmp_path}/checkpoints/step-00000001/model.safetensors: model.layers.1"
    ):
        run = run_state.Run(str(tmp_path), {"keep": 1}, ())
        run.model, run.tokenizer, run.optimizers, run.others = lost, tokens, [], {}
        run.step, run.started, run.values = 1, 0.0, {}
        run.write_state(run.state_files())
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_sampler_refuses_nan_probabilities(model, tokens, temperature):
    lost = copy.deepcopy(model)
    with torch.no_grad():
        lost.model.norm.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="probabilities are NaN: completion 1 of prompt 'one"):
        sample(lost, tokens, ["one\n"], 2, SamplingParams(3, temperature), seed=0)


# -- nothing to learn ----------------------------------------------------------------------------------------------------


def test_step_with_equal_rewards_changes_neither_weights_nor_moments(
    rl, tmp_path, folder, monkeypatch, capsys
):
    for name in runner.ALWAYS_LOGGED:
        monkeypatch.setitem(
            rewards.REWARDS, name, lambda prompts, completions, **columns: [1.0] * len(completions)
        )
    rl(weight_decay=0.1, optimizer="adamw")
    out = capsys.readouterr().out
    assert (
        "out: step 0 makes no update: the rewards within every group are equal" in out
        and " no update " in out
    )
    assert weights_of(tmp_path / "out") == weights_of(folder)
    assert not any(
        "grad_norm" in row or "loss" in row for row in jsonl(tmp_path / "out/metrics.jsonl")
    )


def test_step_with_only_truncated_completions_makes_no_update_when_masked(
    rl, tmp_path, folder, capsys
):
    rl(max_new_tokens=1, overlong="mask", steps=3)
    out = capsys.readouterr().out
    assert "only truncated completions differ in reward, and they are masked" in out
    assert "of completions were truncated at 1 tokens" in out and "raise --max-new-tokens" in out
    assert weights_of(tmp_path / "out") == weights_of(folder)


def test_empty_completions_are_scored_trained_on_and_reported(rl, tmp_path, tokens, capsys):
    silent = random_model(vocab_size=tokens.vocab_size, tie_word_embeddings=False)
    with torch.no_grad():  # every hidden state points in the end token's direction
        silent.model.embed_tokens.weight[:, 0] = 50.0
        silent.lm_head.weight[:, 0] = 0.0
        silent.lm_head.weight[tokens.eos_id, 0] = 50.0
    checkpoint.save(tmp_path / "silent", silent, tokens)
    rl(model=str(tmp_path / "silent"), steps=3)
    assert {row["completion"] for row in jsonl(tmp_path / "out/rollouts.jsonl")} == {""}
    assert {row["completions/max_length"] for row in jsonl(tmp_path / "out/metrics.jsonl")} == {1}
    assert "100% of completions ended without one <answer>" in capsys.readouterr().out


# -- sampler and learner -------------------------------------------------------------------------------------------------


def test_sampler_that_disagrees_with_the_learner_ends_the_run(rl, tmp_path, monkeypatch):
    def off(*args, on_finished, **kwargs):
        groups = [
            [replace(r, logprobs=tuple(x - 0.05 for x in r.logprobs)) for r in group]
            for group in sample(*args, **kwargs)
        ]
        for n, group in enumerate(groups):
            on_finished(n, group)
        return groups

    monkeypatch.setattr(rl_rollouts, "sample", off)
    with pytest.raises(
        ValueError,
        match=r"step 0: sampler and learner differ by up to 0.05 nats per token .*, 0.05 on average",
    ):
        rl()
    assert not (tmp_path / "out/model.safetensors").exists()
    assert len(jsonl(tmp_path / "out/metrics.jsonl")) == 1  # the logged step can be inspected


# -- memory --------------------------------------------------------------------------------------------------------------


def short(monkeypatch, where, limit=0, calls=()):
    """A pass of more than `limit` tokens, or one of these calls, runs out of memory."""
    real, seen = where.token_logprobs, []

    def pass_(model, batch, *rest):
        seen.append(len(batch.token_of_flat_M))
        if (limit and seen[-1] > limit) or len(seen) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(model, batch, *rest)

    monkeypatch.setattr(where, "token_logprobs", pass_)
    return seen


@pytest.mark.parametrize("call", [1, 2])
def test_running_out_of_memory_once_gives_the_same_gradient(
    model, rollouts, monkeypatch, capsys, call
):
    def moved(**changes):
        cfg, policy = (
            train_grpo.Config(learner_tokens=60, max_grad_norm=1e9, **changes),
            copy.deepcopy(model).requires_grad_(True),
        )
        sgd = torch.optim.SGD(policy.parameters(), lr=1.0)
        figures = learner.update_minibatch(
            cfg, policy, None, [sgd], samples_of(cfg, policy, rollouts), 1.0
        )
        return torch.cat(
            [(q - p).flatten() for p, q in zip(model.parameters(), policy.parameters())]
        ).detach(), figures

    whole, figures = moved()
    seen = short(
        monkeypatch, learner, calls={call}
    )  # call 2 fails after call 1 has added its gradient
    got, again = moved()
    torch.testing.assert_close(got, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)
    assert again == pytest.approx(figures, rel=1e-4, abs=1e-5) and max(seen[call:]) <= 30 < max(
        seen
    )
    assert (
        "out of memory with micro-batches of 60 tokens: retrying with half the size"
        in capsys.readouterr().out
    )


def test_running_out_of_memory_twice_ends_the_run_naming_sizes_and_flags(rl, sft, monkeypatch):
    seen = short(monkeypatch, learner, limit=1)
    with pytest.raises(
        ValueError,
        match="not enough memory for micro-batches of 4096 or 2048 tokens; lower --sampler-rows, "
        "--learner-tokens.*gradient-checkpointing.*Tried to allocate",
    ):
        rl()
    assert len(seen) == 2
    short(monkeypatch, train_sft, limit=1)
    with pytest.raises(
        ValueError,
        match="not enough memory for micro-batches of 64 or 32 tokens; lower --batch-tokens",
    ):
        sft("sft")


def test_run_that_ran_out_of_memory_resumes_with_other_flags(sft, tmp_path, monkeypatch, capsys):
    whole = sft("whole")
    with monkeypatch.context() as patch:
        short(patch, train_sft, calls={3, 4})  # the third step, and its retry
        with pytest.raises(ValueError, match="not enough memory"):
            sft()
    assert sft(gradient_checkpointing=True, allow_changes=True)["steps"] == whole["steps"] > 2
    assert "out: resuming from step 2" in capsys.readouterr().out
    one, other = (checkpoint.load(tmp_path / name)[0].state_dict() for name in ("whole", "out"))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_steps_before_an_error_are_saved(rl, tmp_path, monkeypatch):
    """For example an error in a reward: the steps before it are complete."""
    rl("whole", steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(
            rl_rollouts,
            "problems_of_step",
            lambda cfg, data, step, *rest, real=rl_rollouts.problems_of_step: (
                real(cfg, data, step, *rest) if step < 2 else 1 / 0
            ),
        )
        with pytest.raises(ZeroDivisionError):
            rl(steps=3)
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000002"]
    rl(steps=3)
    one, other = (checkpoint.load(tmp_path / name)[0].state_dict() for name in ("whole", "out"))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_micro_batches_are_not_halved_if_that_changes_the_gradient(rl, monkeypatch):
    seen = short(monkeypatch, learner, limit=1)
    with pytest.raises(
        ValueError, match="not enough memory for micro-batches of 4096 tokens; lower"
    ):
        rl(loss_per="microbatch")
    assert len(seen) == 1


def test_running_out_of_memory_once_gives_the_same_sft_model(sft, tmp_path, monkeypatch):
    sft("whole", epochs=1)
    short(monkeypatch, train_sft, calls={1, 3})
    sft("halved", epochs=1)
    one, other = (checkpoint.load(tmp_path / name)[0].state_dict() for name in ("whole", "halved"))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_memory_is_freed_before_the_retry(monkeypatch):
    import gc
    import weakref

    alive = []

    class Held:
        pass

    def passes(size):
        assert not any(ref() for ref in alive), "the first try's tensors are still held"
        held = Held()
        alive.append(weakref.ref(held))
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    gc.disable()
    try:
        assert memory.retry_with_half(passes, 8, torch.nn.Linear(1, 1), train_grpo.Config()) == 4
    finally:
        gc.enable()


# -- data ----------------------------------------------------------------------------------------------------------------

GOOD = '{"prompt": "1+1?", "answer": "2", "completion": "2"}'


@pytest.mark.parametrize(
    "row, complaint",
    [
        ('{"prompt": "1+2?", "answer": NaN, "completion": "3"}', "NaN"),
        ('{"prompt": "1+2?", "answer": 1e999, "completion": "3"}', "1e999 is not a finite number"),
        (
            '{"prompt": "1+2?", "answer": %s, "completion": "3"}' % ("9" * 5000),
            "not valid JSON .*4300 digits",
        ),
        ('{"prompt": "1+2?", "answer": %s}' % ("[" * 99_999), "not valid JSON"),
        (
            '{"prompt": "1+2?", "answer": "3", "answer": "4", "completion": "3"}',
            "duplicate key 'answer'",
        ),
        (
            '{"prompt": "1+2? \\ud800", "answer": "3", "completion": "3"}',
            "column 'prompt': not valid Unicode",
        ),
        ('{"prompt": "1+2?", "answer": "3 \\udc00", "completion": "\\udc00"}', "not valid Unicode"),
        (
            '{"prompt": "1+2?\0", "answer": "3", "completion": "3"}',
            "not valid JSON .*control character",
        ),
        ('{"prompt": "1+2?", "answer": "\\\\boxed{}", "completion": ""}', ""),
        ('{"prompt": "1+2?", "answer": "3", "completi', "not valid JSON"),
        ('\ufeff{"prompt": "1+2?", "answer": "3", "completion": "3"}', "not valid JSON"),
        ('["1+2?", "3"]', "a row must be an object with columns"),
    ],
    ids=lambda value: value[:40],
)
def test_bad_rows_are_refused_at_load_with_their_line(tmp_path, row, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{row}\n", encoding="utf-8")
    for load in (lambda: read_problems(str(path)), lambda: sft_rows(path)):
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}:2: .*{complaint}") as error:
            load()
        assert len(str(error.value)) < 400


def test_lone_surrogate_in_a_code_problem_is_refused_at_load(tmp_path):
    path = tmp_path / "humaneval.jsonl"
    path.write_text(
        json.dumps(
            {
                "prompt": "\ud800",
                "entry_point": "double",
                "canonical_solution": "x",
                "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(1) == 2\n",
            }
        )
    )
    with pytest.raises(
        ValueError, match=f"{re.escape(str(path))}:1: column 'prompt': not valid Unicode"
    ):
        read_problems(str(path))


def test_unicode_separators_do_not_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = (
        '{"prompt": "a\u2028b\u0085c\x7f", "answer": "2"}',
        '{"prompt": "\\u0000", "answer": "3"}',
    )
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(rows).encode())
    assert [p.prompt for p in read_problems(str(path))] == ["a\u2028b\u0085c\x7f", "\0"]


def test_very_long_prompt_is_refused_with_its_line(rl, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{GOOD}\n{{"prompt": "{"long " * 60_000}", "answer": "2"}}\n')
    with pytest.raises(
        ValueError,
        match=re.escape(f"{path}:2: ")
        + r"a prompt of \d+ tokens does not fit the model's context of 128",
    ):
        rl(data=str(path), reward="accuracy", tasks=train_grpo.Config().tasks)


# -- rewards -------------------------------------------------------------------------------------------------------------

GROUP = [Rollout((1,), (2,), (-1.0,), text, True) for text in ("a", "b", "slow", "c")]
HANGS = {
    "a loop": "while text == 'slow': pass",
    "a sleep": "time.sleep(60 * (text == 'slow'))",
    "a regular expression": "re.fullmatch('(a*)*b', 'a' * 40 * (text == 'slow'))",
    "a loop that catches all": "\n        if text == 'slow':\n            try:\n                time.sleep(60)\n"
    "            except BaseException:\n                time.sleep(60)",
}


@pytest.mark.parametrize("hang", HANGS)
def test_hanging_reward_ends_the_run_naming_the_row(tmp_path, monkeypatch, hang):
    path = tmp_path / "mine.py"
    path.write_text(
        "import re, time\n\ndef mine(completions, **columns):\n    for text in completions:\n"
        f"        {HANGS[hang]}\n    return [0.0] * len(completions)\n"
    )
    monkeypatch.setattr("r1mini.rewards.runner.TIME_LIMIT", 0.4)
    functions = runner.load_rewards(f"{path}:mine").functions
    begun = time.perf_counter()
    with pytest.raises(
        ValueError,
        match="reward mine: takes longer than 0.4 s; row 3 of 4: task 'x', prompt 'p', completion 'slow'",
    ):
        runner.score_async(Problem("x", "", "", "p"), GROUP, {"mine": functions["mine"]}).result()
    assert time.perf_counter() - begun < 5


def test_hanging_reward_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("while True:\n    pass\n")
    monkeypatch.setattr("r1mini.rewards.runner.TIME_LIMIT", 0.2)
    with pytest.raises(ValueError, match="cannot load .*mine.py: takes longer than 0.2 s$"):
        runner.load_rewards(f"{tmp_path}/mine.py:mine")


def test_reward_may_set_its_own_alarm(monkeypatch):
    import signal

    def verified(completions, **columns):  # as Math-Verify does
        before = signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(0.2)
        except ZeroDivisionError:
            return [0.5] * len(completions)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    before = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    assert (
        runner.score_async(Problem("x", "", "", "p"), GROUP, {"mine": verified}).result()
        == [{"mine": 0.5}] * 4
    )
    left = signal.setitimer(signal.ITIMER_REAL, 0.0)[0]
    assert signal.getsignal(signal.SIGALRM) == before and left > 900


# -- the machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("log", LOGS)
def test_full_disk_is_a_one_line_error_naming_the_file(rl, tmp_path, log):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / log).symlink_to("/dev/full")
    with pytest.raises(ValueError, match=f"{log}: cannot be written .No space left on device"):
        rl()


def test_clock_going_backwards_changes_nothing(rl, tmp_path, monkeypatch):
    rl("one")
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(now))
    rl("other")
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "other")
    assert all(
        row["step_time"] >= 0 and row["seconds"] >= 0
        for row in jsonl(tmp_path / "other/metrics.jsonl")
    )


@pytest.mark.parametrize("token", ["bos_token", "eos_token"])
def test_lone_surrogate_in_a_model_folder_is_refused_naming_the_file(tmp_path, folder, token):
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "tokenizer_config.json").write_text(
        f'{{"{token}": "\\ud800", "chat_template": "{{{{ bos_token }}}}x"}}'
    )
    with pytest.raises(
        ValueError, match="tokenizer_config.json: not valid JSON .*surrogates not allowed"
    ):
        checkpoint.load(copied)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda lines: [lines[0], "\0\0\0\0", lines[1]], "metrics.jsonl:2: not valid JSON"),
        (
            lambda lines: [
                re.sub(r'"num_tokens": [\d.]+', '"num_tokens": NaN', lines[0]),
                lines[1],
            ],
            ":1: num_tokens nan is not a finite",
        ),
        (
            lambda lines: [re.sub(r'"entropy": [\d.]+', '"x": 1', lines[0]), lines[1]],
            ":1: entropy None is not a finite",
        ),
    ],
)
def test_damaged_log_is_refused_naming_the_line(tmp_path, damage, complaint):
    row = {name: 1.0 for name in NEEDED}
    (tmp_path / "metrics.jsonl").write_text("\n".join(damage([json.dumps(row)] * 2)) + "\n")
    with pytest.raises(ValueError, match=complaint):
        read_metrics(tmp_path / "metrics.jsonl", *NEEDED)


def test_truncated_last_line_of_a_log_is_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2, "rew')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0}, {"step": 1}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0}, {"step": 1}]


def test_killed_stage_process_ends_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text(
        "import os\nConfig = dict\ndef main(cfg):\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stage = scheduler.Stage("dev1", "dying", {}, tmp_path / "never")
    with pytest.raises(
        ValueError,
        match="dev1: worker died .killed, perhaps out of memory.; rerun the same command to resume",
    ):
        scheduler.schedule([stage], 1)
