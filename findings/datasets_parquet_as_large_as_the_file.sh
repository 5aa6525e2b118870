#!/usr/bin/env bash
# datasets==5.2.0, pyarrow==26.0.1, 2026-11-27
#
# Expected: load_dataset("parquet", ...) of a local file whose row groups have 160 kB takes a few row
#           groups of memory: it asks Arrow for one batch at a time, with no read-ahead.
# Happens:  it takes as much memory as the file is large. Arrow's Parquet reader fetches every row
#           group when the first is asked for (`pre_buffer`, on by default since it pays on remote
#           storage), and keeps what it fetched until the last. `batch_readahead=0` is not about
#           that. With ParquetFragmentScanOptions(pre_buffer=False) it takes a few, and less time.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
python3 -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pyarrow==26.0.1
export HF_HOME=$PWD/cache HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > load.py <<'PY'
import re
import sys
import threading
import time
from pathlib import Path

import pyarrow.dataset as ds
from datasets import load_dataset

most = 0


def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.01)


options = {}
if sys.argv[1] == "without":
    options["fragment_scan_options"] = ds.ParquetFragmentScanOptions(pre_buffer=False)
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
load_dataset("parquet", data_files="texts.parquet", split="train", **options)
print(most - before)
PY
venv/bin/python - <<'PY'
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

draw = np.random.default_rng(0)
with pq.ParquetWriter("texts.parquet", pa.schema([("text", pa.string())])) as file:
    for _ in range(4_000):
        letters = draw.integers(97, 123, (8, 20_000), dtype=np.uint8)
        file.write_table(pa.table({"text": [row.tobytes().decode() for row in letters]}))
size = os.path.getsize("texts.parquet") // 2**20
took = {}
for how in ("with", "without"):
    done = subprocess.run([sys.executable, "load.py", how], stdout=subprocess.PIPE, check=True)
    took[how] = int(done.stdout)
    print(f"a file of {size} MiB, {how} pre_buffer: {took[how]} MiB of memory")
assert took["without"] < 0.3 * size
assert took["with"] > 0.8 * size, "as expected: this was a surprise in datasets 5.2.0"
PY
