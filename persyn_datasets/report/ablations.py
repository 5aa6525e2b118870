"""What a build's router does and would do: on which prompts, with fewer calibration prompts, with
another α.

The refits are of the head alone, on what the router's backbone makes of the prompts: of a
fine-tuned backbone, too, which has seen all training prompts. They show how the curve runs; what a
router of another α were, only a build can tell.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets.table import InMemoryTable

from persyn_datasets.config.reward import Reward
from persyn_datasets.data.build import Analysis
from persyn_datasets.data.reasoning import written_length
from persyn_datasets.data.responses import one_row_each, rewards_of
from persyn_datasets.router.metrics import hits
from persyn_datasets.router.model import Router
from persyn_datasets.router.regression import fit_rewards
from persyn_datasets.stages.rank import Rank
from persyn_datasets.store.progress import Bar

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FEWEST = 20  # prompts that a head is fitted to


def analyse(router: Router, calibration: DatasetDict, routed: Dataset, reward: Reward) -> Analysis:
    """JSON values for `persyn report`.

    Args:
        calibration: rows of `Rank`: `train`, which the router learned from, and `test`.
        routed: rows of `Route`, the calibration prompts among them.

    Returns:
        `difficulty` and `length`: `thirds` of the calibration prompts by the mean quality of all
        teachers' answers (the hardest come first) and by their median length in characters;
        `confusion`: how often the router sends a held-out prompt to the i-th of `names` and the
        j-th was its best; `by_size` and `by_alpha`: Hit@1, Hit@3 and the mean quality and
        learnability of what is chosen on held-out prompts, with a head that is fitted to so many
        prompts (all, a half, a quarter …), or to that α; both are empty if there are too few
        prompts to halve.
    """
    train, test = (one_row_each(calibration[part]) for part in ("train", "test"))
    names, n, ranked = router.names, len(train), concatenate_datasets([train, test])
    _, x = router.read(ranked["messages"])
    quality, learnability = (rewards_of(ranked, names, key) for key in ("quality", "learnability"))
    teacher = dict(zip(routed["prompt_id"], routed["teacher"], strict=True))
    chosen = [teacher[key] for key in ranked["prompt_id"]]
    characters = [
        np.median([written_length(r) for r in row if not r["error"]] or [0])
        for row in ranked["responses"]
    ]

    refit = _Refit(ranked, n, names, reward, x, quality, learnability)
    sizes = [n >> i for i in reversed(range(6)) if n >> i >= FEWEST]
    points: list[dict[str, Any]] = []
    if len(sizes) > 1:
        points = [{"prompts": size} for size in sizes] + [{"alpha": alpha} for alpha in ALPHAS]
    curves = []
    with Bar("Analysis", len(points), unit="refitted heads") as bar:
        for point in points:
            size, alpha = int(point.get("prompts", n)), point.get("alpha", reward.alpha)
            curves.append(point | refit(size, alpha))
            bar.update()
    confusion = Counter(zip(chosen[n:], test["best_teacher"], strict=True))
    return {
        "names": names,
        "difficulty": thirds(_mean(quality, axis=-1), chosen),
        "length": thirds(np.array(characters), chosen),
        "confusion": [[confusion[routed_to, best] for best in names] for routed_to in names],
        "by_size": [point for point in curves if "prompts" in point],
        "by_alpha": [point for point in curves if "alpha" in point],
    }


@dataclass(frozen=True)
class _Refit:
    """A head fitted to the first prompts, and judged on all from the n-th on."""

    ranked: Dataset
    n: int
    names: list[str]
    reward: Reward
    x: np.ndarray
    quality: np.ndarray
    learnability: np.ndarray

    def __call__(self, size: int, alpha: float) -> dict[str, float]:
        """Hit@k, and the mean signals of what is chosen; by the reward of this α."""
        table = self.ranked.select_columns(["prompt_id", "responses"]).with_format("arrow")[:]
        rank = Rank(**asdict(replace(self.reward, alpha=alpha)))
        rewards = rewards_of(Dataset(InMemoryTable(rank(table))), self.names)
        scores = fit_rewards(self.x[:size], rewards[:size])(self.x[self.n :])
        chosen = np.arange(len(scores)), scores.argmax(-1)
        return hits(scores, rewards[self.n :]) | {
            "quality": float(_mean(self.quality[self.n :][chosen])),
            "learnability": float(_mean(self.learnability[self.n :][chosen])),
        }


def thirds(measure: np.ndarray, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """The prompts in three parts by a measure, lowest first: its bounds, and how many prompts go to
    each teacher.
    """
    order = [i for i in np.argsort(measure, kind="stable") if not np.isnan(measure[i])]
    parts = [part for part in np.array_split(np.array(order, int), 3) if len(part)]
    return [
        {
            "from": float(measure[part[0]]),
            "to": float(measure[part[-1]]),
            "prompts": len(part),
            "routed": dict(Counter(chosen[i] for i in part).most_common()),
        }
        for part in parts
    ]


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Without the NaN; NaN where there is nothing else."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)
