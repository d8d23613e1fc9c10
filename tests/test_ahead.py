"""A step ahead: whose weights a step is sampled from, to the bit, whatever happens in between."""

import threading
import time

import pytest
import torch
from conftest import interrupt_at_call, jsonl

import train_grpo
from r1mini import distributed, rewards, state
from r1mini.ahead import Ahead

LETTERS = """import signal
def letters(completions, **columns):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # in the main thread alone
    seen.append(0)
    if len(seen) >= {faulty}:
        raise KeyError("no letters here")
    return [float(sum(map(ord, text)) % 2) for text in completions]
seen = []
"""
TIMES = {"seconds", "step_time", "time/sample", "time/update"}


@pytest.fixture
def run(tmp_path, folder):
    (tmp_path / "letters.py").write_text(LETTERS.format(faulty=1000))

    def call(name, **changes):
        return train_grpo.main(train_grpo.Config(**{
            "out": str(tmp_path / name), "model": folder, "tasks": ("countdown", "elements"), "steps": 5, "problems": 3,
            "completions": 4, "max_new_tokens": 6, "learning_rate": 1e-2, "device": "cpu", "show": 0, "save_every": 3,
            "minibatches": 2, "reward": f"{tmp_path}/letters.py:letters", "ahead": True, "correction": "token-truncate",
            "progress": False, **changes}))

    return call


def around(monkeypatch, name, before):
    """`before(arguments)` is called at every call of train_grpo's function."""
    real = getattr(train_grpo, name)
    monkeypatch.setattr(train_grpo, name, lambda *args, **kwargs: (before(*args, **kwargs), real(*args, **kwargs))[1])


def numbers(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same(one, other):
    """The same run, to the bit."""
    for name in ("rollouts.jsonl", "model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    one, other = ([{k: v for k, v in row.items() if k not in TIMES} for row in jsonl(run / "metrics.jsonl")] for run in (one, other))
    assert one == other


def test_a_step_is_sampled_from_the_weights_that_the_updates_before_it_start_from(run, monkeypatch):
    sampled, started = {}, {}
    around(monkeypatch, "sample", lambda model, *_, step, **__: sampled.update({step: numbers(model)}))
    around(monkeypatch, "learn", lambda cfg, policy, *_: started.update({len(started): numbers(policy)}))
    run("out")
    assert len(sampled) == len(started) == 5
    for step in range(5):
        assert torch.equal(sampled[step], started[max(0, step - 1)])
    assert not torch.equal(started[1], started[2])


def test_sampling_and_updates_overlap_and_either_may_be_the_slower(run, tmp_path, monkeypatch):
    run("out")
    for slow in ("sample", "update"):
        sampling, updating = threading.Event(), threading.Event()

        def meet(*args, name, mine, other, **kwargs):
            if kwargs.get("step") == 0:
                return
            mine.set()
            assert other.wait(60)
            if name == slow:
                time.sleep(0.02)

        with monkeypatch.context() as patch:
            around(patch, "sample", lambda *a, step, **k: meet(step=step, name="sample", mine=sampling, other=updating))
            around(patch, "update", lambda *a, **k: meet(name="update", mine=updating, other=sampling))
            run(slow)
        same(tmp_path / "out", tmp_path / slow)


@pytest.mark.parametrize("changes", [{}, {"resample": 2, "sample_budget": 90, "beta": 0.1, "reference_every": 2,
                                          "overlong_cache": 2, "optimizer": "adamw", "top_entropy": 0.5}], ids=["plain", "refilled"])
@pytest.mark.parametrize("where, call", [("sample", -1), ("update", 8), ("write_rollouts", 4)])
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(run, tmp_path, monkeypatch, changes, where, call):
    calls = []
    with monkeypatch.context() as patch:
        around(patch, "sample", lambda *a, **k: calls.append(0))
        run("whole", **changes)
    with monkeypatch.context() as patch:
        interrupt_at_call(patch, train_grpo, where, call if call > 0 else len(calls))  # at the last step's sampling
        with pytest.raises(KeyboardInterrupt):
            run("cut", **changes)
    assert state.newest(tmp_path / "cut").name == "step-00000003" and not learners()
    run("cut", **changes)
    same(tmp_path / "whole", tmp_path / "cut")
    assert sum(row["grad_norm"] for row in jsonl(tmp_path / "cut/metrics.jsonl"))


def test_no_step_is_sampled_that_nobody_learns_from(run, tmp_path, monkeypatch):
    steps = []
    around(monkeypatch, "sample", lambda *_, step, **__: steps.append(step))
    monkeypatch.setattr(rewards, "REWARDS", rewards.REWARDS | {"accuracy": lambda completions, **_: [0.0] * len(completions)})
    run("out", steps=9, resample=1, sample_budget=40, reward="accuracy")  # all flat: 24 completions, then the 16 that are left
    assert [row["groups_drawn"] for row in jsonl(tmp_path / "out/metrics.jsonl")] == [6, 4]
    assert steps == [0, 2**24, 1, 2**24 + 1]


def learners():
    return [thread for thread in threading.enumerate() if thread.name.startswith("learner")]


def test_error_of_a_reward_ends_the_run_after_the_update_at_work(run, tmp_path, monkeypatch):
    (tmp_path / "letters.py").write_text(LETTERS.format(faulty=4))  # the first problem of the second step
    updating, done = threading.Event(), []
    around(monkeypatch, "sample", lambda *_, step, **__: step and updating.wait(60))
    around(monkeypatch, "update", lambda *_: (updating.set(), done.append(0), time.sleep(0.1)))
    with pytest.raises(ValueError, match="reward letters: KeyError: 'no letters here'; row 1 of 4: task"):
        run("out", minibatches=12)
    assert not learners() and len(done) < 6


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt("twice")], ids=["memory", "interrupt"])
def test_error_of_the_learner_ends_the_run(run, monkeypatch, error):
    def fail(*_):
        raise error

    around(monkeypatch, "update", fail)
    with pytest.raises(type(error), match=str(error)):
        run("out")
    assert not learners()


def test_the_learner_has_as_many_threads_as_the_sampler_and_its_own_modes(run, monkeypatch):
    seen, chosen, choose = [], [], torch.set_num_threads
    in_main = lambda: threading.current_thread() is threading.main_thread()
    around(monkeypatch, "update", lambda *_: seen.append((in_main(), torch.is_inference_mode_enabled(), torch.get_num_threads())))
    # To ask for the number in a thread sets it, so what products before that would have had is not seen by asking.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (chosen.append((in_main(), count)), choose(count)))
    try:
        run("out", threads=2, steps=2, minibatches=1)
    finally:
        choose(1)
    assert chosen == [(True, 2), (False, 2)]
    assert seen == [(False, False, 2), (True, False, 2)]  # beside the last step nothing is sampled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_bits_of_taking_turns(run, tmp_path, monkeypatch):
    run("beside", device="cuda")

    def turns(self, updates, step, spent):
        self.renew()
        done = list(updates)
        if step is not None:
            self.sample(step, spent)
        return done, 0.0

    monkeypatch.setattr(Ahead, "beside", turns)
    run("turns", device="cuda")
    same(tmp_path / "beside", tmp_path / "turns")


def test_what_is_stale_is_logged_and_is_no_alarm(run, tmp_path, capsys):
    run("out", learning_rate=3e-2)
    first, *others = jsonl(tmp_path / "out/metrics.jsonl")
    ratio, mean, largest = ("sampling/importance_sampling_ratio/mean", "sampling/sampling_logp_difference/mean",
                            "sampling/sampling_logp_difference/max")
    assert first[ratio] == pytest.approx(1, abs=1e-5) and first[mean] < first[largest] < 1e-4
    assert max(row[largest] for row in others) > 0.01 and all(1e-4 < row[mean] < row[largest] for row in others)
    assert all(0.5 < row[ratio] < 1.5 for row in others)
    assert "sampler and learner differ" not in capsys.readouterr().out


@pytest.mark.parametrize("changes, says", [
    ({"correction": "none"}, "--ahead --correction none: .* add --correction token-truncate"),
    ({"steps": 1}, "--ahead True: would have no effect .--steps 1"),
])
def test_what_does_not_go_with_it_is_refused(run, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        run("out", **changes)
    assert not (tmp_path / "out").exists()


def test_several_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    with pytest.raises(ValueError, match="--ahead: not on 2 ranks"):
        train_grpo.check(train_grpo.Config(ahead=True, correction="token-truncate"))
