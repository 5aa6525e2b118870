"""Is routing worth it? In words, from `router.metrics.compare`.

A claim needs enough prompts, an interval without 0 and a paired test.
"""

from persyn_datasets.data.build import Metrics
from persyn_datasets.report.tables import table
from persyn_datasets.router.metrics import GROUP, NEAREST, RANDOM, SHARES, SINGLE
from persyn_datasets.store.statistics import Interval

FEWEST_PROMPTS = 30  # a percentile interval of 15 covers 88%, not 95%
LEVEL = 0.05
WORTH_SEEING = 0.02  # reward per prompt: the lead that the remedy's number of prompts would show
LINES = (RANDOM, SHARES, GROUP, NEAREST, SINGLE)


def verdict(metrics: Metrics) -> str:
    """Does routing beat sending everything to the best single teacher? Plainly."""
    single, a = metrics["best_single_teacher"], _against(metrics, SINGLE)
    on = judged_on(metrics)
    if metrics["prompts"] < FEWEST_PROMPTS:
        return (
            f"No verdict: {on} are too few to judge a router; it takes at least {FEWEST_PROMPTS}. "
            f"{_remedy(metrics)}"
        )
    routed = metrics.get("routed", {})
    if len(routed) == 1:
        (only,) = routed
        if only == single:
            return f"The router sends everything to {single}, the best single teacher ({on})."
        return f"The router sends everything to {only}: {_interval(a)} against {single}, {on}."
    found = f"{_interval(a)}, {on}{_differs(a)}"
    if proven(a):
        return f"Routing beats sending everything to the best single teacher, {single}: {found}."
    if proven(a, worse=True):
        return f"Routing is worse than sending everything to {single}: {found}. Use {single} alone."
    return (
        f"Not significantly better than sending everything to {single}: {found}. "
        f"{_remedy(metrics)} Or use {single} alone."
    )


def proven(a: Interval, worse: bool = False) -> bool:
    """By the interval and by the paired test (metrics of version 0.1.0 have no test)."""
    beyond_0 = a["high"] < 0 if worse else a["low"] > 0
    return bool(beyond_0 and a.get("p", 0.0) < LEVEL)


def prompts_needed(a: Interval, prompts: int, lead: float = WORTH_SEEING) -> int:
    """How many held-out prompts show a true lead half of the time: (1.96·s / lead)².

    s is the standard deviation of the prompts' differences, by the width of their interval.
    """
    of_mean = (a["high"] - a["low"]) / (2 * 1.96)
    return round((1.96 * of_mean / lead) ** 2 * prompts)


def verdict_table(metrics: Metrics) -> str:
    """The router's lead over each line that it must be judged by."""
    rows = []
    for name in LINES:
        if (a := metrics.get("against", {}).get(name)) is None:
            continue
        label = f"{name} ({metrics['best_single_teacher']})" if name == SINGLE else name
        answer = "yes" if proven(a) else "it is worse" if proven(a, worse=True) else "no"
        enough = metrics["prompts"] >= FEWEST_PROMPTS
        rows.append(
            [
                label,
                f"{a['mean']:+.3f}",
                f"{a['low']:+.3f} to {a['high']:+.3f}",
                f"{a['p']:.3f}",
                f"{a['differs']:,}",
                answer if enough else "too few prompts",
            ]
        )
    head = ["against", "lead", "95% interval", "p", "prompts where the choice differs", "proven"]
    return table(head, rows) if rows else ""


def _against(metrics: Metrics, line: str) -> Interval:
    return metrics.get("against", {}).get(line) or metrics["advantage"]


def judged_on(metrics: Metrics) -> str:
    """By which prompts: those held out, or all, each by a fit to the others."""
    n = metrics["prompts"]
    if metrics.get("cross_fitted"):
        return f"cross-fitted over {n:,} calibration prompts"
    return f"on {n:,} held-out prompts"


def _differs(a: Interval) -> str:
    return (
        f" (on {a['differs']:,} of them the choice differs; p = {a['p']:.3f})" if "p" in a else ""
    )


def _remedy(metrics: Metrics) -> str:
    a, n = _against(metrics, SINGLE), metrics["prompts"]
    needed = max(prompts_needed(a, n), FEWEST_PROMPTS)
    if needed <= n:
        return f"A lead of {WORTH_SEEING} would most likely have been detected."
    kind = "calibration" if metrics.get("cross_fitted") else "held-out"
    half = f"Detecting a lead of {WORTH_SEEING} half of the time"
    return f"{half} takes about {needed:,} {kind} prompts."


def _interval(a: Interval) -> str:
    return f"{a['mean']:+.3f} reward per prompt [95% interval {a['low']:+.3f} to {a['high']:+.3f}]"
