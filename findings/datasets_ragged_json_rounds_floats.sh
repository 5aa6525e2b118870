#!/usr/bin/env bash
# datasets==5.2.0, 2026-11-27
#
# Expected: a column of floats in a .jsonl file has the same values whatever another column holds.
# Happens:  one row whose `meta` has other keys makes `meta` a Json column, and the whole file is
#           encoded again with 10 decimals: 3e-12 becomes 0.0, in every row and in columns that have
#           nothing to do with `meta`. Where texts and numbers stand in one column, the text "007"
#           becomes the number 7. Nothing is said.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
export HF_HOME=$PWD/cache HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import json
from pathlib import Path

from datasets import load_dataset


def read(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_dataset("json", data_files=name, split="train")
    print(f"{name}: {found.to_list()}  {found.features}")
    return found


alike = [{"p": 3e-12, "meta": {"a": 1}}, {"p": 4e-12, "meta": {"a": 2}}]
ragged = [*alike, {"p": 5e-12, "meta": {"b": 3}}]
assert read("alike.jsonl", alike)["p"][:] == [3e-12, 4e-12]
zeros = read("ragged.jsonl", ragged)["p"][:]
numbers = read("mixed.jsonl", [{"answer": "007"}, {"answer": 8}])["answer"][:]
assert (zeros, numbers) == ([0.0] * 3, [7, 8]), "another outcome than in datasets 5.2.0"
PY
