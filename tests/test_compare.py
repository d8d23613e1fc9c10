import pytest

from r1mini import compare


def test_comparison_end_to_end(tmp_path, folder, capsys):
    out = tmp_path / "out"
    compare.main(
        compare.Config(
            out=str(out),
            model=folder,
            presets=("dapo", "small-gpu"),
            sample_budget=256,
            seeds=2,
            tasks=("elements",),
            problems=2,
            device="cpu",
            workers=2,
        )
    )
    table = (out / "compare.md").read_text()
    assert table in capsys.readouterr().out
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (
            line.strip("|").split("|") for line in table.split("\n") if line.startswith("| ")
        )
    }
    assert list(rows) == ["preset", "start", "dapo", "small-gpu"]
    assert len({len(row) for row in rows.values()}) == 1
    # 256 completions: one step of 32 x 8, with no budget left for resampling; or two of 16 x 8.
    assert rows["start"][0] == "0" and rows["dapo"][0] == rows["small-gpu"][0] == "256"
    assert rows["start"][rows["preset"].index("kl")] == "0.000"
    assert "±" in rows["dapo"][rows["preset"].index("kl")]


def test_folder_of_another_comparison_is_refused(tmp_path, folder):
    (tmp_path / "compare.json").write_text('{"sample-budget": 1}')
    with pytest.raises(ValueError, match="--sample-budget 1, not 8192"):
        compare.main(compare.Config(out=str(tmp_path), model=folder))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"presets": ("ppo",)}, "--presets ppo: must be default, .* or lora-7b"),
        ({"tasks": ("chess",)}, "chess"),
        ({"seeds": 0}, "--seeds"),
        ({"model": "absent"}, "absent"),
    ],
)
def test_bad_flag_value_is_named(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        compare.main(compare.Config(out=str(tmp_path), **changes))
