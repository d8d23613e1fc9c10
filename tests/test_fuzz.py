"""Any file is either read, or refused with one ValueError that names it; no other exception, and no hang.

Valid files are damaged: a value is replaced, removed or duplicated; bytes are flipped, cut off or repeated. By default a few
hundred examples, always the same. The long form draws new ones each time, this many for each reader:

    R1MINI_FUZZ=20000 python -m pytest -q tests/test_fuzz.py
"""

import copy
import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import score
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_grpo
from r1mini import checkpoint, compare
from r1mini.checkpoint import weights
from r1mini.checkpoint.chat_template import load_chat_template, plain_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT
from r1mini.checkpoint.weights import config_json
from r1mini.data.preferences import encode_pairs, read_pairs
from r1mini.data.problems import read_problems
from r1mini.data.rows import read_eval_ngrams
from r1mini.data.sft import encode_rows, sft_rows
from r1mini.evaluation import answer, figures
from r1mini.evaluation.config import SampleConfig
from r1mini.evaluation.jobs import Session
from r1mini.infra.files import read_metrics, read_run_json
from r1mini.infra.journal import Journal
from r1mini.recipe import report, scheduler, stages
from r1mini.records import Rollout
from r1mini.rewards import completion, runner
from r1mini.rl import diagnosis, metrics
from r1mini.sampler.sampling import SamplingParams

LONG = int(os.environ.get("R1MINI_FUZZ", "0"))
SECONDS = 10.0  # seconds; no file of a few lines takes this long
DATA = sorted(
    path for path in (Path(__file__).parent / "data").iterdir() if path.suffix in (".jsonl", ".csv")
)


def examples(count):
    return settings(
        max_examples=LONG or count,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# -- damage ------------------------------------------------------------------------------------------------------------

RAW = {
    "@long": "9" * 5000,
    "@deep": "[" * 20_000 + "]" * 20_000,
    "@big": "1e999",
}  # values that json.dumps does not write
VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        2**31,
        10**400,
        0.5,
        1e308,
        math.nan,
        -math.inf,
        *RAW,
        "",
        " ",
        "x",
        "\ud800",
        "a\u2028b\u0085c",
        "\0",
        "9" * 5000,
        r"\boxed{",
        r"\boxed{\frac{1}{0}}",
        "proof",
        "<think>",
        "</answer>",
        "[1, 2",
        '{"a": 1}',
        "9**9**9",
        [],
        {},
        [None],
        [[]],
        {"a": {"b": None}},
        [{}],
        [1, "x"],
        [{"role": "user", "content": None}],
        {"content": "x"},
        "model.safetensors",
    ]
) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value):
    """Every (container, key) in a JSON value."""
    found = []
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        found += [(value, key), *places(inner)]
    return found


@st.composite
def changed(draw, value):
    """JSON text of the value with one or two places replaced, removed or duplicated."""
    value = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 2))):
        found = places(value)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["replace", "replace", "leave out", "twice"]))
        if how == "replace" or container is value:
            container[key] = copy.deepcopy(draw(VALUES))
        elif how == "leave out":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            container[f"{key}@twice"] = copy.deepcopy(draw(VALUES))
    text = json.dumps(value[""], ensure_ascii=draw(st.booleans())).replace("@twice", "")
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


BYTES = (
    b"\xef\xbb\xbf",
    b"\0",
    b"\r\n",
    b"\n",
    b"\xff",
    b"\xc2\x85",
    b'"',
    b"{",
    b"[[",
    b"NaN",
    b",",
)


@st.composite
def bent(draw, content):
    """The bytes with one to three of them flipped, cut off, removed or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = at + draw(st.integers(0, 40))
        how = draw(st.sampled_from(["flip", "cut", "leave out", "repeat", "insert"]))
        if how == "flip":
            content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "leave out":
            content = content[:at] + content[end:]
        elif how == "repeat":
            content = content[:end] + content[at:]
        else:
            content = content[:at] + draw(st.sampled_from(BYTES)) + content[at:]
    return content


@st.composite
def lines(draw, content):
    """A JSONL file with one of its rows changed."""
    rows = content.split(b"\n")[:-1]
    at = draw(st.integers(0, len(rows) - 1))
    rows[at] = draw(changed(json.loads(rows[at])))
    return b"\n".join(rows) + b"\n"


def damaged(path, content=None):
    content = path.read_bytes() if content is None else content
    if path.suffix == ".jsonl":
        return lines(content) | bent(content)
    if path.suffix == ".json" and len(content) < 100_000:
        return changed(json.loads(content)) | bent(content)
    return bent(content)


def reads(call, path, *others):
    """The property: `call` either succeeds, or raises one ValueError that names the file, in time."""
    began = time.perf_counter()
    try:
        call()
    except ValueError as error:
        assert any(str(name) in str(error) for name in (path, *others)), (
            f"does not name {path}: {error}"
        )
    assert time.perf_counter() - began < SECONDS


# -- data ----------------------------------------------------------------------------------------------------------------


def use(path, tokens):
    """Reads a file of rows and computes the rewards of RL."""
    for problem in read_problems(str(path)):
        tokens.encode(problem.prompt)
        for text in (
            "<think>1</think><answer>1</answer>",
            "no",
        ):  # the rows have been checked, so nothing may fail here
            json.dumps(score(problem, [Rollout((), (1,), (-1.0,), text, True)]), allow_nan=False)
        json.dumps([problem.prompt, completion.gold_answer(problem)], ensure_ascii=False).encode()


def learn(path, tokens):
    rows = sft_rows(path)
    encode_rows(list(rows.values()), tokens, plain_template(END_OF_TEXT), 10**9, False, list(rows))


def prefer(path, tokens):
    pairs = read_pairs(path)
    encode_pairs(list(pairs.values()), tokens, plain_template(END_OF_TEXT), 10**9, list(pairs))


@pytest.mark.parametrize("source", DATA, ids=lambda path: path.stem)
def test_rows(source, tokens, tmp_path):
    path = tmp_path / source.name

    @examples(8)
    @given(damaged(source))
    def run(content):
        path.write_bytes(content)
        reads(lambda: use(path, tokens), path)
        reads(lambda: learn(path, tokens), path)
        reads(lambda: prefer(path, tokens), path)
        reads(lambda: read_pairs(path, skip_bad=True), path)
        reads(lambda: read_problems(str(path), skip_bad=True), path)
        reads(lambda: sft_rows(path, skip_bad=True), path)
        reads(lambda: read_eval_ngrams([str(path)]), path)

    run()


def test_prompts(model, tokens, tmp_path):
    path = tmp_path / "prompts.jsonl"
    cfg, params = SampleConfig(prompts=str(path)), SamplingParams()
    session = Session(cfg, model, tokens, plain_template(END_OF_TEXT), params)
    content = b'{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}], "id": 3}\n'

    @examples(20)
    @given(damaged(path, content))
    def run(content):
        path.write_bytes(content)
        reads(lambda: answer.render_prompts(session, []), path)

    run()


# -- model folders -------------------------------------------------------------------------------------------------------

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture
def copied(folder, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": {"content": END_OF_TEXT, "lstrip": False},
                "bos_token": "",
                "pad_token": None,
                "model_max_length": 100,
                "chat_template": [
                    {"name": "default", "template": CHAT},
                    {"name": "tool_use", "template": "x"},
                ],
            }
        )
    )
    (path / "generation_config.json").write_text('{"eos_token_id": [0], "temperature": 0.6}')
    return path


def use_folder(path):
    """Everything that is done with a model folder before sampling."""
    model, tokenizer = checkpoint.load(path)
    chat_template = load_chat_template(path)
    tokenizer = chat_template.adapt_tokenizer(tokenizer)
    ids = tokenizer.with_bos(
        tokenizer.encode(chat_template.render([{"role": "user", "content": "1+1 配? \n"}]))
    )
    tokenizer.decode(ids)
    config_json(model, tokenizer.stop_ids)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ],
)
def test_files_of_a_model(name, copied):
    path = copied / name
    if name == "chat_template.jinja":
        path.write_text(CHAT)

    @examples(15)
    @given(damaged(path))
    def run(content):
        path.write_bytes(content)
        reads(lambda: use_folder(copied), copied)

    run()


def test_safetensors_headers(copied):
    path = copied / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    whole = changed(header).map(lambda text: len(text).to_bytes(8, "little") + text + data)

    @examples(20)
    @given(whole | bent(content[: 8 + size]).map(lambda head: head + data) | bent(content))
    def run(content):
        path.write_bytes(content)
        reads(lambda: use_folder(copied), copied)

    run()


def test_shard_index(copied, model, tokens, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)
    checkpoint.save(copied, model, tokens)
    path = copied / "model.safetensors.index.json"

    @examples(15)
    @given(damaged(path))
    def run(content):
        path.write_bytes(content)
        reads(lambda: checkpoint.load(copied), copied)

    run()


# -- files that runs write -----------------------------------------------------------------------------------------------

FIGURES = {
    name: {
        "pass@1": 0.5,
        "pass@1_se": 0.1,
        "pass@16": 0.7,
        "cons@16": None,
        "format": 0.9,
        "language": None,
        "length": 40.5,
        "truncated": 0.0,
        "unparsed": 0.1,
        "entropy": 0.2,
        "problems": 2,
        "samples": 16,
        "kl": 0.1,
    }
    for name in ("kinetics", "elements", "mean")
}
ROWS = [
    {
        "task": task,
        "problem": "x",
        "prompt": "p\n",
        "sample": n,
        "completion": "c",
        "rewards": {"accuracy": 1.0},
    }
    for task in ("kinetics", "elements")
    for n in range(2)
]
METRICS = [
    {
        "step": step,
        "groups_drawn": 4,
        "num_tokens": 100 * step,
        "entropy": 1.0,
        "frac_reward_zero_std": 0.5,
        "loss": 0.1,
        "completions/clipped_ratio": 0.0,
        "completions/unparsed_ratio": 0.0,
        "completions/mean_length": 30.0,
        "rewards/accuracy/mean": 0.5,
        "rewards/format/mean": 0.5,
        "rewards/language/mean": 1.0,
    }
    for step in range(3)
]
RECORD = {
    "config": {"completions": 8, "seed": 0, "out": "x"},
    "finished": True,
    "steps": 3,
    "seconds": 1.5,
}
TITLES = {"base": "base", "r1-zero": "R1-Zero"}


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def finished(tmp_path):
    """A folder as the recipe and the comparison write it, with one model and one run."""
    (tmp_path / "eval").mkdir()
    for name in ("base", "r1-zero", "start", "default-0"):
        (tmp_path / f"eval/{name}.json").write_text(json.dumps(FIGURES))
        (tmp_path / f"eval/{name}.jsonl").write_text(jsonl(ROWS))
    for name in ("r1-zero", "default-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(RECORD))
        (tmp_path / name / "metrics.jsonl").write_text(jsonl(METRICS))
    (tmp_path / "recipe.json").write_text('{"tasks": "kinetics elements", "seed": 0}')
    (tmp_path / "stages.json").write_text('{"base": 1}')
    return tmp_path


def told(folder):
    """What the recipe computes from its folder, without drawing the plots."""
    report.examples(TITLES, folder).encode()
    results = report.read_results([folder], TITLES, ["kinetics", "elements"])
    report.stages_table(results, ["kinetics", "elements"], TITLES)
    report.training_table(["r1-zero"], [folder], TITLES)
    for name in TITLES:
        figures.figures_table(results[name][0])
    scheduler.is_done(folder / "r1-zero/run.json")
    scheduler.claim_folder(folder, "recipe.json", {"tasks": "kinetics elements", "seed": 0})
    stages.results_written(folder, 1)


@pytest.mark.parametrize(
    "name",
    [
        "eval/base.json",
        "eval/r1-zero.jsonl",
        "r1-zero/run.json",
        "r1-zero/metrics.jsonl",
        "recipe.json",
        "stages.json",
    ],
)
def test_files_that_the_recipe_reads(name, finished):
    path = finished / name

    @examples(15)
    @given(damaged(path))
    def run(content):
        path.write_bytes(content)
        (finished / "stages.md").touch()
        reads(lambda: told(finished), path, f"--out {finished}")

    run()


@pytest.mark.parametrize(
    "name",
    ["eval/start.json", "eval/default-0.json", "default-0/run.json", "default-0/metrics.jsonl"],
)
def test_files_that_the_comparison_reads(name, finished):
    path = finished / name
    cfg = compare.Config(runs=("default",), seeds=1, tasks=("kinetics", "elements"))

    @examples(15)
    @given(damaged(path))
    def run(content):
        path.write_bytes(content)
        reads(lambda: compare.table(cfg, finished), path)

    run()


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_files_that_a_resumed_run_reads(name, finished):
    path = finished / "r1-zero" / name

    @examples(15)
    @given(damaged(path))
    def run(content):
        path.write_bytes(content)
        if name == "run.json":
            reads(lambda: read_run_json(path), path)
        else:
            read = lambda: read_metrics(path, *metrics.NEEDED)
            reads(
                lambda: list(
                    diagnosis.diagnose(read() + METRICS, train_grpo.Config(), {"format": 1.0}, 1024)
                ),
                path,
            )

    run()


def test_journals(tmp_path):
    path = tmp_path / "out.partial"
    journal = Journal(path, {"seed": 0, "model": "x"}, 3)
    journal.add([{"task": "x"}])
    journal.add({"rows": [1.5]})
    journal.file.close()

    @examples(15)
    @given(bent(path.read_bytes()))
    def run(content):
        path.write_bytes(content)
        reads(lambda: Journal(path, {"seed": 0, "model": "x"}, 3).file.close(), path)

    run()


def test_reward_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "TIME_LIMIT", 0.5)
    path = tmp_path / "mine.py"
    content = (
        b'"""A reward."""\nimport re\n\n\ndef brevity(completions, **columns):\n'
        b'    return [1 / (1 + len(re.findall(r"(a|b)*", c))) for c in completions]\n'
    )

    @examples(20)
    @given(bent(content))
    def run(content):
        path.write_bytes(content)
        reads(lambda: runner.load_rewards(f"accuracy,{path}:brevity"), path)

    run()
