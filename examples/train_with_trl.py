"""The same within TRL's own script: route, let the teachers answer, and train on the answers.

python examples/train_with_trl.py ROUTER PROMPTS STUDENT OUTPUT
"""

import sys

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from persyn_datasets import Route, Router, Synthesize


def main(router_path: str, prompts_path: str, student: str, output: str, steps: int = -1) -> None:
    router = Router.from_pretrained(router_path)
    rows = load_dataset(prompts_path, split="train").map(Route(router), batched=True)
    rows = rows.map(Synthesize(router.teachers), batched=True, batch_size=None)
    rows = rows.filter(lambda error: error == "", input_columns="error")

    on_gpu = torch.cuda.is_available()
    # `prompt` and `completion` are conversational: the loss is on the completion alone.
    trainer = SFTTrainer(
        student,
        args=SFTConfig(output, max_steps=steps, max_length=None, bf16=on_gpu, report_to="none"),
        train_dataset=rows.select_columns(["prompt", "completion"]),
    )
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
