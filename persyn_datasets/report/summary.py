"""What a build ends with: a screen of 80 columns. All tables are in `persyn report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.data.build import Build, Metrics
from persyn_datasets.report.tables import TERMINAL, cut
from persyn_datasets.report.text import fill, notes, outcome, saved
from persyn_datasets.report.verdict import judged_on, proven, verdict
from persyn_datasets.router.metrics import ORACLE, RANDOM, SINGLE

TEACHERS = 8  # that are listed
NAME, BAR = 32, 30  # characters


def summary(recipe: Recipe, stats: Build, output: Path) -> str:
    """Who answers how much, the verdict, the cost, and where everything is."""
    answered = stats["rows"] - stats["failed"]
    who = STRATEGIES[recipe.strategy]
    lines = [fill(f"{recipe.title}: {answered:,} prompts, each answered by {who}.")]
    if stats["failed"]:
        failed = f"{stats['failed']:,} prompts failed (split 'failed')"
        lines.append(f"{failed}. The same command asks them again.")
    lines += [fill(note) for note in notes(stats)]
    lines += ["", *_shares(stats), ""]
    if router := stats["router"]:
        lines.append(fill(_rewards(router)))
    lines += [fill(outcome(recipe, stats)), fill(saved(stats)), ""]
    lines.append(f"Dataset  load_dataset('{output / 'dataset'}')")
    if stats["router"]:
        lines.append(f"Router   {output / 'router'}")
    lines.append(f"Tables, figures and a page:  persyn report {output}")
    return "\n".join(lines)


def demo(stats: Build, examples: Sequence[dict[str, Any]], output: Path, page: Path) -> str:
    """Three rows, the verdict, the page, and what to do next."""
    lines = [""]
    for example in examples:
        said = next((a for a in example["answers"] if a["teacher"] == example["chosen"]), None)
        lines.append(cut(example["prompt"], TERMINAL))
        lines.append(cut(f"  {example['chosen']}: {_line(said['text'] if said else '')}", TERMINAL))
    if router := stats["router"]:
        lines += [fill(_against_random(router)), fill(verdict(router))]
    lines += [
        f"Page  {page}",
        f"Next  persyn report {output}; your own: persyn build recipe.yaml",
    ]
    return "\n".join(lines)


def _shares(stats: Build) -> list[str]:
    """A bar for each teacher, those with most prompts first."""
    teachers = sorted(stats["per_teacher"].items(), key=lambda item: -item[1]["routed"])
    width = min(NAME, max(len(name) for name, _ in teachers))
    most = max(t["routed"] for _, t in teachers) or 1
    lines = []
    for name, t in teachers[:TEACHERS]:
        bar = "█" * round(BAR * t["routed"] / most)
        share = t["routed"] / stats["rows"]
        lines.append(f"  {cut(name, width):{width}} {t['routed']:>9,} {share:>4.0%} {bar}")
    if rest := teachers[TEACHERS:]:
        routed = sum(t["routed"] for _, t in rest)
        lines.append(f"  {f'{len(rest)} others':{width}} {routed:>9,}")
    return [line.rstrip() for line in lines]


def _rewards(router: Metrics) -> str:
    r = router["reward"]
    return (
        f"Mean reward, {judged_on(router)}: router {r['router']:.3f}, best "
        f"single teacher {r[SINGLE]:.3f}, random {r[RANDOM]:.3f}, oracle {r[ORACLE]:.3f}."
    )


def _against_random(router: Metrics) -> str:
    a = router["against"][RANDOM]
    how = "beats" if proven(a) else "is not significantly better than"
    return (
        f"The router {how} a random teacher: {a['mean']:+.3f} reward per prompt "
        f"[{a['low']:+.3f} to {a['high']:+.3f}]."
    )


def _line(text: str) -> str:
    return " ".join(text.split())
