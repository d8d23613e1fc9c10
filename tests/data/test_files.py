import gzip
import json
import re
import sys
import types

import pytest

from r1mini.data.files import read_rows
from r1mini.data.problems import read_problems
from r1mini.rewards import completion

from .samples import sample


@pytest.mark.parametrize(
    "content, names",
    [
        (
            b"Question,Correct Answer\na,b,c\n",
            "x.csv: row 1: a different number of cells than the first line",
        ),
        (
            b"Question,Correct Answer\na\n",
            "x.csv: row 1: a different number of cells than the first line",
        ),
        (b'Question,Correct Answer\n"a,b\n', "x.csv: not valid CSV"),
        (
            b"Question,Correct Answer\n\xff,b\n",
            "x.csv: row 1: column 'Question': not valid Unicode",
        ),
        (b"", "x.csv: no rows"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, names):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=names):
        read_problems(str(tmp_path / "x.csv"))


def test_every_file_type_gives_the_same_rows(tmp_path):
    rows = [row for _, row in read_rows(sample("gsm8k"))]
    lines = sample("gsm8k").read_bytes()
    for name, content in (
        ("a.json", json.dumps(rows).encode()),
        ("b.json", lines),
        ("a.jsonl.gz", gzip.compress(lines)),
        ("a.json.gz", gzip.compress(json.dumps(rows).encode())),
        ("crlf.jsonl", lines.replace(b"\n", b"\r\n")),
    ):
        (tmp_path / name).write_bytes(content)
        assert [row for _, row in read_rows(tmp_path / name)] == rows, name


def test_parquet_is_read_in_batches(tmp_path, monkeypatch):
    rows = [row for _, row in read_rows(sample("gsm8k"))]
    batches = [types.SimpleNamespace(to_pylist=lambda row=row: [row]) for row in rows]

    class ParquetFile:
        def __init__(self, path):
            if path.name == "bad.parquet":
                raise ValueError("Parquet magic bytes\nnot found")

        def iter_batches(self, batch_size):
            return iter(batches)

    module = types.ModuleType("pyarrow.parquet")
    module.ParquetFile = ParquetFile
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    for name in ("rows.parquet", "bad.parquet"):
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "rows.parquet"
    assert list(read_rows(path)) == [
        (f"{path}: row {number}", row) for number, row in enumerate(rows, 1)
    ]
    assert [completion.gold_answer(p) for p in read_problems(str(path))] == ["1200", "3"]
    with pytest.raises(ValueError, match="bad.parquet: pyarrow cannot read this file"):
        list(read_rows(tmp_path / "bad.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="rows.parquet: reading Parquet needs pyarrow: pip"):
        read_problems(str(tmp_path / "rows.parquet"))


def test_parquet_files_of_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row for _, row in read_rows(sample("openr1_math"))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row for _, row in read_rows(tmp_path / "rows.parquet")] == rows
    assert [completion.gold_answer(p) for p in read_problems(str(tmp_path / "rows.parquet"))] == [
        "7",
        "9",
    ]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="bad.parquet: pyarrow cannot read this file"):
        list(read_rows(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', ":2: not valid JSON (column 5: "),
        ("a.json", b'[\n{"a": 1},\n}]', ":3: not valid JSON (column 1: "),
        ("a.jsonl", b'{"a": 1}\n"\xe4"', ":2: not UTF-8 (invalid continuation byte: byte 0xe4)"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.jsonl", b"\xef\xbb\xbf{", ":1: not valid JSON"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=re.escape(str(tmp_path / name)) + ".*" + re.escape(complaint)
    ):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"prompt": "1+1?", "answer": 2}\r\n',
        b'\n [{"prompt": "1+1?", "answer": 2}]',
        b'\xef\xbb\xbf[{"prompt": "1+1?", "answer": 2}]',
    ],
)
def test_byte_order_mark_and_blank_lines_are_ignored(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert [p.prompt for p in read_problems(str(tmp_path / "x.json"))] == ["1+1?"]


def test_bad_csv_rows_can_be_skipped(tmp_path, capsys):
    (tmp_path / "x.csv").write_bytes(b"question,ground_truth\na,1\nb\n\xff,2\nc,3\n")
    assert len(read_problems(str(tmp_path / "x.csv"), skip_bad=True)) == 2
    assert (
        f"{tmp_path}/x.csv: row 3: column 'question': not valid Unicode" in capsys.readouterr().out
    )
