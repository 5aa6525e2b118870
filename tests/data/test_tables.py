"""Tables as they are written, whatever the loaders of `datasets` would guess."""

import bz2
import csv
import gzip
import json
import lzma
import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset

from persyn_datasets import InputError, load_prompts
from persyn_datasets.data import text_files
from persyn_datasets.data.tables import load_table


def lines(file, rows, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))
    return str(file)


def rows_of(path, **options):
    return list(load_table(str(path), **options))


def both_ways(path, **options):
    """The rows, as read at once and as streamed, which have to be the same."""
    rows = rows_of(path, **options)
    assert rows_of(path, streaming=True, **options) == rows
    return rows


TEXTS = ["007", "1.50", "1969-07-16", "1969-07-16T10:00:00Z", "NA", "null", "nan", "1e5", "True"]
TEXTS += [" a ", "[1, 2]", '{"a": 1}', "0x1f", "١٢", "-0", "1_000", "inf", "12:30"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_text_stays_as_it_is_written(tmp_path, suffix, folder):
    rows = [{"prompt": text, "n": f"{i}"} for i, text in enumerate(TEXTS)]
    file = tmp_path / f"train{suffix}"
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        lines(file, rows)
    else:
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    assert both_ways(tmp_path if folder else file) == rows


def test_every_cell_of_a_csv_is_text_and_an_empty_one_is_none(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('prompt,level,note\n"a, ""b""",1.0,\n"x\ny",2,""\n')
    assert both_ways(file) == [
        {"prompt": 'a, "b"', "level": "1.0", "note": None},
        {"prompt": "x\ny", "level": "2", "note": ""},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt\na,1\nb,2\n", "Expected 1 columns, got 2"),  # no column becomes an index
        ("prompt,answer\na\n", "Expected 2 columns, got 1"),
        ("prompt,answer\na,1\n\nb,1,2\n", "Expected 2 columns, got 3"),
        ("prompt,prompt\na,b\n", "two columns are named 'prompt'"),
        ("prompt,answer\n", "there are no rows"),
    ],
)
def test_a_csv_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path / "t.csv")


def test_a_number_beside_texts_does_not_make_them_numbers(tmp_path):
    """Neither within a file nor within an object of it."""
    rows = [{"answer": "007", "meta": {"v": "1.50"}}, {"answer": 5, "meta": {"v": 2}}]
    rows += [{"answer": True, "meta": {"v": None}}, {"answer": [1, "a"]}, {"answer": "x"}]
    got = both_ways(lines(tmp_path / "t.jsonl", rows))
    assert [row["answer"] for row in got] == ["007", "5", "true", '[1, "a"]', "x"]
    assert [row["meta"] and row["meta"]["v"] for row in got] == ["1.50", "2", None, None, None]


def test_a_row_with_other_keys_changes_no_number(tmp_path):
    tiny = [{"x": 3e-12, "y": 0.1 + 0.2, "meta": {"a": 1 / 3}} for _ in range(3)]
    rows = both_ways(lines(tmp_path / "t.jsonl", [*tiny, {"x": 1e300, "meta": {"b": "x"}, "z": 1}]))
    none = {"z": None}
    assert rows[0] == tiny[0] | {"meta": {"a": 1 / 3, "b": None}} | none
    assert rows[3] == {"x": 1e300, "y": None, "meta": {"a": None, "b": "x"}, "z": 1}


@pytest.mark.parametrize(
    ("written", "as_column", "as_text"),
    [
        (["12345678901234567890123", "1"], "text", ["12345678901234567890123", "1"]),
        (["9007199254740993", "0.5"], "text", ["9007199254740993", "0.5"]),
        (["1", "2.50"], [1.0, 2.5], ["1", "2.50"]),
        (["1e-400", "0.10"], [0.0, 0.1], ["1e-400", "0.10"]),
        (["1", "2"], [1, 2], ["1", "2"]),
        (["true", "1"], "text", ["true", "1"]),
        (["{}", "{}"], "text", ["{}", "{}"]),
        (["null", "null"], [None, None], [None, None]),
    ],
)
@pytest.mark.parametrize("form", ["lines", "list"])
def test_numbers_keep_their_digits(tmp_path, form, written, as_column, as_text):
    file = tmp_path / "t.json"
    objects = ['{"answer": %s, "prompt": "p"}' % text for text in written]  # noqa: UP031
    file.write_text("\n".join(objects) if form == "lines" else f"[{','.join(objects)}]")
    column = [row["answer"] for row in rows_of(file)]
    assert column == (as_text if as_column == "text" else as_column)
    assert [row["answer"] for row in both_ways(file, texts=["answer"])] == as_text
    assert [row["answer"] for row in load_prompts(str(file), answer_column="answer")] == as_text


def test_types_are_those_of_all_parts_of_a_file_and_of_all_files(tmp_path, monkeypatch):
    """What comes first does not decide: here each line is a part of its own."""
    monkeypatch.setattr(text_files, "BYTES_AT_ONCE", 1)
    file = lines(tmp_path / "a.jsonl", [{"x": None}, {"x": 1}, {"x": 2}, {"x": "007"}, {"y": 1}])
    assert [row["x"] for row in rows_of(file)] == [None, "1", "2", "007", None]
    lines(tmp_path / "b.jsonl", [{"x": 1.5, "z": []}])
    rows = rows_of(tmp_path / "*.jsonl")
    assert rows[-1] == {"x": "1.5", "y": None, "z": []} and rows[4]["y"] == 1
    (tmp_path / "c.csv").write_text("a\n1\n")
    (tmp_path / "d.csv").write_text("b,a\n2,3\n")
    want = [{"a": "1", "b": None}, {"a": "3", "b": "2"}]
    assert rows_of(tmp_path / "*.csv") == want
    with pytest.raises(InputError, match=r"d\.csv.*'b'"):
        rows_of(tmp_path / "*.csv", streaming=True)


def test_arrows_reader_and_pythons_give_the_same(tmp_path, monkeypatch):
    """The quick one is only taken where it is exact."""
    draw = random.Random(0)
    cells = [
        lambda: draw.choice([None, "", "007", "1969-07-16", "ä😀\u2028", '"\\\t']),
        lambda: draw.choice([None, 0, -1, 2**63 - 1]),
        lambda: draw.choice([0.1, 1e300, 5e-324, 2**53, 3, -0.0]),
        lambda: draw.choice([True, False]),
        lambda: draw.choice([None, [], [None], ["x", "1"]]),
        lambda: draw.choice([None, {}, {"a": 1}, {"b": [{"c": "2"}]}]),
        lambda: None,
    ]
    rows = [{f"c{i}": cell() for i, cell in enumerate(cells)} for _ in range(300)]
    monkeypatch.setattr(text_files, "BYTES_AT_ONCE", 500)
    file = lines(tmp_path / "t.jsonl", rows, ensure_ascii=False)
    quick, counted = text_files._Lines.quick, []

    def count(part, schema):
        counted.append(quick(part, schema) is not None)
        return quick(part, schema)

    monkeypatch.setattr(text_files._Lines, "quick", count)
    table = load_table(file)
    assert 10 < sum(counted) < len(counted)
    monkeypatch.setattr(text_files._Lines, "quick", lambda *_: None)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "t.jsonl").read_bytes() + b"\n")
    slow = load_table(str(tmp_path / "copy.jsonl"))
    assert repr(table.to_list()) == repr(slow.to_list()) and table.features == slow.features
    for row, got in zip(rows, table, strict=True):
        assert all(got[k] == v for k, v in row.items() if k != "c5")


def test_a_stream_says_which_row_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BYTES_AT_ONCE", 1)
    file = lines(tmp_path / "t.jsonl", [{"prompt": "p", "x": 1}, {"prompt": "q", "x": "a"}])
    with pytest.raises(InputError, match="line 2 .*text.*'x'.*integer"):
        rows_of(file, streaming=True)
    with pytest.raises(InputError, match="line 2 .*'x'"):
        list(load_prompts(file, streaming=True))
    big = lines(tmp_path / "big.jsonl", [{"x": 2**53 + 1}, {"x": 0.5}, {"y": {}}, {"y": {"a": 1}}])
    assert rows_of(big)[0] == {"x": "9007199254740993", "y": None}
    assert [row["y"] for row in rows_of(big)] == [None, None, {"a": None}, {"a": 1}]
    late = lines(tmp_path / "late.jsonl", [{"x": None, "m": {"k": None}}, {"x": 5, "m": {"k": []}}])
    assert rows_of(late, streaming=True)[1] == {"x": "5", "m": {"k": "[]"}}


def test_objects_without_common_keys_are_their_json(tmp_path):
    rows = [{"votes": {f"user {i}-{j}": j for j in range(100)}} for i in range(8)]
    got = rows_of(lines(tmp_path / "t.jsonl", rows))
    assert [json.loads(row["votes"]) for row in got] == [row["votes"] for row in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2 cannot be read"),
        ('{"prompt": "a"}\n["b"]\n', r"line 2 is the list \"\['b'\]\"; expected an object"),
        (
            '{"prompt": "a", "prompt": "b"}\n',
            "line 1 cannot be read .the key 'prompt' appears twice",
        ),
        ('{"prompt": "a"}\n\n{"prompt": "hi \\ud83d"}\n', "line 3 holds half of a surrogate pair"),
        ('[{"prompt": "a"},\n 5]', "row 1 is the int '5'"),
        ('[{"prompt": "a"},\n {"prompt": }]', "line 2 cannot be read"),
        ('{\n "data": [1]\n}\n', "line 1 cannot be read"),
    ],
)
def test_json_that_is_none_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    for streaming in (False, True):
        with pytest.raises(InputError, match=rf"t\.json: {message}"):
            rows_of(tmp_path / "t.json", streaming=streaming)


def test_files_of_windows(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a\\u2028\xe2\x80\xa8b"}\r\n\r\n{"prompt": "c"}\r\n')
    assert both_ways(file) == [{"prompt": "a\u2028\u2028b"}, {"prompt": "c"}]
    file = tmp_path / "t.csv"
    file.write_bytes(b'\xef\xbb\xbfprompt,answer\r\n"Two\r\nlines",5\r\n')
    assert both_ways(file) == [{"prompt": "Two\r\nlines", "answer": "5"}]
    file.write_bytes("prompt\nä\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"UTF-16.*iconv -f utf-16"):
        rows_of(file)


@pytest.mark.parametrize(
    ("split", "texts"),
    [("train[:2]", "01"), ("train[50%:]", "345"), ("train[-1:]", "5"), ("test[1:2]", "1")],
)
@pytest.mark.parametrize("kind", ["file", "saved"])
def test_a_part_of_a_file(tmp_path, split, texts, kind):
    rows = [{"prompt": str(i)} for i in range(6)]
    path = lines(tmp_path / "t.jsonl", rows)
    if kind == "saved":
        path = str(tmp_path / "saved")
        Dataset.from_list(rows).save_to_disk(path)
    assert "".join(row["prompt"] for row in rows_of(path, split=split)) == texts
    with pytest.raises(InputError, match="--streaming"):
        rows_of(path, split=split, streaming=True)
    with pytest.raises(InputError, match="validation"):
        rows_of(path, split="validation")


def test_what_was_saved_to_disk(tmp_path):
    train, test = (Dataset.from_dict({"prompt": [text]}) for text in "ab")
    train.save_to_disk(tmp_path / "one")
    assert both_ways(tmp_path / "one") == [{"prompt": "a"}]
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "two")
    assert both_ways(tmp_path / "two", split="test") == [{"prompt": "b"}]
    with pytest.raises(InputError, match="'dev'.*train, test"):
        rows_of(tmp_path / "two", split="dev")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.bz2", "a.jsonl.xz"])
@pytest.mark.parametrize("folder", [False, True])
def test_compressed_files(tmp_path, name, folder):
    text = b'{"prompt": "007"}\n' if "jsonl" in name else b"prompt\n007\n"
    compress = {"gz": gzip, "bz2": bz2, "xz": lzma}[name.rpartition(".")[2]].compress
    (tmp_path / name).write_bytes(compress(text))
    assert rows_of(tmp_path if folder else tmp_path / name) == [{"prompt": "007"}]
    (tmp_path / "b.jsonl").write_bytes(compress(text))
    with pytest.raises(InputError, match=r"b\.jsonl: this is a \w+ file"):
        rows_of(tmp_path / "b.jsonl")


def test_brackets_in_names(tmp_path):
    folder = tmp_path / "run [v2]"
    lines(folder / "part[1].jsonl", [{"prompt": "a"}])
    lines(folder / "part1.jsonl", [{"prompt": "b"}])
    assert both_ways(folder / "part[1].jsonl") == [{"prompt": "a"}]
    assert both_ways(tmp_path / "run [v2]" / "part*.jsonl") != []
    with pytest.raises(InputError, match=r"\[.*\]"):
        rows_of(folder)


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    """Also with the same size and time stamp, alone and in a folder."""
    file = tmp_path / "train.jsonl"
    for text in "ab":
        lines(file, [{"prompt": text}])
        os.utime(file, ns=(10**18, 10**18))
        assert rows_of(file) == rows_of(tmp_path) == [{"prompt": text}]


def test_a_card_of_the_folder_still_counts(tmp_path):
    """Which files are which split, and how a CSV is delimited; not which types they have."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: c\n  sep: ';'\n  data_files:\n  - split: dev\n"
        "    path: x.csv\n---\n"
    )
    (tmp_path / "x.csv").write_text("prompt;n\na,b;01\n")
    assert both_ways(tmp_path, name="c", split="dev") == [{"prompt": "a,b", "n": "01"}]


def test_texts_of_a_dataset_on_the_hub(hub, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("org/p", repo_type="dataset")
    for name, text in (("train.jsonl", '{"prompt": "1969-07-16"}\n'), ("test.jsonl", '{"x": 1}\n')):
        api.upload_file(
            path_or_fileobj=text.encode(), path_in_repo=name, repo_id="org/p", repo_type="dataset"
        )
    assert load_table("org/p")[0] == {"prompt": "1969-07-16", "x": None}
    assert next(iter(load_table("org/p", streaming=True)))["prompt"] == "1969-07-16"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["large", "view", "dictionary"],
)
def test_arrow_types_of_others(tmp_path, kind, streaming):
    texts = [pa.array(["a?", "b?"]).cast(kind), pa.array(["01", None]).cast(kind)]
    pq.write_table(pa.table(texts, names=["prompt", "answer"]), tmp_path / "t.parquet")
    rows = load_prompts(str(tmp_path / "t.parquet"), answer_column="answer", streaming=streaming)
    assert [(row["messages"][0]["content"], row["answer"]) for row in rows] == [
        ("a?", "01"),
        ("b?", None),
    ]


def test_messages_in_large_lists(tmp_path):
    message = pa.struct([("content", pa.large_string()), ("role", pa.large_string())])
    cells = pa.array([[{"role": "user", "content": "a?"}]], pa.large_list(message))
    pq.write_table(pa.table({"messages": cells}), tmp_path / "t.parquet")
    for streaming in (False, True):
        rows = list(load_prompts(str(tmp_path / "t.parquet"), streaming=streaming))
        assert rows[0]["messages"] == [{"role": "user", "content": "a?"}]


def test_a_stream_of_parquet_that_does_not_fit_together(tmp_path):
    for i, value in enumerate([1, "x"]):
        Dataset.from_dict({"prompt": ["p"], "v": [value]}).to_parquet(tmp_path / f"{i}.parquet")
    with pytest.raises(InputError, match=r"parquet"):
        list(load_prompts(str(tmp_path / "*.parquet"), streaming=True))


def test_a_stream_of_prompts_has_the_rows_and_types_of_the_table(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": i, "level": i / 2, "tags": [str(i)]} for i in range(2500)]
    file = lines(tmp_path / "t.jsonl", rows)
    table = load_prompts(file, answer_column="answer")
    stream = load_prompts(file, answer_column="answer", streaming=True)
    assert list(stream) == table.to_list() and stream.features == table.features
    assert table.features["answer"] == Value("string")
    first = next(stream.iter(batch_size=7))
    assert Dataset.from_dict(first, features=stream.features).to_list() == table.to_list()[:7]


def test_our_own_tables_are_read_back(tmp_path):
    """What we write as Parquet has the types of our schema, whatever the values look like."""
    features = Features({"answer": Value("string"), "score": Value("float32")})
    Dataset.from_dict({"answer": ["01"], "score": [0.1]}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    assert load_table(str(tmp_path)).features == features
    assert load_dataset(str(tmp_path), split="train").features == features


@pytest.mark.slow
def test_a_large_parquet_file_is_read_row_group_by_row_group(tmp_path):
    """In a process of its own, whose memory is what reading took."""
    file = tmp_path / "texts.parquet"
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(file, pa.schema([("prompt", pa.string())])) as writer:
        for _ in range(1_500):
            letters = draw.integers(97, 123, (8, 20_000), dtype=np.uint8)
            writer.write_table(pa.table({"prompt": [row.tobytes().decode() for row in letters]}))
    program = """
import sys, threading, time
from pathlib import Path
from persyn_datasets.data.tables import load_table

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

most = before = anonymous()
def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
load_table(sys.argv[1])
print(most - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 0.6 * file.stat().st_size
