#!/usr/bin/env bash
# datasets==5.2.0, 2026-11-27
#
# Expected: load_dataset("second/dataset") gives the rows of that folder.
# Happens:  it gives those of first/dataset, which was loaded before, without a word. A local folder
#           with `configs:` in its README.md is cached under the folder's last name and these
#           entries alone: neither its path nor its files count. Without the README.md, and with
#           streaming=True, the rows are right.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pyarrow==26.0.1
export HF_HOME=$PWD/cache HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train.parquet
---
"""
for name in ("first", "second"):
    for kind, card in (("dataset", CARD), ("plain", "")):
        folder = Path(name, kind)
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text(card)
        pq.write_table(pa.table({"written in": [name]}), folder / "data/train.parquet")


def read(folder, **options):
    found = [row["written in"] for row in load_dataset(folder, split="train", **options)]
    print(f"{folder} {options or ''}: {found}")
    return found


assert read("first/plain") == ["first"] and read("second/plain") == ["second"]
assert read("first/dataset") == ["first"]
assert read("second/dataset", streaming=True) == ["second"]
assert read("second/dataset") == ["first"], "as expected: this was a surprise in datasets 5.2.0"
PY
