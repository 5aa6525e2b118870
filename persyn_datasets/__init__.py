"""Find, prompt by prompt, the teacher your student learns most from, and let only that teacher
answer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persyn_datasets.builder import PersynBuilder as PersynBuilder
    from persyn_datasets.config.errors import BuildError as BuildError
    from persyn_datasets.config.errors import InputError as InputError
    from persyn_datasets.config.recipe import Recipe as Recipe
    from persyn_datasets.config.strategy import Budget as Budget
    from persyn_datasets.config.student import Student as Student
    from persyn_datasets.config.teacher import Price as Price
    from persyn_datasets.config.teacher import Sampling as Sampling
    from persyn_datasets.config.teacher import Teacher as Teacher
    from persyn_datasets.data.prompts import load_prompts as load_prompts
    from persyn_datasets.hub.publish import publish as publish
    from persyn_datasets.router.add_teacher import add_teacher as add_teacher
    from persyn_datasets.router.model import Router as Router
    from persyn_datasets.router.training import train_router as train_router
    from persyn_datasets.stages.generate import Generate as Generate
    from persyn_datasets.stages.pairify import Pairify as Pairify
    from persyn_datasets.stages.rank import Rank as Rank
    from persyn_datasets.stages.route import Route as Route
    from persyn_datasets.stages.score import Score as Score
    from persyn_datasets.stages.synthesize import Synthesize as Synthesize
    from persyn_datasets.strategies.budget import within_budget as within_budget

_HOMES = {
    "builder": ("PersynBuilder",),
    "config.errors": ("BuildError", "InputError"),
    "config.recipe": ("Recipe",),
    "config.student": ("Student",),
    "config.teacher": ("Price", "Sampling", "Teacher"),
    "config.strategy": ("Budget",),
    "data.prompts": ("load_prompts",),
    "hub.publish": ("publish",),
    "router.add_teacher": ("add_teacher",),
    "router.model": ("Router",),
    "router.training": ("train_router",),
    "stages.generate": ("Generate",),
    "stages.pairify": ("Pairify",),
    "stages.rank": ("Rank",),
    "stages.route": ("Route",),
    "stages.score": ("Score",),
    "stages.synthesize": ("Synthesize",),
    "strategies.budget": ("within_budget",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import persyn_datasets` loads neither
    torch nor datasets.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
