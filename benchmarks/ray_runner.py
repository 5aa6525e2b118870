"""One endpoint teacher, asked by the local runner, from a Ray cluster, and from one that loses a
node on the way.

python benchmarks/ray_runner.py [--prompts 3000] [--concurrency 64] [--latency 0.2]

The cluster is two nodes on this machine; the server is that of endpoint.py, in a process of its
own, and the rate is the server's: prompts per second from the first request to the last answer, so
that no start-up counts. A node that has work is killed when a tenth of the prompts were asked. The
results must be equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray
from datasets import Dataset
from datasets.utils import disable_progress_bars
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from persyn_datasets import Sampling, Synthesize, Teacher
from persyn_datasets.data import schema
from persyn_datasets.report.tables import table
from persyn_datasets.runners import local as runner

LABELS = ("local", "Ray, 2 nodes", "Ray, a node is killed")
ENDPOINT = Path(__file__).with_name("endpoint.py")
PROMPT = (
    "Question {}: which of these numbers is the largest, and how do you know? "
    + "12 7 45 30 21 " * 10
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    options = parser.parse_args()
    disable_progress_bars()
    serve = [sys.executable, str(ENDPOINT), "--serve", "--latency", str(options.latency)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)

    names = [f"m{i}" for i in range(3)]  # so that none finds another's answers in the journal
    rows = [
        Dataset.from_dict(
            {
                "prompt": [PROMPT.format(i) for i in range(options.prompts)],
                "teacher": [name] * options.prompts,
            }
        )
        for name in names
    ]
    cells, rates, answers = [], {}, []
    try:
        with tempfile.TemporaryDirectory() as root:
            os.environ["PERSYN_JOURNAL"] = root
            for label, name, of_name in zip(LABELS, names, rows, strict=True):
                teacher = Teacher(
                    name,
                    engine="endpoint",
                    base_url=url,
                    concurrency=options.concurrency,
                    sampling=Sampling(max_tokens=512),
                )
                killer = threading.Thread(
                    target=kill, args=(cluster, nodes, url, options.prompts), daemon=True
                )
                if "killed" in label:
                    killer.start()
                stage, where = (
                    Synthesize([teacher], max_failed=0),
                    "local" if label == "local" else "ray",
                )
                made = runner.run(of_name, stage, schema.SYNTHESIZED, where, batch_size=None)
                assert not killer.is_alive()
                stats = fetch(f"{url}/stats")
                rates[label] = options.prompts / stats["seconds"]
                repeated = len(stats["asked"]) - len(set(stats["asked"]))
                cells.append(
                    [
                        label,
                        f"{rates[label]:,.0f}",
                        f"{rates[label] / rates['local']:.2f}",
                        f"{repeated}",
                    ]
                )
                answers.append([row[0]["content"] for row in made["completion"]])
    finally:
        ray.shutdown()
        cluster.shutdown()
        server.terminate()
    assert answers[0] == answers[1] == answers[2]
    print(table(["runner", "prompts/s", "of local", "asked again"], cells))
    print(json.dumps({label: round(rate, 1) for label, rate in rates.items()}))


def kill(cluster: Cluster, nodes: list[Any], url: str, prompts: int) -> None:
    while len(fetch(f"{url}/stats?keep")["asked"]) < prompts / 10:
        time.sleep(0.2)
    free = (
        available_resources_per_node()
    )  # Ray sometimes puts all actors on one node: it is that one
    cluster.remove_node(
        min(nodes, key=lambda node: free[node.node_id]["CPU"]), allow_graceful=False
    )


def fetch(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main()
