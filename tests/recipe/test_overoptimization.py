"""Over-optimisation of the reward model: its figures by hand, and the command on tiny models."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import jsonl

import train_grpo
from r1mini import checkpoint, tasks
from r1mini.recipe import overoptimization
from r1mini.recipe.overoptimization import NAMES, examples, judged, lines, table, tenths
from r1mini.records import Problem
from r1mini.reward_model.training import convert
from r1mini.tasks import elements

IRON = Problem(
    "describe", "Fe en symbol", "en", "Describe iron.\n", {"symbol": "Fe", "known": "symbol"}
)


def sentence(symbol, kind, language="en"):
    element = next(fact for fact in elements.FACTS if fact["symbol"] == symbol)
    return next(iter(elements.sentences(element, kind, language))).strip()


def rollout(completion, finished=True, score=1.5):
    row = {"prompt": IRON.prompt, "completion": completion, "finished": finished}
    return {**row, "rewards": {"format": 1.0, "helpful": score}}


def test_answer_is_judged_line_by_line():
    told = [kind for kind in elements.PROPERTIES if kind != "symbol"]
    facts = [sentence("Fe", kind) for kind in told[:2]]
    other = next(fact["symbol"] for fact in elements.FACTS if fact["symbol"] != "Fe")
    answer = [
        *facts,
        facts[0],  # repeated
        sentence("Fe", "symbol"),  # known
        sentence(other, told[0]),  # off topic
        sentence("Fe", told[0], "zh"),  # foreign
        "iron is a fruit",  # false
    ]
    row = rollout("<answer>\n" + "\n".join(answer) + "\n</answer>")
    result = judged(IRON, row)
    kinds = {"useful": 2, "repeated": 1, "known": 1, "off topic": 1, "foreign": 1, "false": 1}
    assert dict(result["lines"]) == kinds
    assert result["utility"] == 0.0  # 2 useful facts, and 5 lines at half a fact each
    assert (result["score"], result["unfinished"]) == (1.5, False)
    result = judged(IRON, rollout("<answer>" + "\n".join(answer[:3]) + "</answer>", score=-2.0))
    assert result["utility"] == (2 - 0.5) / 4 and result["score"] == -2.0


@pytest.mark.parametrize(
    ("text", "finished"),
    [("<answer>{}</answer>", False), ("<answer>{}", True), ("{}", True), ("", True)],
)
def test_answer_without_a_well_formed_end_is_worth_nothing(text, finished):
    result = judged(IRON, rollout(text.format(sentence("Fe", "period")), finished))
    assert result["utility"] == 0 and not result["lines"] and result["unfinished"]


def steps(*utilities, **fields):
    return [{"utility": u, "number": i, **fields} for i, u in enumerate(utilities)]


def numbers(part):
    return [step["number"] for step in part]


def test_tenths_of_a_run():
    rising, falling = steps(*range(20)), steps(*range(20, 0, -1))
    peak = steps(*[0] * 8, 5, 6, 7, *[0] * 9)
    labels, parts = zip(*tenths([rising, falling, peak]))
    assert labels == ("first tenth", "tenth of the highest utility", "last tenth")
    assert [[numbers(part) for part in seeds] for seeds in parts] == [
        [[0, 1], [0, 1], [0, 1]],
        [[18, 19], [0, 1], [8, 9]],
        [[18, 19], [18, 19], [18, 19]],
    ]


@pytest.mark.parametrize("count, size", [(8, 1), (19, 1), (29, 2), (89, 8)])
def test_tenths_have_equal_sizes(count, size):
    """What is left over is in none but the last: a part of one step would be the best by chance."""
    first, best, last = (part for _, [part] in tenths([steps(*[0] * (count - 1), 1)]))
    assert numbers(first) == list(range(size)) and len(best) == size
    assert numbers(last) == list(range(count - size, count))


def answers(*kinds):
    return [{"lines": dict(zip(("useful", "false"), pair))} for pair in kinds]


def test_lines_are_counted_per_answer():
    some = [{"answers": answers((3, 0), (1, 1))}, {"answers": answers((0, 0), (2, 4))}]
    assert lines(some, "useful") == 6 / 4 and lines(some, "false") == 5 / 4
    assert lines(some[:1], "false") == 0.5


def test_examples_are_the_useless_answers_that_score_best():
    def answer(prompt, score, utility, text="x"):
        return {"prompt": f"{prompt}\n", "completion": text, "score": score, "utility": utility}

    early = {"answers": [answer("early", 99.0, 0.0)]}
    last = [
        answer("a", 3.0, 0.25, "best of a\n"),
        answer("a", 2.0, 0.0, "second of a"),
        answer("b", 5.0, 0.5, "useful"),
        answer("b", 1.0, 0.0, "best of b"),
        answer("c", 0.5, 0.0, "third"),
    ]
    text = examples([early] * 9 + [{"answers": last}])
    assert text.split("\n\n", 1)[1] == (
        "a (score 3.00, utility 0.25)\n\n```\nbest of a\n```\n"
        "\nb (score 1.00, utility 0.00)\n\n```\nbest of b\n```\n"
    )
    only = examples([{"answers": [answer("a", 1.0, 0.9, "all are useful")]}])
    assert "all are useful" in only


def test_table_by_hand():
    def step(score, useful):
        given = {"useful": useful, "repeated": 0, "known": 0, "false": 1, "off topic": 0}
        values = {"score": score, "utility": useful / 4, "length": 30, "kl": 0.5}
        return {**values, "answers": [{"lines": given}]}

    one, two = (
        [step(0.0, 1), step(1.0, 3), step(2.0, 0)],
        [step(2.0, 1), step(3.0, 3), step(4.0, 2)],
    )
    text = table({"too-much": [one, two]})
    assert text.startswith("Seeds: 2; ± is the standard deviation over seeds")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.strip().split("\n")[2:]]
    assert rows[0][:6] == ["run", "steps", "score", "utility", "length", "kl"]
    assert [row[0] for row in rows[2:]] == [NAMES["too-much"]] * 3
    first, best, last = ([cell.split(" ± ") for cell in row[2:]] for row in rows[2:])
    assert float(first[0][0]) == 1.0 and float(first[0][1]) == pytest.approx(1.414, abs=0.01)
    assert [float(part[1][0]) for part in (first, best, last)] == [0.25, 0.75, 0.25]
    useful = rows[0].index("useful") - 2
    assert [float(part[useful][0]) for part in (first, best, last)] == [1, 3, 1]


# -- the command -----------------------------------------------------------------------------------


def config(root, out, **changes):
    settings = {"steps": 8, "seeds": 1, "device": "cpu", "workers": 1, **changes}
    return overoptimization.Config(recipe=(str(root),), out=str(out), **settings)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, folder):
    """The folders of a finished recipe that the command reads: Dev3 and the reward model."""
    root = tmp_path_factory.mktemp("recipe")
    shutil.copytree(folder, root / "dev3")
    model, tokenizer = checkpoint.load(folder)
    checkpoint.save(root / "rm", convert(model, seed=0), tokenizer)
    for name in ("dev3", "rm"):
        (root / name / "run.json").write_text('{"config": {}, "finished": true}')
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory, recipe):
    """The folder of a command whose runs are in this process, with short completions."""

    def schedule(stages, workers):
        assert workers == 1
        for stage in stages:
            short = {"max_new_tokens": 4, "completions": 2}
            train_grpo.main(train_grpo.Config(**{**stage.settings, **short}))

    folder = tmp_path_factory.mktemp("over")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimization, "schedule", schedule)
        overoptimization.main(config(recipe, folder))
    return folder


def test_command_writes_a_table_and_a_plot(out):
    assert (out / "overoptimization.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "overoptimization.md").read_text(encoding="utf-8")
    assert all(text.count(f"| {name} |") == 3 for name in NAMES.values())
    assert "Answers of the last steps that the reward model likes" in text


def test_reward_model_is_in_every_step_or_late(out):
    for name in NAMES:
        rows = jsonl(out / f"{name}-0/rollouts.jsonl")
        counts = {row["step"] for row in rows if row["reward"] != 0.5 * row["rewards"]["format"]}
        assert counts == set(range(6 if name == "late" else 0, 8))
        settings = json.loads((out / f"{name}-0/run.json").read_text())["config"]
        assert (settings["beta"] == 0.1) == (name == "with-kl") and settings["beta"] > 0


def test_figures_of_a_run(out, tmp_path):
    figures = overoptimization.read_run(out / "too-much-0")
    metrics = jsonl(out / "too-much-0/metrics.jsonl")
    for key, name in (("kl", "kl"), ("score", "rewards/helpful/mean")):
        assert [step[key] for step in figures] == [row[name] for row in metrics]
    assert figures[-1]["kl"] > 0 and len(figures[0]["answers"]) == 16 * 2
    # A policy that tells all that is true of each prompt's element has a utility of 1.
    folder = Path(shutil.copytree(out / "too-much-0", tmp_path / "run"))
    rows = jsonl(folder / "rollouts.jsonl")
    for row in rows:
        problem = tasks.problem("describe", 0, row["step"] * 16 + row["problem"], "train")
        symbol, known = problem.columns["symbol"], problem.columns["known"]
        kinds = [kind for kind in elements.PROPERTIES if kind != known]
        facts = "\n".join(sentence(symbol, kind, problem.language) for kind in kinds)
        row.update(completion=f"<answer>{facts}</answer>", finished=True)
    with (folder / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert [step["utility"] for step in overoptimization.read_run(folder)] == [1.0] * 8


def test_runs_without_a_scheduler_are_three_of_each_seed(recipe, tmp_path):
    cfg = overoptimization.Config(recipe=("a", "b"), out=str(tmp_path), seed=5, seeds=3)
    stages = overoptimization.stages(cfg)
    assert len({stage.name for stage in stages}) == len({stage.output for stage in stages}) == 9
    assert [stage.settings["model"] for stage in stages[::3]] == ["a/dev3", "b/dev3", "a/dev3"]
    assert [stage.settings["seed"] for stage in stages[::3]] == [5, 6, 7]
    assert [stage.settings["reward"] for stage in stages[3:6]] == [
        "format:0.5,helpful=b/rm:1",
        "format:0.5,helpful=b/rm:1",
        "format:0.5,helpful=b/rm:1@0.75",
    ]


@pytest.mark.parametrize("name", ["dev3", "rm"])
def test_unfinished_recipe_is_an_error(recipe, tmp_path, name):
    root = Path(shutil.copytree(recipe, tmp_path / "r1"))
    (root / name / "run.json").write_text('{"config": {}, "finished": false}')
    for _ in range(2):
        with pytest.raises(ValueError, match=f"--recipe {root}: {name} is not finished"):
            overoptimization.main(config(root, tmp_path / "out"))
        (root / name / "run.json").unlink(missing_ok=True)
    assert not (tmp_path / "out/too-much-0").exists()


def test_too_few_steps_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="--steps 7"):
        overoptimization.main(config(recipe, tmp_path, steps=7))
