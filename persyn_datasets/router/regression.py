"""The head of a frozen backbone: a ridge regression of the rewards, in closed form.

Each teacher's reward is predicted by a line on what the last layer sees of the prompt; much ridge
leads to the teacher's mean. Predictions of left-out prompts come in closed form, too, so all
prompts choose the ridge. It did better than Bradley–Terry on pairs, which knows who won and not by
how much, on pools that it was not chosen on: see studies/.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from persyn_datasets.config.teacher import Message
from persyn_datasets.router.standardised import Standardised

RIDGES = tuple(10.0 ** np.arange(-3, 3.5, 0.5))  # per prompt, on standardised features
SAFETIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, np.inf)  # in deviations of the rewards
FOLDS = 5
SPREAD = 100  # of the temperature around 1 deviation of the rewards


@dataclass(frozen=True)
class Head:
    """o = W x + b.

    Attributes:
        weight: W, (teachers, features).
        bias: b, (teachers,); zeros for a classifier without one.
        ridge: the penalty per prompt that left-out prompts chose; ∞ if they say nothing.
        safety: what is added to the best single teacher's predicted reward, so that the router
            leaves it only where that pays; ∞ if it never does.
    """

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    safety: float = 0.0

    @property
    def facts(self) -> dict[str, float | None]:
        """JSON values: `ridge` and `safety`, None for ∞."""
        return {
            "ridge": self.ridge if np.isfinite(self.ridge) else None,
            "safety": self.safety if np.isfinite(self.safety) else None,
        }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """o = π(x), (prompts, teachers), of features (prompts, features)."""
        return x @ self.weight.T + self.bias


def rewards_of_pairs(
    pairs: Dataset, names: Sequence[str]
) -> tuple[list[list[Message]], np.ndarray]:
    """The prompts of `Pairify`'s rows, and the rewards behind them, (prompts, teachers).

    Pairs know differences only: each prompt's rewards have mean 0. They are those of least squares
    over its pairs, which gives rewards back exactly; a teacher that is in none of them has NaN.
    """
    index = {name: i for i, name in enumerate(names)}
    kept = ["prompt_id", "teacher_a", "teacher_b", "label", "margin"]
    columns = pairs.select_columns([c for c in kept if c in pairs.column_names]).to_dict()
    margins = columns.get("margin", [1.0] * len(pairs))
    first_row: dict[str, int] = {}
    for row, key in enumerate(columns["prompt_id"]):
        first_row.setdefault(key, row)
    place = {key: i for i, key in enumerate(first_row)}
    prompt = np.array([place[key] for key in columns["prompt_id"]])
    a, b = (
        np.array([index[name] for name in columns[side]]) for side in ("teacher_a", "teacher_b")
    )
    # Label 1: B is preferred. Pairs without a margin, from elsewhere, count 1 each.
    b_ahead = np.where(np.array(columns["label"]) == 1, 1.0, -1.0) * np.array(margins)

    compared = np.zeros((len(place), len(names), len(names)))
    np.add.at(compared, (prompt, a, b), 1)
    np.add.at(compared, (prompt, b, a), 1)
    ahead = np.zeros((len(place), len(names)))
    np.add.at(ahead, (prompt, b), b_ahead)
    np.add.at(ahead, (prompt, a), -b_ahead)
    degree = compared.sum(-1)
    # Least squares over a graph of comparisons: L r = (what each teacher was ahead), L its
    # Laplacian, whose null space, one constant for all, the pseudo-inverse leaves out.
    laplacian = degree[:, :, None] * np.eye(len(names)) - compared
    rewards = (np.linalg.pinv(laplacian, hermitian=True) @ ahead[:, :, None])[:, :, 0]
    messages = list(pairs.select(first_row.values())["messages"])
    return messages, np.where(degree > 0, rewards, np.nan)


def fit_rewards(x: np.ndarray, rewards: np.ndarray, with_bias: bool = True) -> Head:
    """The head that predicts the rewards best on prompts that it was not fitted to.

    Only differences between teachers are predicted, so how hard a prompt is does not disturb. A
    response that is missing counts as its prompt's lowest reward. The outputs are divided by the
    temperature of least Bradley–Terry loss on left-out prompts: σ(o_B − o_A) is the probability
    that B is the better one.

    Args:
        x: features, (prompts, features), each prompt once.
        rewards: (prompts, teachers), NaN where there is none.
        with_bias: False for a head without b; then the direction of the features that comes nearest
            to a constant stands in for it.
    """
    known = ~np.isnan(rewards).all(-1)
    x, y = x[known].astype(float), _differences(rewards[known])
    regression = _Regression(x, y, with_bias)
    ridge, left_out = regression.best_ridge()
    single = int(y.mean(0).argmax())
    safety = _safety(x, y, ridge, with_bias)
    if np.isinf(safety):  # it never pays to leave the best single teacher: all get the means
        ridge, left_out = np.inf, np.broadcast_to(y.mean(0), y.shape)
    return regression.head(ridge, single, safety, _temperature(left_out, y))


class _Regression:
    """Ridge regression of y (prompts, teachers) on standardised x, the constant not penalised."""

    def __init__(self, x: np.ndarray, y: np.ndarray, with_bias: bool):
        self.features, self.y = Standardised.of(x, with_bias), y
        z, constant = self.features.z, self.features.constant
        self.constant = constant
        # What the constant explains is taken out of both sides; ridge has the rest.
        along = constant / (constant**2).sum()
        self.z_on_constant, self.y_on_constant = along.T @ z, along.T @ y
        z, rest = z - constant * self.z_on_constant, y - constant * self.y_on_constant
        # z = u·diag(s)·vᵀ: every ridge is a sum over these directions.
        self.variance, self.directions = np.linalg.eigh(z.T @ z)
        self.variance = self.variance.clip(min=0)
        self.along = z @ self.directions
        self.explained = self.along.T @ rest
        self.leverage = (constant * along)[:, 0]

    def left_out(self, ridge: float) -> np.ndarray:
        """Each prompt's prediction by the fit to all the others, (prompts, teachers)."""
        # y_i − ŷ_(i) = (y_i − ŷ_i) / (1 − h_ii), h the hat matrix: no prompt is left out in fact.
        shrunk = self._shrunk(ridge)
        fitted = self.constant * self.y_on_constant + self.along @ (shrunk * self.explained)
        own_part = self.leverage[:, None] + self.along**2 @ shrunk
        return self.y - (self.y - fitted) / np.maximum(1 - own_part, 1e-9)

    def best_ridge(self) -> tuple[float, np.ndarray]:
        """The ridge of least squared error on left-out prompts, of equals the largest; with the
        predictions of these prompts.
        """
        found = [(ridge, self.left_out(ridge)) for ridge in (np.inf, *reversed(RIDGES))]
        return min(found, key=lambda one: float(((one[1] - self.y) ** 2).sum()))

    def head(self, ridge: float, single: int = 0, safety: float = 0, scale: float = 1) -> Head:
        """The fitted head, with `safety` for the single best teacher, its outputs times `scale`."""
        w = self.directions @ (self._shrunk(ridge) * self.explained)
        # What the constant has to say once w has explained its part: mean y − (mean z)·w.
        offset = (self.y_on_constant - self.z_on_constant @ w)[0]
        offset[single] += safety if np.isfinite(safety) else 0
        weight, bias = self.features.head(w, offset)
        return Head(scale * weight, scale * bias, ridge, safety)

    def _shrunk(self, ridge: float) -> np.ndarray:
        # 1 / (s² + n·ridge) of each direction; 1e-12 keeps one without variance from 0 / 0.
        return 1 / (self.variance + ridge * len(self.y) + 1e-12)[:, None]


def _differences(rewards: np.ndarray) -> np.ndarray:
    """Rewards minus their prompt's mean; missing ones are their prompt's lowest."""
    lowest = np.nanmin(rewards, -1, keepdims=True)
    filled = np.where(np.isnan(rewards), lowest, rewards)
    return filled - filled.mean(-1, keepdims=True)


def _safety(x: np.ndarray, y: np.ndarray, ridge: float, with_bias: bool) -> float:
    """The bias for the best single teacher: none unless the router is below it by more than a
    standard error on left-out prompts, else the one that does best there.

    Ridge alone keeps the router close to the best single teacher where the prompts say little; a
    bias that is chosen by every noisy difference costs more than it saves (studies/LOG.md).
    Each fold names its own best single teacher: the one of all prompts is a winner on the very
    prompts that it would be judged by.
    """
    if len(x) < FOLDS:
        return np.inf
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    deviation = float(y.std())
    # By safety and prompt: the reward of the choice minus that of the best single teacher.
    lead = np.zeros((len(SAFETIES), len(x)))
    for k in range(FOLDS):
        others, own = fold != k, fold == k
        scores = _Regression(x[others], y[others], with_bias).head(ridge)(x[own])
        single = y[others].mean(0).argmax()
        for i, safety in enumerate(SAFETIES):
            safe = scores.copy()
            safe[:, single] += safety * deviation if np.isfinite(safety) else np.inf
            choice = safe.argmax(-1)[:, None]
            chosen = np.take_along_axis(y[own], choice, 1)[:, 0]
            lead[i, own] = chosen - y[own][:, single]
    # Not proven to be worse than the best single teacher without a bias: then none.
    standard_error = lead[0].std() / np.sqrt(len(x))
    if lead[0].mean() + standard_error >= 0:
        return 0.0
    best = len(SAFETIES) - 1 - int(lead.mean(-1)[::-1].argmax())  # of equals the largest
    return SAFETIES[best] * deviation


def _temperature(scores: np.ndarray, y: np.ndarray) -> float:
    """What the scores are to be multiplied by, for the least Bradley–Terry loss on the pairs.

    After n prompts nothing is surer than (n + 1) / (n + 2) (Platt 1999): a teacher that always won
    would be put at infinity.
    """
    a, b = np.triu_indices(y.shape[1], 1)
    # By how much the better of two teachers is ahead in the scores; below 0 where it is behind.
    ahead = np.where(y[:, a] > y[:, b], 1, -1) * (scores[:, a] - scores[:, b])
    ahead = ahead[y[:, a] != y[:, b]]
    deviation = float(y.std())
    if not len(ahead) or not ahead.any() or deviation == 0:
        return 1.0

    doubt = 1 / (len(y) + 2)

    def loss(log_scale: float) -> float:
        o = np.exp(log_scale) * ahead
        return float(-((1 - doubt) * log_expit(o) + doubt * log_expit(-o)).mean())

    around = -np.log(deviation)
    bounds = (around - np.log(SPREAD), around + np.log(SPREAD))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
