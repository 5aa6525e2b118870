"""What a router must be judged by, as assignments that a dataset can be built from.

Each has its router trained and judged beside it, and then assigns without it.
"""

import numpy as np
import pyarrow as pa
from datasets import Dataset

from persyn_datasets.router.crossfit import best_per_group, nearest
from persyn_datasets.router.model import Router

READ_AT_ONCE = 1000


def reassigned(
    strategy: str,
    routed: Dataset,
    router: Router,
    ranked: Dataset,
    group: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Rows of `Route` with the teachers of another strategy; `router_scores` stay the router's.

    Args:
        strategy: `shares-at-random` deals the router's own choices at random to the prompts, so
            that its shares stay exactly; `best-per-group` and `nearest-neighbours` go by the
            calibration's rewards.
        ranked: rows of `Rank`, the calibration.
        group: the column that says a prompt's group. Default: clusters of what the router reads.
    """
    if strategy == "shares-at-random":
        own = list(routed["teacher"])
        dealt = np.random.default_rng(seed).permutation(len(own))
        return _with_teachers(routed, [own[i] for i in dealt])
    seen = router.calibration(ranked, group).known()
    if strategy == "best-per-group":
        of_group = best_per_group(seen.x, seen.rewards, seen.groups)
    else:
        near = nearest(seen.x, seen.rewards)
        of_group = lambda x, _: near(x)  # noqa: E731
    teachers: list[str] = []
    for start in range(0, len(routed), READ_AT_ONCE):
        rows = routed.select(range(start, min(start + READ_AT_ONCE, len(routed))))
        by_column = group and strategy == "best-per-group"
        groups = np.array([str(value) for value in rows[group]]) if by_column else None
        scores = of_group(router.read(rows["messages"])[1], groups)
        teachers += [router.names[i] for i in scores.argmax(-1)]
    return _with_teachers(routed, teachers)


def _with_teachers(routed: Dataset, teachers: list[str]) -> Dataset:
    order = routed.column_names
    column = pa.array(teachers, pa.string())
    return routed.remove_columns("teacher").add_column("teacher", column).select_columns(order)
