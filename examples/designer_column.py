"""A persyn router within NeMo Data Designer: each row is answered by the model it picks.

    python examples/designer_column.py ROUTER http://host:8000/v1 PROMPTS.jsonl ANSWERS.parquet

The server has a model by the name of each of the router's teachers; PROMPTS has a column `prompt`.
"""

import sys

import data_designer.config as dd
from data_designer.interface import DataDesigner

from persyn_datasets import Router
from persyn_datasets.designer.config import RoutedColumnConfig


def main(router: str, base_url: str, prompts: str, output: str, rows: int = 10) -> None:
    names = Router.from_pretrained(router).names
    models = [dd.ModelConfig(alias=name, model=name, provider="mine") for name in names]
    config = dd.DataDesignerConfigBuilder(model_configs=models)
    config.with_seed_dataset(dd.LocalFileSeedSource(path=prompts))
    config.add_column(
        RoutedColumnConfig(
            name="answer", router=router, prompt_column="prompt", model_aliases=names
        )
    )
    designer = DataDesigner(model_providers=[dd.ModelProvider(name="mine", endpoint=base_url)])
    # One that fails is a row with its error; its other rows are worth having.
    designer.set_run_config(dd.RunConfig(disable_early_shutdown=True))
    designer.preview(config, num_records=rows).dataset.to_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
