"""A router in a plain `datasets` script: each prompt is answered by its own teacher.

    python examples/route_and_synthesize.py ROUTER PROMPTS OUTPUT

ROUTER is the folder of a router or its id on the Hub, PROMPTS what `load_dataset` reads, with a
column `prompt` or `messages`.
"""

import sys
from collections import Counter

from datasets import load_dataset

from persyn_datasets import Route, Router, Synthesize


def main(router_path: str, prompts_path: str, output: str) -> None:
    router = Router.from_pretrained(router_path)
    prompts = load_dataset(prompts_path, split="train")

    routed = prompts.map(Route(router), batched=True)
    answered = routed.map(Synthesize(router.teachers), batched=True, batch_size=None)

    print(Counter(answered["teacher"]))
    whole = answered.filter(lambda error: error == "", input_columns="error")
    whole.select_columns(["prompt", "completion", "teacher"]).to_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
