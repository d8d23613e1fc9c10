"""A reward model as a reward: what it scores, on which text, in which batch."""

import json
import re
from itertools import permutations
from pathlib import Path

import pytest
import torch
from conftest import random_model
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from r1mini import checkpoint, tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.records import Problem, Rollout
from r1mini.reward_model import scoring
from r1mini.reward_model.scoring import ModelReward, open_rewards
from r1mini.reward_model.training import convert
from r1mini.rewards.runner import group_rewards, score_async

from .test_scores import alone

CPU = torch.device("cpu")
GENERAL = tasks.problem("describe", 0, 0, "train")
OTHER = tasks.problem("describe", 0, 1, "train")
RULED = [
    tasks.problem("countdown", 0, 0, "train"),
    tasks.problem("elements", 0, 0, "train"),
    Problem("rows.jsonl", "", "en", "2+2?\n", {"answer": "4"}),
    Problem("rows.jsonl", "", "en", "2+2?\n", {"solution": r"It is \boxed{4}."}),
    Problem("rows.jsonl", "", "en", "Print 5.\n", {"tests": [{"stdin": "", "stdout": "5"}]}),
    Problem("rows.jsonl", "", "en", "Print 5.\n", {"tests": '[{"stdin": "", "stdout": "5"}]'}),
    Problem("rows.jsonl", "", "en", "Print 5.\n", {"verification_info": {"test_cases": []}}),
]


def rollouts(*texts):
    return [Rollout((1,), (5,), (0.0,), text, True) for text in texts]


def loaded(folder, name="helpful", bf16=False, **options):
    reward = ModelReward(name, folder, **options)
    reward.load(CPU, bf16)
    return reward


@pytest.fixture
def reward(reward_folder):
    return loaded(reward_folder)


def scores(reward, problem, *texts):
    return reward.enqueue(problem, rollouts(*texts))()


# -- what is scored --------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", RULED)
def test_problem_that_rules_judge_has_no_score(reward, problem):
    assert scores(reward, problem, "<answer>4</answer>", "no") == [None, None]
    assert not reward.batch


def test_score_is_that_of_prompt_and_answer(reward, reward_model, tokens):
    [score] = scores(reward, GENERAL, "<answer>\niron is Fe\n</answer>")
    ids = [*tokens.encode(GENERAL.prompt + "iron is Fe"), tokens.eos_id]
    assert score == pytest.approx(alone(reward_model, [ids]), abs=1e-5)


def test_general_problem_of_a_data_file_has_a_score(reward, reward_model, tokens):
    problem = Problem("rows.jsonl", "", "en", "Say hello.\n", {"source": "me", "answer": " "})
    ids = [*tokens.encode("Say hello.\nhello"), tokens.eos_id]
    assert scores(reward, problem, "hello")[0] == pytest.approx(
        alone(reward_model, [ids]), abs=1e-5
    )


def test_rules_and_reward_model_in_one_run(reward):
    functions = {**open_rewards("accuracy", ()).functions, "helpful": reward}
    texts = rollouts("<answer>1</answer>", "no")
    pending = [score_async(problem, texts, functions) for problem in (RULED[0], GENERAL, RULED[2])]
    countdown, general, data = (scoring.result() for scoring in pending)
    for rows in (countdown, data):
        assert [row["helpful"] for row in rows] == [None, None]
        assert [row["accuracy"] for row in rows] == [0.0, 0.0]
    assert [row["accuracy"] for row in general] == [None, None]
    weights = {"accuracy": 1.0, "format": 0.5, "helpful": 2.0}
    [one, two] = group_rewards(GENERAL, general, weights)
    assert one == pytest.approx(2 * general[0]["helpful"] + 0.5, abs=1e-6)
    assert two == pytest.approx(2 * general[1]["helpful"], abs=1e-6)
    with pytest.raises(ValueError, match="none of these rewards applies .* task 'countdown'"):
        group_rewards(RULED[0], countdown, {"helpful": 1.0})


def test_thinking_is_scored_only_on_request(reward_folder, reward, tokens, reward_model):
    texts = [f"<think>{thought}</think><answer>iron</answer>" for thought in ("a", "bb")]
    one, two = scores(reward, GENERAL, *texts)
    assert one == two == scores(reward, GENERAL, "iron")[0]
    whole = loaded(reward_folder, scores_thinking=True)
    one, two = scores(whole, GENERAL, *texts)
    assert one != two
    ids = [*tokens.encode(GENERAL.prompt + texts[0]), tokens.eos_id]
    assert one == pytest.approx(alone(reward_model, [ids]), abs=1e-5)


def test_thinking_that_the_prompt_opens_belongs_to_the_completion(reward_folder):
    opened = Problem("rows.jsonl", "", "en", "Say hello.\n<think>\n")
    closed = Problem("rows.jsonl", "", "en", "Say hello.\n")
    reward = loaded(reward_folder)
    assert scores(reward, opened, "hm</think>hello") == scores(reward, closed, "hello")
    whole = loaded(reward_folder, scores_thinking=True)
    expected = scores(whole, closed, "<think>\nhm</think>hello")
    assert scores(whole, opened, "hm</think>hello") == expected


def test_score_thinking_names_reward_models(reward_folder):
    rewards = open_rewards(f"format,a={reward_folder},b={reward_folder}:-1", ("b",))
    assert not rewards.functions["a"].scores_thinking and rewards.functions["b"].scores_thinking
    assert rewards.weights == {"format": 1.0, "a": 1.0, "b": -1.0}


# -- another tokenizer and another chat template ---------------------------------------------------

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """(folder, model, backend) of a reward model that shares neither vocabulary nor template with
    the policy; its tokenizer adds BOS to every text, and its template writes it too."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    backend.train_from_iterator(["describe the element to somebody " * 9], trainer)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder = tmp_path_factory.mktemp("foreign")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    config = json.dumps({**names, "chat_template": CHAT}).encode()
    tokenizer = Tokenizer(backend, [1], 1, {"tokenizer_config.json": config})
    model = convert(random_model(vocab_size=300, qk_norm=True, head_dim=16), seed=4)
    checkpoint.save(folder, model, tokenizer)
    return str(folder), model, backend


def test_text_is_rendered_and_tokenized_for_the_reward_model(foreign):
    folder, model, backend = foreign
    reward = loaded(folder)
    text = "<think>so</think><answer>iron is Fe</answer>"
    [row] = [reward.encode(GENERAL, rollout) for rollout in rollouts(text)]
    rendered = (
        f"<s><|im_start|>user\n{GENERAL.prompt.strip()}<|im_end|>\n"
        "<|im_start|>assistant\niron is Fe<|im_end|>\n"
    )
    ids = [token for segment in row for token in segment]
    assert ids == backend.encode(rendered, add_special_tokens=False).ids
    assert ids.count(0) == 1 and ids[0] == 0  # one BOS, at the beginning
    assert 1 not in ids and ids.count(backend.token_to_id("<|im_end|>")) == 2
    assert scores(reward, GENERAL, text)[0] == pytest.approx(alone(model, [ids]), abs=1e-5)


def test_messages_of_a_problem_are_rendered_anew(foreign):
    """The prompt that the policy saw was rendered by its template, not the reward model's."""
    folder, _, backend = foreign
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"})
    problem = Problem("rows.jsonl", "", "en", "[INST] Be brief. Hello? [/INST]", {}, messages)
    row = loaded(folder).encode(problem, rollouts("<think>hm</think>Hi!")[0])
    assert backend.decode(sum(map(list, row), []), skip_special_tokens=False) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
    )


def test_end_of_turn_in_an_answer_is_not_doubled(foreign):
    reward = loaded(foreign[0])
    plain, ended = (reward.encode(GENERAL, r) for r in rollouts("iron", "iron<|im_end|>"))
    assert plain == ended


def test_unknown_characters_of_the_policy_are_encoded(foreign):
    """Bytes that the policy cut in the middle of a character, and characters of other scripts."""
    for value in scores(loaded(foreign[0]), GENERAL, "介绍铁\ufffd", "😀", ""):
        assert isinstance(value, float)


# -- errors ----------------------------------------------------------------------------------------


def test_text_that_is_too_long_is_one_line(reward, foreign, reward_folder):
    for folder in (reward_folder, foreign[0]):
        message = (
            rf"--reward helpful={re.escape(folder)}: \d+ tokens do not fit the model's context of "
            rf"128; prompt {re.escape(repr(GENERAL.prompt))}"
        )
        with pytest.raises(ValueError, match=message) as error:
            scores(loaded(folder), GENERAL, "iron", "iron " * 200)
        assert "\n" not in str(error.value)


def test_score_that_is_not_finite_is_one_line(reward_folder):
    reward = loaded(reward_folder)
    with torch.no_grad():
        reward.model.score.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="--reward helpful=.*: a score is not a finite number"):
        scores(reward, GENERAL, "iron")


def test_folder_that_is_no_reward_model_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a reward model"):
        loaded(folder)
    with pytest.raises(ValueError, match="absent"):
        ModelReward("helpful", str(tmp_path / "absent"))


# -- batches ---------------------------------------------------------------------------------------

TEXTS = {"a": ("iron", "the symbol of iron is Fe", "iron"), "b": ("iron", "no")}


@pytest.fixture
def batches(monkeypatch):
    """The rows of each forward pass."""
    passes, collate = [], scoring.collate
    monkeypatch.setattr(scoring, "collate", lambda rows: passes.append(rows) or collate(rows))
    return passes


def test_all_waiting_completions_are_one_batch(reward, batches):
    waiting = [
        reward.enqueue(problem, rollouts(*texts))
        for problem, texts in ((GENERAL, TEXTS["a"]), (RULED[0], "xy"), (OTHER, TEXTS["b"]))
    ]
    assert not batches
    values = [result() for result in waiting]
    [rows] = batches  # one forward pass
    assert len(rows) == 2 + 2  # the same text twice is computed once
    assert values[0][0] == values[0][2] != values[0][1] and values[1] == [None, None]
    again = reward.enqueue(GENERAL, rollouts("iron"))  # the next step's
    assert again() == pytest.approx(values[0][:1], abs=1e-5)
    assert len(batches) == 2 and values == [result() for result in waiting]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_results_may_be_asked_for_in_any_order(reward, batches, order):
    groups = [(GENERAL, TEXTS["a"]), (OTHER, TEXTS["b"]), (GENERAL, TEXTS["b"])]
    waiting = [reward.enqueue(problem, rollouts(*texts)) for problem, texts in groups]
    for n in order:
        problem, texts = groups[n]
        apart = [reward.score([reward.encode(problem, r)]) for r in rollouts(*texts)]
        assert waiting[n]() == pytest.approx([x for s in apart for x in s.values()], abs=1e-5)
    assert max(map(len, batches)) == 2 + 2 + 1


def test_scores_do_not_depend_on_the_size_of_a_batch(reward, batches, monkeypatch):
    texts = [f"iron is {n}" for n in range(9)]
    whole = scores(reward, GENERAL, *texts)
    monkeypatch.setattr(reward, "tokens", 40)
    assert scores(reward, GENERAL, *texts) == pytest.approx(whole, abs=1e-5)
    assert len(batches) > 3


def test_bf16_scores_are_not_rounded(reward_folder, reward):
    half = loaded(reward_folder, bf16=True)
    assert half.model.score.weight.dtype == torch.bfloat16
    texts = [f"iron is {n}" for n in range(9)]
    got, expected = scores(half, GENERAL, *texts), scores(reward, GENERAL, *texts)
    assert got == pytest.approx(expected, abs=0.1) and len(set(got)) == 9
    assert any(torch.tensor(x).bfloat16().item() != x for x in got)


def test_memory_of_a_reward_model(reward_folder, reward_model):
    count = sum(p.numel() for p in reward_model.parameters())
    assert scoring.parameter_bytes(reward_folder, bf16=False) == 4 * count
    assert scoring.parameter_bytes(reward_folder, bf16=True) == 2 * count
    size = load_file(Path(reward_folder) / "model.safetensors")
    assert sum(tensor.nbytes for tensor in size.values()) == 4 * count
