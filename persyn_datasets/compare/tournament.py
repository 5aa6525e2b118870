"""The tournament: which signal of a teacher's answers predicts what this student gains from them?

A probe is a student that is trained on one teacher's answers to one half of the calibration
prompts, so that nothing is bought for it; the signals come from the other half. Over the teachers,
each signal's mean is correlated with the probes' measured gain.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata

from persyn_datasets.compare.evaluate import Measures
from persyn_datasets.compare.trial import trial
from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.reasoning import KeepReasoning, as_trained
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.data.reasoning import read
from persyn_datasets.data.responses import Responses, rewards_of
from persyn_datasets.stages.rank import COLUMNS, combined_reward

DRAWS = 2000
LEVEL = 0.05
LEAST_TEACHERS = 5
ALPHAS = (0.4, 0.7, 1.0)
Table = Mapping[
    str, np.ndarray
]  # signal → (prompts, teachers), or (teachers,) where no prompt counts


class Correlation(TypedDict):
    """Of a signal with the gain, over teachers. `low` and `high`: the 95% percentile interval of a
    bootstrap over the signal's prompts, the measured texts and the teachers at once.
    """

    rho: float
    low: float
    high: float
    tau: float
    tau_low: float
    tau_high: float


def check(recipe: Recipe) -> None:
    """Raises `InputError` where there are too few teachers for a rank correlation."""
    if len(recipe.teachers) < LEAST_TEACHERS:
        raise InputError(
            f"teachers: found {len(recipe.teachers)}; a correlation over so few says nothing, it "
            f"takes at least {LEAST_TEACHERS}."
        )


def halves(ranked: Dataset) -> tuple[Dataset, Dataset]:
    """The calibration prompts that every teacher answered, in two: for the probes, for the signals.

    Raises:
        BuildError: fewer than two such prompts.
    """
    whole = [all(not r["error"] and r["text"] for r in row) for row in ranked["responses"]]
    rows = ranked.select([i for i, every in enumerate(whole) if every])
    if len(rows) < 2:
        raise BuildError(
            f"Only {len(rows)} of {len(ranked)} calibration prompts were answered by all teachers; "
            "probes and signals need some each."
        )
    return rows.select(range(len(rows) // 2)), rows.select(range(len(rows) // 2, len(rows)))


def probes(
    rows: Dataset, teachers: Sequence[str], keep: KeepReasoning = "inline"
) -> dict[str, Dataset]:
    """teacher → its first answer to each prompt, as `prompt` and `completion`."""
    of_teacher: dict[str, list[dict[str, Any]]] = {name: [] for name in teachers}
    for messages, responses in zip(rows["messages"], rows["responses"], strict=True):
        first = {r["teacher"]: read(r, as_trained(keep)) for r in reversed(responses)}
        for name in teachers:
            completion = [{"role": "assistant", "content": first[name]}]
            of_teacher[name].append({"prompt": messages, "completion": completion})
    return {name: Dataset.from_list(examples) for name, examples in of_teacher.items()}


def signals(recipe: Recipe, rows: Dataset) -> dict[str, np.ndarray]:
    """Every signal of the responses, larger is better (RSR with a minus), (prompts, teachers); the
    teachers' sizes and whether they are of the student's family, (teachers,), where that is stated.
    """
    names = [t.name for t in recipe.teachers]
    table = {"quality": rewards_of(rows, names, "quality")}
    for name, column in COLUMNS.items():
        if column != "target" or recipe.target:
            sign = -1 if column == "rsr" else 1
            table[name] = sign * rewards_of(rows, names, column)
    table["reward"] = rewards_of(rows, names)
    table["length"] = _characters(rows, names)
    sizes = np.array([np.nan if t.size is None else t.size for t in recipe.teachers])
    if not np.isnan(sizes).any():
        table["size"] = sizes
    if recipe.student.family:
        table["same family"] = np.array(
            [float(t.family == recipe.student.family) for t in recipe.teachers]
        )
    return {name: values for name, values in table.items() if np.ptp(_mean(values)) > 0}


def _characters(rows: Dataset, names: Sequence[str]) -> np.ndarray:
    """Lengths of the responses; teachers count tokens each in their own way."""
    column = rows.select_columns("responses").with_format("arrow")[:]["responses"]
    responses = Responses(column)
    texts = [responses.field(name).to_pylist() for name in ("text", "reasoning")]
    lengths = np.array([len(text) + len(thought) for text, thought in zip(*texts, strict=True)])
    places = {name: i for i, name in enumerate(responses.names.to_pylist())}
    return responses.teachers(lengths)[:, [places[name] for name in names]]


def candidates(recipe: Recipe, table: Table) -> dict[tuple[str, float], np.ndarray]:
    """(learnability, α) → the combined reward, (prompts, teachers): what a recipe could say."""
    r_q, normalize = table["quality"], recipe.reward.normalize
    rewards = {("log-probability", 0.0): combined_reward(r_q, r_q, 0.0, normalize)}
    for name in COLUMNS:
        for alpha in ALPHAS if name in table else ():
            rewards[name, alpha] = combined_reward(r_q, table[name], alpha, normalize)
    return {key: values for key, values in rewards.items() if np.ptp(_mean(values)) > 0}


def correlations(table: Table, gains: np.ndarray, level: float = LEVEL) -> dict[str, Correlation]:
    """Spearman's ρ and Kendall's τ-b of each signal's mean with the mean gain, over teachers.

    Args:
        gains: (texts, teachers).
        level: of the intervals, 1 − coverage.
    """
    found: dict[str, Correlation] = {}
    edges = [100 * level / 2, 100 - 100 * level / 2]
    # The same draw of teachers for gain and signal; texts and prompts are drawn for themselves.
    teachers = np.random.default_rng(0).integers(0, gains.shape[1], (DRAWS, gains.shape[1]))
    gain = np.take_along_axis(_drawn(gains, seed=1), teachers, -1)
    for name, values in table.items():
        drawn = np.take_along_axis(_drawn(values, seed=2), teachers, -1)
        rhos, taus = _spearman(drawn, gain), _kendall(drawn, gain)
        low, high = np.nanpercentile(rhos, edges)
        tau_low, tau_high = np.nanpercentile(taus, edges)
        of_all = _mean(values)[None], gains.mean(0)[None]
        found[name] = Correlation(
            rho=float(_spearman(*of_all)[0]),
            low=float(low),
            high=float(high),
            tau=float(_kendall(*of_all)[0]),
            tau_low=float(tau_low),
            tau_high=float(tau_high),
        )
    return found


def _mean(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else np.nanmean(values, 0)


def _drawn(values: np.ndarray, seed: int) -> np.ndarray:
    """Teachers' means over rows drawn with replacement, (draws, teachers)."""
    if values.ndim == 1:
        return np.broadcast_to(values, (DRAWS, len(values)))
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
    there = ~np.isnan(values)
    total, weight = counts @ np.where(there, values, 0), counts @ there
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row, (rows,); NaN where one side is constant."""
    a, b = (rankdata(v, axis=-1) for v in (x, y))
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """τ-b row by row, (rows,); NaN where one side is constant."""
    a, b = (np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y))
    scale = np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))
    return np.divide((a * b).sum((1, 2)), scale, out=np.full(len(x), np.nan), where=scale > 0)


def with_length(values: np.ndarray, length: np.ndarray) -> float:
    """Spearman's ρ with the length of the responses within a prompt, mean over prompts."""
    both = ~np.isnan(values) & ~np.isnan(length)
    rows = [(v[k], n[k]) for v, n, k in zip(values, length, both, strict=True) if k.sum() > 2]
    return float(np.nanmean([_spearman(v[None], n[None])[0] for v, n in rows]))


def picks(values: np.ndarray, ours: np.ndarray) -> float:
    """The share of prompts whose best response by this signal is of one of our teachers."""
    answered = ~np.isnan(values).all(-1)
    return float(ours[np.nanargmax(values[answered], -1)].mean())


def hold(
    recipe: Recipe, ranked: Dataset, output: Path, seeds: int, before: Measures
) -> dict[str, Any]:
    """Train and measure the probes, then `play`.

    Args:
        ranked: the calibration.
        before: the untrained student's measures.

    Returns:
        What `play` does, and `cost`: `probes`, and of all of them `examples`, `steps`, `tokens` and
        `seconds` of training.
    """
    trained_on, rows = halves(ranked)
    gains: dict[str, list[np.ndarray]] = {measure: [] for measure in before}
    cost: dict[str, Any] = {"probes": 0, "examples": 0, "steps": 0, "tokens": 0, "seconds": 0.0}
    for examples in probes(trained_on, _names(recipe), recipe.keep_reasoning).values():
        runs = [trial(recipe, examples, seed, output) for seed in range(seeds)]
        for measure, values in before.items():
            after = np.mean([[run[measure][key] for key in values] for run, _ in runs], axis=0)
            gains[measure].append(after - np.array(list(values.values())))
        cost["probes"] += seeds
        for key in ("examples", "steps", "tokens", "seconds"):
            cost[key] += sum(facts.get(key, 0) for _, facts in runs)
    stacked = {measure: np.stack(values, axis=-1) for measure, values in gains.items()}
    return play(recipe, rows, stacked) | {"cost": cost}


def play(recipe: Recipe, rows: Dataset, gains: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tournament's numbers.

    Args:
        rows: the calibration prompts that no probe was trained on, scored and ranked.
        gains: measure → trained minus untrained student, (texts, teachers). The first measure
            decides.

    Returns:
        `teachers`: name → its mean of each signal, and `gain`: measure → mean;
        `signals`: measure → signal → `Correlation`;
        `with_length` and `same_family`: signal → see the functions of these names;
        `candidates`: [`learnability`, `alpha`, `Correlation`], intervals corrected for their number
        (Bonferroni); `winner`: that of the largest ρ whose corrected interval is above 0, else
        None; `measure`: the deciding one.
    """
    table = signals(recipe, rows)
    per_prompt = {name: values for name, values in table.items() if values.ndim == 2}
    measure = next(iter(gains))
    rewards = candidates(recipe, table | {"quality": rewards_of(rows, _names(recipe), "quality")})
    # Bonferroni: the best of many candidates must not be proven by being the best of many.
    level = LEVEL / len(rewards)
    judged = correlations({str(k): v for k, v in rewards.items()}, gains[measure], level)
    lines: list[dict[str, Any]] = [
        {"learnability": key[0], "alpha": key[1], **judged[str(key)]} for key in rewards
    ]
    proven = [line for line in lines if line["low"] > 0]
    same = table.get("same family")
    return {
        "prompts": len(rows),
        "measure": measure,
        "teachers": {
            name: {key: float(_mean(values)[i]) for key, values in table.items()}
            | {"gain": {m: float(values[:, i].mean()) for m, values in gains.items()}}
            for i, name in enumerate(_names(recipe))
        },
        "signals": {m: correlations(table, values) for m, values in gains.items()},
        "with_length": {
            name: with_length(values, table["length"])
            for name, values in per_prompt.items()
            if "length" in table and name != "length"
        },
        "same_family": {
            name: picks(values, same) for name, values in per_prompt.items() if same is not None
        },
        "candidates": lines,
        "winner": max(proven, key=lambda line: line["rho"], default=None),
    }


def _names(recipe: Recipe) -> list[str]:
    return [t.name for t in recipe.teachers]
