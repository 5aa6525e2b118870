"""A budget: what answers will be worth and cost, and the teachers that it allows.

All of it works on the stored `router_scores`: another budget needs no second pass of the router.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from scipy.optimize import lsq_linear
from scipy.special import softmax

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.shares import part_of
from persyn_datasets.config.strategy import Budget
from persyn_datasets.config.teacher import Message, Price, Teacher
from persyn_datasets.data.build import Spend, Tradeoff
from persyn_datasets.data.lengths import lengths
from persyn_datasets.data.responses import one_row_each, rewards_by_prompt
from persyn_datasets.engines import price_of
from persyn_datasets.strategies.assignment import CHUNK, assign, choose, multipliers_of
from persyn_datasets.strategies.second_opinion import Room

POINTS, SAMPLE = 21, 20_000  # of the trade-off curve; prompts that it looks at


class Judge(Protocol):
    """What a budget goes by: who scores the teachers; a `Router` is one."""

    @property
    def names(self) -> list[str]:
        """The teachers, in the order of the scores."""

    @property
    def expected(self) -> Mapping[str, Any]:
        """See `expectations`."""

    def scores(self, prompts: Sequence[list[Message]]) -> np.ndarray:
        """o = π(x) for each prompt, (prompts, teachers)."""


def expectations(router: Judge, held_out: Dataset, ranked: Dataset) -> dict[str, Any]:
    """What a teacher's answer will be worth and how long it will be, as facts for
    `Router.record(expected=…)`.

    Args:
        held_out: rows of `Rank` that the router was not trained on: they give the line of
            `expected_reward`.
        ranked: all rows of `Rank`, for `lengths`.
    """
    worth = mean_win(softmax(router.scores(one_row_each(held_out)["messages"]), -1))
    rewards = rewards_by_prompt(held_out, router.names)
    known = ~np.isnan(rewards)
    intercept, slope = _line(worth[known], rewards[known])
    # Never 0: the router's order still decides where money does not.
    return {
        "reward": {"intercept": intercept, "slope": max(slope, 1e-6)},
        "tokens": lengths(ranked, router.names),
    }


def _line(worth: np.ndarray, rewards: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the line of least squares that stays among the rewards that were seen,
    whatever the worth in [0, 1]: a few prompts of similar worth must not promise a reward of 8.
    """
    if not len(rewards):
        return 0.0, 0.0
    low, high = rewards.min(), rewards.max()
    ends = np.stack([1 - worth, worth], 1)  # what the line's values at 0 and at 1 weigh
    at_0, at_1 = lsq_linear(ends, rewards, bounds=(low, high + 1e-9)).x
    return float(at_0), float(at_1 - at_0)


def mean_win(p: np.ndarray) -> np.ndarray:
    """How often the router expects a teacher to beat another one: the mean of p_i / (p_i + p_j)
    over all j ≠ i.

    Args:
        p: `router_scores`, (prompts, teachers); 0 for a teacher that is not available.

    Returns:
        (prompts, teachers), in [0, 1]; −∞ where p is 0. Ordered as the scores are.
    """
    there = p > 0
    # The loop also meets j = i, where p/(p + p) = 1/2: taken off beforehand.
    wins = np.full_like(p, -0.5)
    for p_j in p.T:
        both = there & (p_j > 0)[:, None]
        wins += np.divide(p, p + p_j[:, None], out=np.zeros_like(p), where=both)
    opponents = np.maximum(there.sum(-1, keepdims=True) - 1, 1)
    return np.where(there, wins / opponents, -np.inf)


def expected_reward(p: np.ndarray, line: Mapping[str, float]) -> np.ndarray:
    """E[r(x, M)], (prompts, teachers), of `router_scores`.

    Bradley–Terry scores order teachers; they are not rewards. `mean_win` is what they say of a
    teacher's normalised rank on the prompt, and a line of least squares, fitted on held-out
    calibration prompts, takes it to rewards. A given budget is spent alike whatever the line: it
    only puts the result, and λ, in units of reward.
    """
    return line["intercept"] + line["slope"] * mean_win(p)


def expected_cost(
    characters: np.ndarray,
    names: Sequence[str],
    expected: Mapping[str, Any],
    unit: str,
    prices: Mapping[str, Price | None],
) -> np.ndarray:
    """What the answer of each teacher will cost, float32 (prompts, teachers), in USD or tokens.

    Args:
        characters: of each prompt.
        prices: by teacher; None is free.
    """
    cost = np.empty((len(characters), len(names)), np.float32)
    for i, name in enumerate(names):
        of = expected["tokens"][name]
        prompt = np.maximum(of["prompt"] + of["per_character"] * characters, 0)
        # USD are per million tokens: at 10⁶ a token costs 1, so that the same sum counts tokens.
        price = (prices.get(name) or Price(0, 0)) if unit == "usd" else Price(1e6, 1e6)
        cost[:, i] = price.of(prompt, of["completion"])
    return cost


def within_budget(
    routed: Dataset,
    router: Judge,
    budget: Budget,
    teachers: Sequence[Teacher],
    answered: Collection[str] = (),
) -> tuple[Dataset, Spend]:
    """Rows of `Route` with the teachers that a budget allows, and what is expected of them.

        routed, expected = within_budget(routed, router, Budget(usd=200), router.teachers)

    Args:
        router: the one that routed them; it knows what its teachers' answers are worth and cost
            (`expectations`).
        teachers: with their prices.
        answered: ids of prompts that every teacher has answered: these answers cost nothing.

    Returns:
        The rows with another `teacher`; and `spend` in `unit`, `reward` (mean), `multiplier` λ
        (reward that one more USD or token buys) and `gap` (mean reward that is at most missing to
        the best assignment).

    Raises:
        InputError: the budget is too small, or `router` does not know what answers cost.
    """
    names = router.names
    reward, cost = estimates(routed, router, budget.unit, teachers, answered)
    caps = _caps(budget, names, len(routed))
    try:
        choice, multiplier, gap = assign(reward, cost, budget.limit, caps)
    except InputError as error:
        raise InputError(f"budget ({budget.unit}): {error}") from error
    teacher = [names[i] for i in choice]
    chosen = choice[:, None]
    expected: Spend = {
        "unit": budget.unit,
        "spend": float(np.take_along_axis(cost, chosen, 1).sum(dtype=float)),
        "reward": float(np.take_along_axis(reward, chosen, 1).mean(dtype=float)),
        "multiplier": multiplier,
        "gap": gap / len(routed),
    }
    return routed.remove_columns("teacher").add_column(
        "teacher", teacher, feature=routed.features["teacher"]
    ), expected


def _caps(budget: Budget, names: Sequence[str], prompts: int) -> list[int]:
    """How many prompts each teacher may get at most."""
    return [part_of(budget.max_share.get(name, 1.0), prompts) for name in names]


def room_for_more(
    routed: Dataset,
    router: Judge,
    budget: Budget,
    teachers: Sequence[Teacher],
    answered: Collection[str] = (),
) -> Room:
    """What the budget leaves after the rows of `within_budget`; for the arguments see there."""
    names = router.names
    _, cost = estimates(routed, router, budget.unit, teachers, answered)
    own = np.array([names.index(teacher) for teacher in routed["teacher"]], int)
    spent = np.take_along_axis(cost, own[:, None], 1).sum(dtype=float)
    places = np.array(_caps(budget, names, len(routed))) - np.bincount(own, minlength=len(names))
    return Room(places, cost, budget.limit - float(spent))


def estimates(
    routed: Dataset,
    router: Judge,
    unit: str,
    teachers: Sequence[Teacher],
    answered: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """`expected_reward` and `expected_cost` of rows of `Route`; for the arguments see
    `within_budget`.
    """
    names, expected = router.names, router.expected
    prices = {t.name: price_of(t) for t in teachers}
    answered, rewards, costs = set(answered), [], []
    columns = routed.select_columns(["prompt_id", "messages", "router_scores"]).with_format("arrow")
    for batch in columns.iter(batch_size=CHUNK):
        messages = batch["messages"].combine_chunks()
        of_message = pc.utf8_length(pc.struct_field(messages.flatten(), "content"))
        row = pc.list_parent_indices(messages)
        characters = np.bincount(row, of_message, minlength=len(batch))
        p = batch["router_scores"].combine_chunks().flatten().to_numpy().reshape(len(batch), -1)
        cost = expected_cost(characters, names, expected, unit, prices)
        cost[[key in answered for key in batch["prompt_id"].to_pylist()]] = 0
        rewards.append(expected_reward(p, expected["reward"]).astype(np.float32))
        costs.append(cost)
    return np.concatenate(rewards), np.concatenate(costs)


def tradeoff(
    router: Judge,
    routed: Dataset,
    held_out: Dataset,
    teachers: Sequence[Teacher],
    unit: str,
    answered: Collection[str] = (),
) -> Tradeoff:
    """Reward against spend, from every prompt's cheapest teacher to its best one, so that a user
    sees what money buys.

    Args:
        routed: all prompts, rows of `Route`.
        held_out: those of `Rank` that the router was not trained on. They are among `routed`.
        unit: usd or tokens.

    Returns:
        `curve`: at `POINTS` budgets the multiplier λ, the `spend` on all prompts, the expected
        `reward`, and the reward `measured` on the held-out prompts if they are assigned by the same
        λ; `teachers`: spend and measured reward if each gets every prompt. Rewards are means over
        prompts; a failed response counts as the lowest.
    """
    place = {key: i for i, key in enumerate(routed["prompt_id"])}
    own = routed.select([place[key] for key in one_row_each(held_out)["prompt_id"]])
    of_held_out = estimates(own, router, unit, teachers)
    outcome = rewards_by_prompt(held_out, router.names)
    known = ~np.isnan(outcome).all(-1)
    lowest = np.nanmin(outcome, -1, keepdims=True, initial=np.inf)
    outcome = np.where(np.isnan(outcome), lowest, outcome)[known]
    sample = range(0, len(routed), max(1, len(routed) // SAMPLE))
    reward, cost = estimates(routed.select(sample), router, unit, teachers, answered)
    scale = len(routed) / len(reward)

    def at(multiplier: float) -> dict[str, float]:
        multipliers = np.array([multiplier, *np.zeros(len(router.names))])
        choice = choose(reward, cost, multipliers)[0]
        of = choose(*of_held_out, multipliers)[0][known]
        return {
            "multiplier": multiplier,
            "spend": scale * float(np.take_along_axis(cost, choice[:, None], 1).sum(dtype=float)),
            "reward": float(np.take_along_axis(reward, choice[:, None], 1).mean(dtype=float)),
            "measured": float(np.take_along_axis(outcome, of[:, None], 1).mean()),
        }

    places = np.full(len(router.names), len(reward))
    cheapest = np.where(np.isfinite(reward), cost, np.inf).min(-1).sum(dtype=float)
    # From all prompts to their cheapest teacher, to λ = 0, where money does not count.
    budgets = np.linspace(cheapest, at(0)["spend"] / scale, POINTS)
    found = [multipliers_of(reward, cost, np.array([b, *places]))[0][0] for b in budgets]
    # λ falls as the budget grows. At a kink of the dual the minimiser is off in the sixth digit,
    # which may be enough to go back to a cheaper assignment.
    falling = np.minimum.accumulate(found)
    alone = zip(router.names, cost.sum(0, dtype=float) * scale, outcome.mean(0), strict=True)
    return {
        "unit": unit,
        "curve": [at(float(multiplier)) for multiplier in falling],
        "teachers": {
            name: {"spend": float(spend), "measured": float(mean)} for name, spend, mean in alone
        },
    }
