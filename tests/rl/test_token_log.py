"""tokens.jsonl, the log of --log-tokens."""

import json
import math

import pytest
import torch
from conftest import interrupt, jsonl

from r1mini import checkpoint
from r1mini.infra.device import autocast
from r1mini.rl import metrics, token_log
from r1mini.rl.config import GRPOConfig
from r1mini.rl.token_log import token_pieces
from r1mini.training.logprobs import collate, token_logprobs_and_entropy


def prompts_of(folder, tokenizer, rows):
    """The prompt's ids of each line of a token log."""
    lines = jsonl(folder / "rollouts.jsonl")
    prompts = {(line["step"], line["problem"]): line["prompt"] for line in lines}
    return [tuple(tokenizer.encode(prompts[row["step"], row["problem"]])) for row in rows]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7, "learner_tokens": 40, "minibatches": 3},
        {"bf16": True, "baseline": "none"},
        {"lora_rank": 3, "lora_learning_rate": 1e-2, "learning_rate": 4e-4},
        {"log_tokens": 9, "correction": "token-truncate"},
    ],
    ids=str,
)
def test_numbers_are_those_of_the_policy_before_and_after_the_update(
    tiny_grpo, folder, tmp_path, changes
):
    tiny_grpo(steps=1, **changes)
    rows = jsonl(tmp_path / "out/tokens.jsonl")
    assert len(rows) == 4 * min(3, changes.get("log_tokens", 1))
    before, tokenizer = checkpoint.load(folder)
    after, _ = checkpoint.load(tmp_path / "out")
    prompts = prompts_of(tmp_path / "out", tokenizer, rows)
    temperature = changes.get("temperature", 1.0)
    close = 0.1 if changes.get("bf16") else 2e-4
    moved = 0.0
    for prompt, row in zip(prompts, rows):
        batch = collate([(prompt, row["ids"])])
        for policy, name in ((before, "logprobs"), (after, "new_logprobs")):
            with torch.no_grad(), autocast(policy.device, "bf16" in changes):
                values = token_logprobs_and_entropy(policy, batch, temperature)
            logp, entropy = (x[batch.target_BT].tolist() for x in values)
            assert row[name] == pytest.approx(logp, abs=close)
        assert row["entropies"] == pytest.approx(entropy, abs=close)
        moved = max(moved, *(abs(x - y) for x, y in zip(row["logprobs"], row["new_logprobs"])))
    assert moved > 0.01


def test_log_is_bounded_and_its_pieces_are_the_completions(tiny_grpo, tmp_path, monkeypatch):
    tiny_grpo("whole", log_tokens=2)
    texts = {
        (line["step"], line["problem"], line["sample"]): line["completion"]
        for line in jsonl(tmp_path / "whole/rollouts.jsonl")
    }
    rows = jsonl(tmp_path / "whole/tokens.jsonl")
    assert len(rows) == 2 * 2 * 4  # steps, groups, completions
    for row in rows:
        assert texts[row["step"], row["problem"], row["sample"]] == "".join(row["pieces"])
        lists = {name: len(x) for name, x in row.items() if isinstance(x, list)}
        assert len(lists) == 5 and set(lists.values()) == {len(row["ids"])}
    monkeypatch.setattr(token_log, "LOGGED_TOKENS", 3)
    tiny_grpo("cut", log_tokens=2)
    for row, first in zip(rows, jsonl(tmp_path / "cut/tokens.jsonl"), strict=True):
        assert first["ids"] == row["ids"][:3]
        assert first["new_logprobs"] == pytest.approx(row["new_logprobs"][:3], abs=2e-4)


def test_resumed_run_writes_the_same_bytes(tiny_grpo, tmp_path):
    changes = {"steps": 4, "save_every": 2, "log_tokens": 2}
    tiny_grpo("whole", **changes)
    with interrupt(metrics.StepLog, "print_step", 4):  # when its logs have been written
        tiny_grpo("cut", **changes)
    tiny_grpo("cut", **changes)
    whole, cut = ((tmp_path / x / "tokens.jsonl").read_bytes() for x in ("whole", "cut"))
    assert whole == cut and whole.count(b"\n") == 4 * 2 * 4


def test_logging_changes_nothing_else_and_may_be_switched(tiny_grpo, tmp_path):
    tiny_grpo("none", steps=4, save_every=2, log_tokens=0)
    with interrupt(metrics, "rollout_rows", 4):
        tiny_grpo("switched", steps=4, save_every=2, log_tokens=2)
    record = json.loads((tmp_path / "switched/run.json").read_text())
    del record["config"]["log_tokens"]  # as in a run of an earlier version
    (tmp_path / "switched/run.json").write_text(json.dumps(record))
    tiny_grpo("switched", steps=4, save_every=2, log_tokens=0)
    for name in ("rollouts.jsonl", "model.safetensors"):
        none, switched = ((tmp_path / x / name).read_bytes() for x in ("none", "switched"))
        assert none == switched
    assert (tmp_path / "none/tokens.jsonl").read_bytes() == b""
    assert {row["step"] for row in jsonl(tmp_path / "switched/tokens.jsonl")} == {0, 1}


def test_a_character_belongs_to_the_token_that_completes_it(tokens):
    text = "5+8 你好 😀"
    ids = [*tokens.encode(text), tokens.eos_id]
    pieces = token_pieces(tokens, ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)
    assert pieces[-1] == "" and "" in pieces[:-1]
    assert token_pieces(tokens, tokens.encode("😀")[:-1])[-1] == "\ufffd"


def test_numbers_that_json_has_not_are_null():
    assert token_log.rounded([math.nan, -math.inf, -0.00001]) == [None, None, 0.0]


def test_help_names_the_bound(script):
    code, printed, _ = script("train_grpo.py", "--help")
    assert code == 0 and f"at most {token_log.LOGGED_TOKENS} of each completion" in printed


def test_prompts_of_a_data_file_may_begin_the_completion(tiny_grpo, tmp_path):
    """The log has the sampled tokens alone; the `<think>` of the prompt stands before them."""
    rows = [{"prompt": f"What is {n}+1?\n<think>", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_grpo(data=str(tmp_path / "rows.jsonl"), tasks=GRPOConfig.tasks)
    completions = [
        line["completion"]
        for line in jsonl(tmp_path / "out/rollouts.jsonl")
        if (line["step"], line["problem"]) in ((0, 0), (1, 1))
    ]
    logged = ["".join(row["pieces"]) for row in jsonl(tmp_path / "out/tokens.jsonl")]
    assert completions == [f"<think>{text}" for text in logged]
