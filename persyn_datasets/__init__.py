"""Find, prompt by prompt, the teacher your student learns most from, and let only that teacher answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persyn_datasets.amend import add_teacher as add_teacher
    from persyn_datasets.budget import Budget as Budget
    from persyn_datasets.budget import within_budget as within_budget
    from persyn_datasets.builder import PersynBuilder as PersynBuilder
    from persyn_datasets.errors import BuildError as BuildError
    from persyn_datasets.errors import InputError as InputError
    from persyn_datasets.generate import Generate as Generate
    from persyn_datasets.hub import publish as publish
    from persyn_datasets.pairify import Pairify as Pairify
    from persyn_datasets.prompts import load_prompts as load_prompts
    from persyn_datasets.rank import Rank as Rank
    from persyn_datasets.recipe import Recipe as Recipe
    from persyn_datasets.route import Route as Route
    from persyn_datasets.router import Router as Router
    from persyn_datasets.router import train_router as train_router
    from persyn_datasets.score import Score as Score
    from persyn_datasets.student import Student as Student
    from persyn_datasets.synthesize import Synthesize as Synthesize
    from persyn_datasets.teacher import Price as Price
    from persyn_datasets.teacher import Sampling as Sampling
    from persyn_datasets.teacher import Teacher as Teacher

_HOMES = {
    "amend": ("add_teacher",),
    "budget": ("Budget", "within_budget"),
    "builder": ("PersynBuilder",),
    "errors": ("BuildError", "InputError"),
    "generate": ("Generate",),
    "hub": ("publish",),
    "pairify": ("Pairify",),
    "prompts": ("load_prompts",),
    "rank": ("Rank",),
    "recipe": ("Recipe",),
    "route": ("Route",),
    "router": ("Router", "train_router"),
    "score": ("Score",),
    "student": ("Student",),
    "synthesize": ("Synthesize",),
    "teacher": ("Price", "Sampling", "Teacher"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULE_OF)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import persyn_datasets` loads neither torch nor datasets."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
