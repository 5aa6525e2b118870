"""The column, as a Data Designer configuration states it."""

from typing import Literal

from data_designer.config.base import SingleColumnConfig


class RoutedColumnConfig(SingleColumnConfig):
    """A column of answers to `prompt_column`, one user message each.

    `router` is the folder of a router or its id on the Hub. `model_aliases` are those of its
    teachers that are available, each the alias of a model in your Data Designer configuration.
    Beside the answers it adds NAME__teacher, NAME__reasoning and NAME__error.
    """

    column_type: Literal["persyn-routed"] = "persyn-routed"
    router: str
    prompt_column: str
    model_aliases: list[str]

    @property
    def required_columns(self) -> list[str]:
        return [self.prompt_column]

    @property
    def side_effect_columns(self) -> list[str]:
        return [f"{self.name}__{what}" for what in ("teacher", "reasoning", "error")]

    def get_model_aliases(self) -> list[str]:
        return self.model_aliases
