"""One page for the browser with all that is known of a build; it needs no network."""

import base64
import json
from pathlib import Path
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.engines.account import account_table
from persyn_datasets.hub import cards
from persyn_datasets.hub.licenses import worked_out
from persyn_datasets.report import measure as report
from persyn_datasets.report.figures import CAPTIONS, draw
from persyn_datasets.report.tables import html_table
from persyn_datasets.report.verdict import verdict_table


def load(output: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and the numbers of a finished build.

    Raises:
        InputError: there is none.
    """
    recipe, stats = (output / "dataset" / name for name in ("recipe.yaml", "stats.json"))
    if not (recipe.exists() and stats.exists()):
        raise InputError(
            f"{output} holds no finished build (dataset/recipe.yaml, dataset/stats.json); run "
            "persyn build."
        )
    return Recipe.load(str(recipe)), json.loads(stats.read_text())


def write(output: Path, recipe: Recipe, stats: dict[str, Any]) -> Path:
    """Write `report/index.html` and its figures; returns the page's path."""
    figures = draw(recipe, stats, output / "report")
    images = {
        f.stem: f"data:image/png;base64,{base64.b64encode(f.read_bytes()).decode()}"
        for f in figures
    }
    page = output / "report" / "index.html"
    page.write_text(
        cards.templates()
        .get_template("report.html")
        .render(
            recipe=recipe,
            stats=stats,
            images=images,
            captions=CAPTIONS,
            student=Path(recipe.student.model).name
            if recipe.student.model in stats["local"]
            else recipe.student.model,
            verdict=report.outcome(recipe, stats),
            who=STRATEGIES[recipe.strategy],
            against=html_table(lines) if (lines := verdict_table(stats["router"] or {})) else "",
            reward=report.reward_words(recipe).replace("`", ""),
            saved=report.saved(stats),
            teachers_table=html_table(report.teachers_table(recipe, stats)),
            size_table=html_table(sizes) if (sizes := report.size_table(recipe, stats)) else "",
            curves=report.CURVES,
            curve_table=html_table(report.curve_table(stats["analysis"]))
            if stats["analysis"]
            else None,
            backbones=html_table(backbones)
            if (backbones := report.backbone_table(stats["analysis"]))
            else "",
            ceiling=report.ceiling_words(stats["router"] or {}),
            router_table=html_table(report.router_table(stats["router"]))
            if stats["router"]
            else None,
            tradeoff=html_table(report.tradeoff_table(stats["tradeoff"]))
            if stats["tradeoff"]
            else None,
            budget=report.budget_words(stats["tradeoff"]) if stats["tradeoff"] else "",
            notes=report.notes(stats),
            estimate=html_table(report.estimate_table(recipe, stats)),
            account=html_table(account_table(stats["account"])),
            license=worked_out(stats["licenses"]),
            text=cards.to_yaml(recipe.to_dict()),
        )
    )
    return page
