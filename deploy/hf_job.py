# /// script
# requires-python = ">=3.11"
# dependencies = ["persyn-datasets[vllm] @ file:///persyn"]
# ///
"""A build as a job on Hugging Face's machines, from a checkout of this repository:

    hf jobs uv run --flavor a100-large --timeout 24h --secrets HF_TOKEN \\
        -v .:/persyn -v hf://buckets/ORG/BUCKET:/kept \\
        deploy/hf_job.py recipe.yaml --push-to-hub ORG/NAME

`-v .:/persyn` brings this checkout. The bucket keeps the journal, so that the same command goes on
where a job ended, as far as the bucket had its files. Of the arguments, those that end in .yaml
must be files here: they are sent along (a recipe that is none is named without its ending, e.g.
`paper-math`).
"""

import os
import sys

os.environ.setdefault("PERSYN_JOURNAL", "/kept/journal")

from persyn_datasets.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
