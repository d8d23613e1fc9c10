import copy
import datetime
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import interrupt, jsonl

import train_sft
from r1mini import checkpoint, config
from r1mini.checkpoint import chat_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT
from r1mini.data.sft import encode_rows, sft_rows
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.training import optim, setup
from r1mini.training import run_state as state
from r1mini.training.logprobs import collate, token_logprobs

ROW = {
    "prompt": "Make 17 from 3, 5, 9.\n",
    "completion": "<think>3+5=8 ?17 no\n</think><answer>(3+5)+9</answer>",
}


@pytest.fixture
def run(tmp_path, folder):
    """Shorthand for training: `run("name", epochs=3)`."""
    rows = tmp_path / "row.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")

    def call(name, **changes):
        return train_sft.main(
            train_sft.Config(
                **{
                    "out": str(tmp_path / name),
                    "model": folder,
                    "data": str(rows),
                    "device": "cpu",
                    "rows": 24,
                    "epochs": 1,
                    "batch_tokens": 256,
                    "learning_rate": 1e-3,
                    **changes,
                }
            )
        )

    return call


def test_end_token_of_a_completion_is_a_target(tokens):
    [(prompt, completion)] = encode_rows(
        [ROW], tokens, chat_template.plain_template(END_OF_TEXT), 1024
    )
    assert completion == [*tokens.encode(ROW["completion"]), tokens.eos_id]
    batch = collate([(prompt, completion)])
    assert batch.tokens_BT[batch.target_BT].tolist() == completion


def test_pretraining_also_trains_on_the_prompt(tokens):
    [row] = encode_rows([ROW], tokens, chat_template.plain_template(END_OF_TEXT), 1024, True)
    everything = tokens.encode(ROW["prompt"]) + tokens.encode(ROW["completion"]) + [tokens.eos_id]
    batch = collate([row])
    assert (
        batch.tokens_BT[batch.target_BT].tolist() == everything[1:]
    )  # the first token has no context to be predicted from


def test_model_learns_a_row_and_its_end(run, tmp_path):
    run("out", epochs=60, learning_rate=1e-2)
    model, tokens = checkpoint.load(tmp_path / "out")
    [[rollout]] = sample(
        model, tokens, [ROW["prompt"]], 1, SamplingParams(100, temperature=0), seed=0
    )
    assert (rollout.text, rollout.finished) == (ROW["completion"], True)


def test_loss_is_the_mean_over_target_tokens(run, tmp_path, model, tokens):
    run("out")
    logp_BT = token_logprobs(
        model, collate(encode_rows([ROW], tokens, chat_template.plain_template(END_OF_TEXT), 1024))
    )
    first = jsonl(tmp_path / "out/metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(-logp_BT[logp_BT != 0].mean().item(), rel=1e-5)
    assert first["num_tokens"] == (logp_BT != 0).sum() == len(tokens.encode(ROW["completion"])) + 1


def test_learning_rate_follows_the_schedule(run, tmp_path, monkeypatch):
    rates, real = [], optim.step
    monkeypatch.setattr(
        optim,
        "step",
        lambda optimizers, p, rate, *rest: rates.append(rate) or real(optimizers, p, rate, *rest),
    )
    run("out", epochs=10, learning_rate=1.0, warmup=0.2, final_lr=0.0)
    assert rates == pytest.approx(
        [optim.learning_rate_at(k / 10, 1.0, 0.2, 0.0) for k in range(10)]
    )


SHAPE = {
    "model": "new",
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "vocab_size": 300,
}


def test_new_model_depends_only_on_the_corpus_and_the_seed(run, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(name, data="corpus", rows=30, batch_tokens=1024, seed=seed, **SHAPE)
    one, same, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same != other
    model, tokens = checkpoint.load(tmp_path / "one")
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.head_dim) == (
        32,
        1,
        16,
    )
    assert model.config.vocab_size == tokens.vocab_size == 300


@pytest.mark.parametrize("preset", train_sft.PRESETS)
def test_presets_are_valid(preset):
    cfg = config.parse(train_sft.Config, ["--preset", preset], train_sft.PRESETS)
    assert cfg.model == "new" and cfg.hidden_size % cfg.heads == 0 == cfg.heads % cfg.kv_heads


@pytest.fixture(scope="module")
def interrupted(folder, tmp_path_factory):
    """The folders of one run, and of the same run interrupted by Ctrl-C in step 16 of 29 and resumed."""
    out = tmp_path_factory.mktemp("resume")

    def go(name):
        train_sft.main(
            train_sft.Config(
                out=str(out / name),
                model=folder,
                tasks=("elements",),
                rows=60,
                epochs=2,
                batch_tokens=160,
                save_every=7,
                device="cpu",
            )
        )

    go("whole")
    with interrupt(optim, "step", 17):
        go("cut")
    assert state.latest_valid(out / "cut").name == "step-00000014"
    go("cut")
    return out / "whole", out / "cut"


def test_prompts_that_end_in_a_space_are_told(tokens, capsys):
    row, template = (
        {"prompt": "1+1? A: ", "completion": "2"},
        chat_template.plain_template(END_OF_TEXT),
    )
    encode_rows([row, {**row, "prompt": "1+1?\n"}], tokens, template, 64)
    assert capsys.readouterr().out.startswith("1 prompts end in a space")


def test_resumed_run_gives_a_bit_identical_model(interrupted):
    whole, cut = ((path / "model.safetensors").read_bytes() for path in interrupted)
    assert whole == cut


def test_resumed_run_gives_the_same_metrics(interrupted):
    whole, cut = (
        [{**row, "seconds": 0} for row in jsonl(path / "metrics.jsonl")] for path in interrupted
    )
    assert [row["step"] for row in whole] == [
        0,
        20,
    ] and whole == cut  # the loss logged at step 20 is the mean since step 1


def test_finished_run_does_not_run_again(run, tmp_path, monkeypatch, capsys):
    run("out")
    monkeypatch.setattr(optim, "step", None)  # running a step would raise
    assert run("out")["finished"]
    assert f"--model {tmp_path / 'out'} and another --out" in capsys.readouterr().out


def test_folder_of_another_run_is_refused(run):
    run("out")
    with pytest.raises(
        ValueError, match="out: holds another run .--learning-rate was 0.001, now 0.5"
    ):
        run("out", learning_rate=0.5)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"data": "cold-start", "tasks": ("countdwn",)}, "--tasks.*countdwn"),
        ({"data": "cold-start", "rows": 0}, "--rows"),
        ({"data": "corpus", "rows": 0}, "--rows"),
        ({"epochs": 0}, "--epochs"),
        ({"optimizer": "sgd"}, "--optimizer"),
        ({"model": "absent"}, "absent: no such model folder"),
        ({"data": "absent.jsonl"}, "--data absent.jsonl"),
        ({**SHAPE, "data": "corpus", "hidden_size": 30, "heads": 4}, "--hidden-size"),
        ({**SHAPE, "data": "corpus", "heads": 4, "kv_heads": 3}, "--kv-heads"),
    ],
)
def test_bad_flag_is_named_and_leaves_the_folder_usable(run, changes, names):
    with pytest.raises(ValueError, match=names):
        run("out", **changes)
    run("out")  # the corrected command needs no other folder


def test_row_longer_than_the_context_is_named(run, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "<think>" * 200}) + "\n")
    with pytest.raises(ValueError, match="long.jsonl.*128"):
        run("out", data=str(path))


def test_bf16_trains_fp32_weights(run, tmp_path, model):
    run("out", epochs=3, bf16=True, learning_rate=1e-5)
    trained, _ = checkpoint.load(tmp_path / "out")
    change = (trained.model.norm.weight - model.model.norm.weight).abs()
    assert 0 < change.max() < 1e-4  # bfloat16 cannot represent these changes near 1
    assert json.loads(Path(tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"


# -- rows of a file: targets and batches ----------------------------------------------------------------------------------


def learned(row, tokens, **changes):
    """(the full text of a row, the parts of it that are targets)"""
    [encoded] = encode_rows(
        [row], tokens, chat_template.plain_template(END_OF_TEXT), 1024, **changes
    )
    show = lambda ids: tokens.backend.decode(ids, skip_special_tokens=False)
    batch = collate([encoded])
    assert batch.tokens_BT[0].tolist() == sum(map(list, encoded), [])
    assert (
        batch.tokens_BT[batch.target_BT].tolist()
        == sum((list(ids) for ids in encoded[1::2]), [])[not encoded[0] :]
    )
    return show(batch.tokens_BT[0].tolist()), [show(ids) for ids in encoded[1::2]]


USER, BOT = (
    {"role": role, "content": text} for role, text in (("user", "1+1?"), ("assistant", "2"))
)


@pytest.mark.parametrize(
    "row, whole, parts",
    [
        ({"prompt": "a\n", "completion": "b"}, f"a\nb{END_OF_TEXT}", [f"b{END_OF_TEXT}"]),
        ({"text": "a b"}, f"a b{END_OF_TEXT}", [f"a b{END_OF_TEXT}"]),
        (
            {"messages": [USER, BOT, USER, BOT]},
            f"1+1?\n2{END_OF_TEXT}1+1?\n2{END_OF_TEXT}",
            [f"2{END_OF_TEXT}"] * 2,
        ),
        ({"messages": [USER, BOT, USER]}, f"1+1?\n2{END_OF_TEXT}1+1?\n", [f"2{END_OF_TEXT}"]),
        (
            {"prompt": [USER, BOT, USER], "completion": [BOT]},
            f"1+1?\n2{END_OF_TEXT}1+1?\n2{END_OF_TEXT}",
            [f"2{END_OF_TEXT}"],
        ),  # only the last one
    ],
)
def test_assistant_turns_are_targets_with_their_end_token(tokens, row, whole, parts):
    assert learned(row, tokens) == (whole, parts)
    assert learned(row, tokens, train_on_prompt=True) == (whole, [whole])


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chatting(folder, tmp_path):
    """A model folder whose template is ChatML, but for its end token."""
    path = Path(shutil.copytree(folder, tmp_path / "chatting"))
    (path / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", END_OF_TEXT))
    return path


HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "row, parts",
    [
        (
            {"messages": [HI, {**BOT, "reasoning_content": "2+2 is 4", "content": "4"}]},
            [f"<think>2+2 is 4</think>4{END_OF_TEXT}"],
        ),
        (
            {"messages": [HI, {**BOT, "content": "b", "weight": 0}, HI, {**BOT, "content": "d"}]},
            [f"d{END_OF_TEXT}"],
        ),
        (
            {"messages": [{"role": "system", "content": ""}, HI, {**BOT, "content": "hello"}]},
            [f"hello{END_OF_TEXT}"],
        ),
        ({"text": f"hi\nhello{END_OF_TEXT}"}, [f"hi\nhello{END_OF_TEXT}"]),
        ({"text": f"hello{END_OF_TEXT}\n"}, [f"hello{END_OF_TEXT}\n"]),
        ({"prompt": "hi\n", "completion": f"a{END_OF_TEXT}"}, [f"a{END_OF_TEXT}"]),
        ({"messages": [HI, {**BOT, "content": f"a{END_OF_TEXT}"}]}, [f"a{END_OF_TEXT}"]),
        ({"text": f"{END_OF_TEXT}hi"}, [f"{END_OF_TEXT}hi{END_OF_TEXT}"]),
        ({"text": "hi<|endoftext"}, [f"hi<|endoftext{END_OF_TEXT}"]),
        ({"prompt": f"a{END_OF_TEXT}", "completion": "b"}, [f"b{END_OF_TEXT}"]),
    ],
)
def test_what_is_learned_of_public_rows(chatting, tmp_path, row, parts):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    template = chat_template.load_chat_template(chatting)
    tokens = template.adapt_tokenizer(checkpoint.load_tokenizer(chatting))
    [encoded] = encode_rows(list(sft_rows(path).values()), tokens, template, 1024)
    show = lambda ids: tokens.backend.decode(ids, skip_special_tokens=False)
    assert [show(ids) for ids in encoded[1::2]] == parts
    assert "system" not in show(encoded[0])
    [whole] = encode_rows(list(sft_rows(path).values()), tokens, template, 1024, True)
    assert sum(map(list, encoded), []) == whole[1]


class Day(datetime.date):
    today_is = "2026-02-03"

    @classmethod
    def today(cls):
        return cls.fromisoformat(cls.today_is)


@pytest.fixture
def on_day(monkeypatch):
    monkeypatch.setattr(setup, "date", Day)
    return lambda day: monkeypatch.setattr(Day, "today_is", day)


def test_run_keeps_the_first_day_of_its_template(run, chatting, on_day, tmp_path):
    dated = "Today: {{ strftime_now('%d %b %Y') }}\n"
    (chatting / "chat_template.jinja").write_text(dated + CHATML.replace("<|im_end|>", END_OF_TEXT))
    rows = tmp_path / "chat.jsonl"
    rows.write_text(
        "".join(json.dumps({"messages": [HI, {**BOT, "content": f"{n}"}]}) + "\n" for n in range(9))
    )
    flags = dict(model=str(chatting), data=str(rows), batch_tokens=80, train_on_prompt=True)
    run("whole", **flags)
    record = json.loads((tmp_path / "whole/run.json").read_text())
    assert record["config"]["date"] == "2026-02-03"
    with interrupt(optim, "step", 4):
        run("cut", **flags)
    on_day("2026-02-04")
    run("cut", **flags)
    run("other", **flags)
    model_of = lambda name: (tmp_path / name / "model.safetensors").read_bytes()
    assert model_of("cut") == model_of("whole") != model_of("other")
    assert run("cut", **flags)["finished"]  # and it is known as finished on every day
    record["config"].pop("date")  # of a version that did not keep the day
    with pytest.raises(ValueError, match="the day in the chat template was None, now '2026-02-04'"):
        state.changes(tmp_path, record["config"], {**record["config"], "date": "2026-02-04"})
    for name in ("undated", "corpus"):
        changes = {} if name == "undated" else {"data": "corpus", "rows": 9, **SHAPE}
        run(name, **changes)
        assert "date" not in json.loads((tmp_path / name / "run.json").read_text())["config"]


def test_sft_and_rl_render_the_same_prompt(tokens):
    template = chat_template.plain_template(END_OF_TEXT)
    [encoded] = encode_rows([{"messages": [USER, BOT]}], tokens, template, 1024)
    assert encoded[0] == tokens.encode(template.render_prompt([USER]))


def test_custom_template_is_used(tokens):
    chat = chat_template.ChatTemplate(
        "chat",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + END_OF_TEXT + "\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        {},
    )
    [encoded] = encode_rows([{"messages": [USER, BOT]}], tokens, chat, 1024)
    assert [tokens.backend.decode(ids, skip_special_tokens=False) for ids in encoded] == [
        f"[user]1+1?{END_OF_TEXT}\n[assistant]",
        f"2{END_OF_TEXT}",
        "\n",
    ]


def test_conversations_in_a_file_are_trained_on(run, tmp_path):
    sample = Path(__file__).parent / "data/sharegpt.jsonl"
    run("out", data=str(sample), epochs=3)
    assert [row["num_tokens"] > 0 for row in jsonl(tmp_path / "out/metrics.jsonl")] == [True]


def test_row_order_differs_by_epoch_and_is_reproducible(tokens):
    rows = [([1], [2] * n) for n in range(1, 40)]
    for pack in (False, True):
        cfg = train_sft.Config(data="x.jsonl", epochs=3, batch_tokens=40, pack=pack)
        first, second = (
            [group for group, *_ in train_sft.make_batches(cfg, tokens, rows, 128)]
            for _ in range(2)
        )
        assert first == second
        flat = [len(row[1]) for group in first for row in group]
        epochs = [flat[39 * n : 39 * (n + 1)] for n in range(3)]
        assert (
            all(sorted(epoch) == list(range(1, 40)) for epoch in epochs)
            and epochs[0] != epochs[1] != epochs[2]
        )
        assert all(
            sum(len(p) + len(c) for p, c in group) <= 40 or len(group) == 1 for group in first
        )


def test_packed_rows_do_not_see_each_other(model):
    rows = [([5, 6], [7, 8, 9]), ([], [11, 12]), ([5, 6, 7], [8], [9, 10], [11]), ([3], [4])]
    model = copy.deepcopy(model).requires_grad_(True)
    results = []
    for batches in ([collate(rows)], [collate([row]) for row in rows]):
        model.zero_grad()
        logps = [token_logprobs(model, batch)[batch.target_BT] for batch in batches]
        torch.cat(logps).sum().backward()
        results.append((torch.cat(logps).detach(), [p.grad.clone() for p in model.parameters()]))
    assert collate(rows).lengths == (5, 2, 7, 2)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for separate, packed in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(separate, packed, rtol=1e-4, atol=1e-5)


def test_packed_training_works(run, tmp_path):
    rows = Path(__file__).parent / "data/sharegpt.jsonl"
    run("packed", data=str(rows), pack=True, epochs=4)
    run("padded", data=str(rows), epochs=4)
    packed, padded = (jsonl(tmp_path / f"{name}/metrics.jsonl")[0] for name in ("packed", "padded"))
    assert packed["num_tokens"] == padded["num_tokens"] and packed["loss"] == pytest.approx(
        padded["loss"], rel=1e-5
    )


def test_rows_longer_than_the_context_are_reported_or_counted(run, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    rows = (ROW, {"prompt": "a", "completion": "<think>" * 200}, {"prompt": ""}, ROW)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="long.jsonl:3: no text in column 'prompt', found ''"):
        run("out", data=str(path))
    run("out", data=str(path), skip_bad=True)
    out = capsys.readouterr().out
    assert (
        f"2 rows; 2 skipped by --skip-bad ({path}:3: no text" in out
        and f"{path}:4: duplicate of {path}:1" in out
    )
    assert (
        f"{path}: 1 rows; 1 skipped by --skip-bad ({path}:2: 202 tokens do not fit the model's"
        in out
    )


def test_rows_beyond_the_limit_are_reported(run, tmp_path, capsys):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({**ROW, "prompt": text}) + "\n" for text in "ab"))
    run("out", data=str(path), rows=1)
    assert "using the first 1 (--rows)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, names",
    [
        (
            {"data": "cold-start", "skip_bad": True},
            "--skip-bad True: has no effect with --data cold-start",
        ),
        (
            {"data": "corpus", "decontaminate": ("x",)},
            "--decontaminate .*: has no effect with --data corpus",
        ),
        ({"decontaminate": ("absent.jsonl",)}, "--decontaminate absent.jsonl: no such file"),
    ],
)
def test_impossible_data_flags_are_named(run, changes, names):
    with pytest.raises(ValueError, match=names):
        run("out", **changes)
