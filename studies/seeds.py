"""Two strategies' students against each other, over texts or problems and over seeds."""

import numpy as np

from persyn_datasets.store.statistics import paired

DRAWS = 9_999


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Over the seeds that both have, (seeds, problems): the mean, its 95% percentile interval by a
    bootstrap over problems and seeds, and p by sign flips of the problems' differences.
    """
    seeds = min(len(ours), len(theirs))
    ours, theirs = ours[:seeds], theirs[:seeds]
    apart, n = ours - theirs, ours.shape[1]
    draw = np.random.default_rng(0)
    problems = draw.multinomial(n, np.full(n, 1 / n), DRAWS) / n
    weights = draw.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    means = ((problems @ apart.T) * weights).sum(-1)
    low, high = np.percentile(means, [2.5, 97.5])
    p = paired(ours.mean(0), theirs.mean(0))["p"]
    return {"mean": float(apart.mean()), "low": low, "high": high, "p": p, "seeds": seeds}
