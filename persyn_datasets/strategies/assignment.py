"""The assignment of prompts to teachers with the largest expected reward that a budget allows.

    max_m  Σ_x E[r(x, m(x))]    so that    Σ_x cost(x, m(x)) ≤ B    and    |{x : m(x) = M}| ≤ cap_M

By its Lagrangian dual: with a price λ ≥ 0 of money and μ_M ≥ 0 of a place at teacher M, every
prompt goes for itself to

    m(x) = argmax_M  E[r(x, M)] − λ·cost(x, M) − μ_M
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import LinearConstraint, milp, minimize

from persyn_datasets.config.errors import InputError

CORE = 200  # prompts that are assigned exactly, after the multipliers have assigned the others
CHUNK = 65_536  # prompts that are worked on at once
NOTHING_FITS = "no assignment is within the budget and the shares; raise one of them."


def assign(
    reward: np.ndarray,
    cost: np.ndarray,
    budget: float = np.inf,
    caps: Sequence[float] | None = None,
) -> tuple[np.ndarray, float, float]:
    """The assignment of largest reward within a budget and, if given, at most `caps[i]` prompts to
    teacher i.

    The multipliers λ and μ minimise the dual over all prompts. They decide all prompts but the
    `CORE` ones whose best two teachers are nearest to each other; these get what is left, by the
    exact integer programme (HiGHS). So up to `CORE` prompts the result is the optimum.

    Args:
        reward: E[r(x, M)], (prompts, teachers), −∞ where a teacher is not available.
        cost: of the answer, (prompts, teachers), 0 or more.

    Returns:
        Each prompt's teacher; λ; and the gap: no assignment within these limits has a reward larger
        by more.

    Raises:
        InputError: nothing is within these limits.
    """
    prompts, teachers = reward.shape
    places = np.full(teachers, prompts) if caps is None else np.minimum(caps, prompts)
    _check_room(reward, cost, budget, places)
    limits = np.array([min(budget, cost.max(-1).sum(dtype=float)), *places], float)
    multipliers, bound = multipliers_of(reward, cost, limits)
    # Any assignment within the limits has at least this reward, and the bound is above it: else
    # there is none.
    least = np.where(np.isfinite(reward), reward, np.inf).min(-1).sum(dtype=float)
    if bound < least - 1e-6 * prompts:
        raise InputError(NOTHING_FITS)
    choice, _, margin = choose(reward, cost, multipliers)
    _fill_core(choice, margin, reward, cost, limits)
    achieved = np.take_along_axis(reward, choice[:, None], 1).sum(dtype=float)
    return choice, float(multipliers[0]), max(bound - float(achieved), 0.0)


def _check_room(reward: np.ndarray, cost: np.ndarray, budget: float, places: np.ndarray) -> None:
    """Raises `InputError` where one of the limits alone is too small."""
    cheapest = np.where(np.isfinite(reward), cost, np.inf).min(-1).sum(dtype=float)
    if cheapest > budget * (1 + 1e-9):
        raise InputError(
            f"the budget is {budget:,.6g}, and the cheapest teacher for every prompt costs "
            f"{cheapest:,.6g}."
        )
    if (room := places[np.isfinite(reward).any(0)].sum()) < len(reward):
        raise InputError(
            f"the teachers may get {room:,.0f} prompts in total, and there are {len(reward):,}; "
            "raise a max_share."
        )


def _fill_core(
    choice: np.ndarray, margin: np.ndarray, reward: np.ndarray, cost: np.ndarray, limits: np.ndarray
) -> None:
    """Assign the prompts anew, in place, whose two best teachers are nearly equal.

    There the multipliers do not decide, and the exact programme fills up what the others leave of
    the limits; over more prompts where these do not suffice.
    """
    prompts, core = len(choice), CORE
    while True:
        open_ = np.argpartition(margin, core)[:core] if core < prompts else np.arange(prompts)
        fixed = np.ones(prompts, bool)
        fixed[open_] = False
        exact = _exact(reward[open_], cost[open_], limits - _used(cost[fixed], choice[fixed]))
        if exact is not None:
            choice[open_] = exact
            return
        if core >= prompts:
            raise InputError(NOTHING_FITS)
        core *= 2


def multipliers_of(
    reward: np.ndarray, cost: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, float]:
    """(λ, μ_1, …, μ_n) that minimise g = Σ_x max_M (r − λ·cost − μ_M) + λ·B + Σ μ_M·cap_M, and g,
    the bound.
    """
    prompts = len(reward)
    # g is convex and piecewise linear; its subgradient at (λ, μ) is what the limits have left over.
    # λ and μ on one scale.
    unit = np.array([float(cost.mean(dtype=float)) or 1.0, *[1.0] * reward.shape[1]])

    def g(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        multipliers = scaled / unit
        choice, best, _ = choose(reward, cost, multipliers)
        slack = (limits - _used(cost, choice)) / unit
        return (best.sum(dtype=float) + multipliers @ limits) / prompts, slack / prompts

    found = minimize(
        g, np.zeros(len(unit)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(unit)
    )
    return found.x / unit, found.fun * prompts


def choose(
    reward: np.ndarray, cost: np.ndarray, multipliers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each prompt's teacher of largest utility r − λ·cost − μ_M, this utility, and how far the
    second one is.
    """
    price, place = np.float32(multipliers[0]), multipliers[1:].astype(np.float32)
    parts = []
    for start in range(0, len(reward), CHUNK):
        utility = reward[start : start + CHUNK] - price * cost[start : start + CHUNK] - place
        choice = utility.argmax(-1)
        best = np.take_along_axis(utility, choice[:, None], 1)[:, 0]
        np.put_along_axis(utility, choice[:, None], -np.inf, 1)
        parts.append((choice, best, best - utility.max(-1)))
    choices, bests, margins = (np.concatenate(part) for part in zip(*parts, strict=True))
    return choices, bests, margins


def _used(cost: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """What an assignment uses of the limits: money, and places at each teacher."""
    spent = np.take_along_axis(cost, choice[:, None], 1).sum(dtype=float)
    return np.array([spent, *np.bincount(choice, minlength=cost.shape[1])])


def _exact(reward: np.ndarray, cost: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """The optimum of a small set, as the integer programme over z[x, M] in {0, 1}; None if there is
    none.
    """
    prompts, teachers = reward.shape
    there = np.isfinite(reward)
    scale = float(cost.max()) or 1.0
    one_each = sparse.kron(sparse.eye_array(prompts), np.ones((1, teachers)))
    money = sparse.csr_array(cost.reshape(1, -1) / scale)
    places = sparse.kron(np.ones((1, prompts)), sparse.eye_array(teachers))
    limits = np.array([limits[0] / scale, *limits[1:]])
    found = milp(
        -np.where(there, reward, 0).ravel().astype(float),
        integrality=np.ones(reward.size),
        bounds=(0, there.ravel().astype(float)),
        constraints=LinearConstraint(
            sparse.vstack([one_each, money, places]),
            np.concatenate([np.ones(prompts), np.full(1 + teachers, -np.inf)]),
            np.concatenate([np.ones(prompts), limits]),
        ),
        options={"mip_rel_gap": 1e-6, "node_limit": 1000},
    )
    return None if found.x is None else found.x.reshape(prompts, teachers).argmax(-1)
