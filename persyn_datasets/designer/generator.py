"""The column at work, row by row."""

import asyncio
from functools import cached_property
from threading import Lock
from typing import Any

from data_designer.engine.column_generators.generators.base import (
    ColumnGeneratorCellByCell,
    ColumnGeneratorWithModelRegistry,
)
from data_designer.errors import DataDesignerError

from persyn_datasets.designer.config import RoutedColumnConfig
from persyn_datasets.router.model import Router
from persyn_datasets.stages.route import Route


class RoutedColumnGenerator(
    ColumnGeneratorCellByCell[RoutedColumnConfig],
    ColumnGeneratorWithModelRegistry[RoutedColumnConfig],
):
    """A row whose model fails stays, with its error: one that raised would be lost for good."""

    def _initialize(self) -> None:
        self._lock = Lock()  # a model takes one batch at a time

    @cached_property
    def _route(self) -> Route:
        return Route(Router.from_pretrained(self.config.router), self.config.model_aliases)

    def _teacher_of(self, prompt: str) -> str:
        with self._lock:
            return str(self._route({"prompt": [prompt]})["teacher"][0])

    def generate(self, data: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(self.agenerate(data))

    async def agenerate(self, data: dict[str, Any]) -> dict[str, Any]:
        name, prompt = self.config.name, str(data[self.config.prompt_column])
        teacher = await asyncio.to_thread(self._teacher_of, prompt)
        text, thought, error = "", "", ""
        try:
            text, trace = await self.get_model(teacher).agenerate(
                prompt=prompt, parser=str, purpose=f"the column {name!r}"
            )
            thought = trace[-1].reasoning_content or ""
        except DataDesignerError as failure:
            error = str(failure)
        added = {"teacher": teacher, "reasoning": thought, "error": error}
        return data | {name: text} | {f"{name}__{key}": value for key, value in added.items()}
