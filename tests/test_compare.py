import pytest

from r1mini import compare


def test_comparison_end_to_end(tmp_path, folder, capsys):
    out = tmp_path / "out"
    dapo = "dapo --problems 8 --completions 4 --max-new-tokens 16 --overlong-cache 4"
    small = "small-gpu --lora-rank 2 --problems 4 --completions 4 --max-new-tokens 16"
    compare.main(
        compare.Config(
            out=str(out),
            model=folder,
            runs=(dapo, small),
            sample_budget=32,
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
    assert list(rows) == ["run", "start", dapo, small]
    assert len({len(row) for row in rows.values()}) == 1
    # 32 completions: one step of 8 x 4, with no budget left for resampling; or two of 4 x 4.
    assert rows["start"][0] == "0" and rows[dapo][0] == rows[small][0] == "32"
    assert rows["start"][rows["run"].index("kl")] == "0.000"
    assert "±" in rows[dapo][rows["run"].index("kl")]


def test_unknown_flag_of_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main(
            compare.Config(out=str(tmp_path), model="base", runs=("default --lora-rnk 8",))
        )
    assert (
        "--runs 'default --lora-rnk 8': unrecognized arguments: --lora-rnk"
        in capsys.readouterr().err
    )


def test_folder_of_another_comparison_is_refused(tmp_path, folder):
    (tmp_path / "compare.json").write_text('{"sample-budget": 1}')
    with pytest.raises(ValueError, match="--sample-budget 1, not 8192"):
        compare.main(compare.Config(out=str(tmp_path), model=folder))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"runs": ("ppo",)}, "--runs 'ppo': must begin with default, .* or lora-7b"),
        ({"runs": ("dapo --steps=3",)}, "--runs 'dapo --steps=3': --steps is the same in all runs"),
        (
            {"runs": ("default --lora-alpha 8",)},
            "--runs 'default --lora-alpha 8': --lora-alpha 8.0: has no effect",
        ),
        ({"runs": ("default --problems 8", "default  --problems 8")}, "--problems 8': given twice"),
        ({"runs": ("default --merge",)}, "--runs 'default --merge': --merge True: has no effect"),
        (
            {"runs": ("default --completions 1",)},
            "--runs 'default --completions 1': --completions 1",
        ),
        ({"tasks": ("chess",)}, "chess"),
        ({"seeds": 0}, "--seeds"),
        ({"model": "absent"}, "absent"),
    ],
)
def test_bad_flag_value_is_named(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        compare.main(compare.Config(**{"out": str(tmp_path), "model": "base", **changes}))
