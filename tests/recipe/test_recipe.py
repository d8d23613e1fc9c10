import json
from pathlib import Path

import pytest
from conftest import jsonl

from r1mini import tasks
from r1mini.infra import files
from r1mini.recipe import stages as recipe
from r1mini.rewards.runner import parse_spec


def test_tiny_recipe_end_to_end_and_second_run_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipe.ANNOTATION, "samples", 4)
    monkeypatch.setattr(recipe, "LONGEST", 64)
    cfg = recipe.Config(
        out=str(tmp_path / "r1"),
        tasks=("kinetics", "elements", "describe"),
        scale=0.02,
        workers=1,
        device="cpu",
    )
    recipe.main(cfg)
    root = tmp_path / "r1"
    for stage in ("r1-zero", "dev1", "dev2", "dev3", "rm", "r1", "distilled", "student-rl"):
        assert json.loads((root / stage / "run.json").read_text())["finished"], stage
        assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= {
            p.name for p in (root / stage).iterdir()
        }
    config = json.loads((root / "rm/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    rows = jsonl(root / "r1/rollouts.jsonl")
    assert {row["task"] for row in rows if row["rewards"]["helpful"] is not None} == {"describe"}
    figures = json.loads((root / "stages.json").read_text())
    assert set(figures) == set(recipe.model_titles(1))
    for seeds in figures.values():
        assert 0 <= seeds[0]["mean"]["pass@1"] <= 1
    table = (root / "stages.md").read_text()
    assert all(title in table for title in recipe.model_titles(1).values())
    assert (root / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "## kinetics" in (root / "examples.md").read_text()

    capsys.readouterr()
    recipe.main(cfg)
    assert "have already run" in capsys.readouterr().out


def test_rounds_repeat_rejection_sampling_sft_and_rl(tmp_path):
    stages = {s.name: s for s in recipe.recipe(recipe.Config(rounds=2), 0, tmp_path)}
    assert stages["rows-2"].settings["model"] == str(tmp_path / "r1")
    assert stages["dev3-2"].settings["model"] == stages["dev3"].settings["model"]  # the base again
    assert stages["r1-2"].settings["model"] == str(tmp_path / "dev3-2")
    assert stages["distill-rows-2"].settings["model"] == str(tmp_path / "r1-2")
    # Each round has a reward model of its own, which has read answers of the last R1.
    assert stages["rm-2"].settings["data"] == str(stages["pairs-2"].output)
    models = [str(tmp_path / name) for name in ("dev3", "r1", "dev3-2")]
    assert sorted(stages["pairs-2"].settings["models"]) == sorted(models)
    rm = {"rows-2": "rm", "r1-2": "rm-2", "distill-rows-2": "rm-2"}
    for name, folder in rm.items():
        [*_, term] = parse_spec(stages[name].settings["reward"])
        assert term.folder == str(tmp_path / folder)
        assert tmp_path / folder / "run.json" in stages[name].inputs


def test_last_stage_has_a_reward_model_for_general_prompts(tmp_path):
    stages = {s.name: s for s in recipe.recipe(recipe.Config(), 0, tmp_path)}
    pairs, rm, r1 = stages["pairs"], stages["rm"], stages["r1"]
    models = [tmp_path / name for name in ("dev1", "dev2", "dev3")]
    assert set(pairs.settings["models"]) == set(map(str, models))
    assert set(pairs.inputs) == {model / "run.json" for model in models}
    assert pairs.settings["tasks"] == tasks.GENERAL
    assert rm.settings["data"] == str(pairs.output) and pairs.output in rm.inputs
    [*_, term] = parse_spec(r1.settings["reward"])
    assert (term.name, term.folder) == ("helpful", str(tmp_path / "rm")) and term.start > 0
    assert rm.output in r1.inputs and set(tasks.GENERAL) < set(r1.settings["tasks"])
    # Each stage's input is another's output, and no other RL run sees the reward model.
    outputs = {stage.output for stage in stages.values()}
    assert all(path in outputs for stage in stages.values() for path in stage.inputs)
    for name in ("dev2", "r1-zero", "student-rl"):
        assert "helpful" not in stages[name].settings.get("reward", "")


def test_without_general_tasks_there_is_no_reward_model(tmp_path):
    cfg = recipe.Config(tasks=(*tasks.REASONING, "elements"))
    stages = {s.name: s for s in recipe.recipe(cfg, 0, tmp_path)}
    assert not {"pairs", "rm"} & set(stages)
    assert not any("helpful" in s.settings.get("reward", "") for s in stages.values())


def test_stage_with_missing_input_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="r1 needs .*dev3"):
        recipe.main(recipe.Config(out=str(tmp_path / "r1"), stages=("r1",), workers=1))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"tasks": ("chess",)}, "chess"),
        ({"stages": ("dev9",)}, "dev9"),
        ({"tasks": ("elements",)}, "elements"),
    ],
)
def test_bad_flag_value_is_named(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        recipe.main(recipe.Config(out=str(tmp_path), **change))


def test_two_stages_may_prepare_the_same_folder_at_once(tmp_path, monkeypatch):
    touch = Path.touch

    def touch_and_lose(path):  # the other stage deletes the probe first
        touch(path)
        path.unlink()

    monkeypatch.setattr(Path, "touch", touch_and_lose)
    files.prepare_folder(tmp_path / "eval")
    assert not list((tmp_path / "eval").iterdir())
