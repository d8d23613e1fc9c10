"""Shared fixtures: one tiny random model, its tokenizer, and a way to call a script as a user does."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads

import json
import runpy
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest
import torch
from hypothesis import settings

import train_grpo
from r1mini import checkpoint, rewards, sandbox
from r1mini.checkpoint import tokenizer
from r1mini.infra import signals
from r1mini.model.config import ModelConfig
from r1mini.model.init import init_weights
from r1mini.model.transformer import Transformer
from r1mini.rewards.runner import ALWAYS_LOGGED, score_async
from r1mini.rewards.trl_adapter import to_rows
from r1mini.tasks.corpus import document

torch.set_num_threads(1)
for number in (
    signal.SIGINT,
    signal.SIGTERM,
):  # ignored in a background job (`&` in a script), and then in every process that a test starts
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
settings.register_profile("r1mini", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("r1mini")


def no_sandbox():
    """Why programs cannot be run on this machine; "" if they can."""
    try:
        sandbox.require()
    except sandbox.SandboxError as error:
        return str(error)
    return ""


NO_SANDBOX = no_sandbox()
sandbox.close()


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """On a machine without a sandbox, a test that fails because of it is skipped."""
    try:
        return (yield)
    except BaseException as error:
        if NO_SANDBOX and NO_SANDBOX[:20] in str(error):
            pytest.skip(NO_SANDBOX)
        raise


@pytest.fixture(autouse=True)
def this_process_does_not_end(monkeypatch):
    """A script's entry point was called in this process, which must keep its signal handlers."""
    monkeypatch.setattr(signals, "ignore", lambda: None)


CONFIGS = {
    "llama": {},
    "one head of keys": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 4},
    "qwen2": {"attention_bias": True, "tie_word_embeddings": False},
    "qwen3": {
        "qk_norm": True,
        "head_dim": 16,
    },  # heads wider than hidden_size / heads, as in Qwen3-0.6B
}


def shape(**changes):
    """A model small enough for a test, with two query heads per key head."""
    return ModelConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "head_dim": 8,
            "max_position_embeddings": 128,
            # Larger than a real model's: attention and tokens must differ visibly without training.
            "initializer_range": 0.2,
            **changes,
        }
    )


def some_tokens(rows, length, vocab=320):
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(0))


def random_model(**changes):
    model = Transformer(shape(**changes))
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # norms of 1 and biases of 0 would hide whether they are used
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def tokens():
    rows = (document(0, index) for index in range(300))
    return tokenizer.train((row["prompt"] + row["completion"] for row in rows), 400)


@pytest.fixture(scope="session")
def model(tokens):
    """Read-only; tests that train load `folder` instead."""
    return random_model(vocab_size=tokens.vocab_size).requires_grad_(False)


@pytest.fixture(scope="session")
def folder(model, tokens, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    checkpoint.save(path, model, tokens)
    return str(path)


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script with a command line in this process: (exit code, stdout, stderr)."""

    def call(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        monkeypatch.setenv("COLUMNS", "1000")  # so that help has no line breaks
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as exit:
            code = exit.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def jsonl(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def score(problem, rollouts, names=ALWAYS_LOGGED):
    """The named built-in rewards of each completion."""
    functions = {name: rewards.REWARDS[name] for name in names}
    return score_async(problem, rollouts, functions).result()


def replace_rewards(monkeypatch, scores):
    """Replaces the rewards of every run by `scores(problem, text)`, which returns a completion's rewards by name."""

    def reward(name):
        return lambda prompts, completions, **columns: [
            scores(problem, completion.text)[name]
            for problem, completion in to_rows(prompts, completions, columns)
        ]

    monkeypatch.setattr(
        rewards, "REWARDS", rewards.REWARDS | {name: reward(name) for name in ALWAYS_LOGGED}
    )


def reward_by_text(problem, text):
    """Rewards that a random model earns half of the time; with none at all, nothing would be learned."""
    return {
        "accuracy": float(sum(map(ord, text)) % 2),
        "format": float(len(text) % 2),
        "language": None,
    }


@pytest.fixture
def tiny_grpo(tmp_path, folder, monkeypatch):
    """Calls train_grpo.py for two steps, with rewards that depend on the text."""
    replace_rewards(monkeypatch, reward_by_text)

    def call(name="out", **changes):
        return train_grpo.main(
            train_grpo.Config(
                **{
                    "out": str(tmp_path / name),
                    "model": folder,
                    "tasks": ("countdown", "elements"),
                    "steps": 2,
                    "problems": 3,
                    "completions": 4,
                    "max_new_tokens": 6,
                    "learning_rate": 1e-2,
                    "device": "cpu",
                    "show": 0,
                    "reward": "accuracy,format:0.1",
                    **changes,
                }
            )
        )

    return call


@contextmanager
def interrupt(where, name, number):
    """Call `number` (from 1) of the function raises KeyboardInterrupt, like Ctrl-C, which ends the
    block."""
    real, calls = getattr(where, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, wrapped)
        yield
