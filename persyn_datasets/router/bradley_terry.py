"""Bradley–Terry over pairs of teachers: P(B preferred to A) = σ(Zᵀ π(x)), Z = −1 at A and +1 at B
(paper §3).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from datasets import Dataset

from persyn_datasets.config.teacher import Message

RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
FOLDS = 5
# A teacher that always wins, or never, has no finite offset of most likelihood. With this, one of
# two that always wins has 3.6, the other −3.6; an ordinary offset moves by some thousandths.
OFFSET_RIDGE = 1e-4


def bradley_terry_loss(o: torch.Tensor, prefer: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of P(C = 1) = σ(Zᵀ π(x)), summed over all pairs of all prompts.

    Args:
        o: π(x), (prompts, teachers).
        prefer: (prompts, teachers, teachers), 1 at [x, i, j] where i was preferred to j on prompt
            x, else 0.
    """
    return _loss(o, *_comparisons(prefer.to(o)))


def _comparisons(prefer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Z of all pairs A < B, (pairs, teachers); (prompts, pairs), +1 where B was preferred, −1 where
    A was, else 0.
    """
    a, b = torch.triu_indices(prefer.shape[-1], prefer.shape[-1], offset=1)
    one = torch.eye(prefer.shape[-1]).to(prefer)
    return one[b] - one[a], prefer[:, b, a] - prefer[:, a, b]


def _loss(o: torch.Tensor, z: torch.Tensor, preferred: torch.Tensor) -> torch.Tensor:
    return -(F.logsigmoid(preferred * (o @ z.T)) * preferred.abs()).sum()


def preferences(pairs: Dataset, names: Sequence[str]) -> tuple[list[list[Message]], torch.Tensor]:
    """The prompts of `Pairify`'s rows, and `prefer` as in `bradley_terry_loss`; teachers in the
    order of `names`.
    """
    index = {name: i for i, name in enumerate(names)}
    columns = pairs.select_columns(["prompt_id", "teacher_a", "teacher_b", "label"]).to_dict()
    first_row: dict[str, int] = {}
    places = []
    order: dict[str, int] = {}
    for row, (key, a, b, label) in enumerate(zip(*columns.values(), strict=True)):
        first_row.setdefault(key, row)
        winner, loser = (b, a) if label == 1 else (a, b)
        places.append((order.setdefault(key, len(order)), index[winner], index[loser]))
    prefer = torch.zeros(len(order), len(names), len(names))
    prefer[tuple(torch.tensor(places).T)] = 1
    return list(pairs.select(first_row.values())["messages"]), prefer


def fit_head(
    x: torch.Tensor, prefer: torch.Tensor, with_bias: bool = True, fixed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The linear head o = W x + b of least Bradley–Terry loss, with a ridge penalty chosen by
    cross-validation.

    Features are standardised inside; b is hardly penalised, so that much ridge gives the teachers'
    overall order.

    Args:
        x: features, (prompts, features).
        prefer: see `bradley_terry_loss`.
        with_bias: False for a head without b; then the direction of the features that comes nearest
            to a constant stands in for it.
        fixed: outputs of the first teachers, (prompts, their number), that stay; only the other
            ones are fitted.

    Returns:
        W (fitted teachers, features), b (fitted teachers,) and the ridge.
    """
    x, fixed = x.double(), torch.zeros(len(x), 0) if fixed is None else fixed
    if with_bias:
        v, constant = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(len(x), 1, dtype=x.dtype)
    else:
        gram = x.T @ x
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
        v = torch.linalg.solve(gram, x.sum(0))
        constant = (x @ v)[:, None]
    mean = x.mean(0)
    scale = (x - constant * mean).std(0, correction=0).clamp(min=1e-6)
    z = torch.cat([constant, (x - constant * mean) / scale], dim=1)

    ridge = _cross_validate(z.float(), prefer, fixed.float())
    *_, w = _ridge_path(z, prefer, fixed.double(), RIDGES[: RIDGES.index(ridge) + 1])
    weight = (w[1:] / scale[:, None]).T
    bias = w[0] - weight @ mean
    if not with_bias:
        weight, bias = weight + bias[:, None] * v, torch.zeros(len(bias))
    return weight.float(), bias.float(), ridge


def _cross_validate(x: torch.Tensor, prefer: torch.Tensor, fixed: torch.Tensor) -> float:
    """The one of `RIDGES` with the least loss on prompts left out. Ends where less ridge clearly
    overfits.
    """
    fold = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) % min(FOLDS, len(x))
    paths = [_ridge_path(x[fold != k], prefer[fold != k], fixed[fold != k]) for k in fold.unique()]
    losses: list[float] = []
    for heads in zip(*paths, strict=True):  # of one ridge, one for each fold
        left_out = [
            bradley_terry_loss(
                torch.cat([fixed[fold == k], x[fold == k] @ w], 1), prefer[fold == k]
            )
            for k, w in enumerate(heads)
        ]
        losses.append(float(sum(left_out)))
        if losses[-1] > 1.01 * min(losses):
            break
    return RIDGES[losses.index(min(losses))]


def _ridge_path(
    x: torch.Tensor, prefer: torch.Tensor, fixed: torch.Tensor, ridges: Sequence[float] = RIDGES
) -> Iterator[torch.Tensor]:
    """Weights (1 + features, fitted teachers) for each of `ridges`, each fit starting from the one
    before.
    """
    w = torch.zeros(
        x.shape[1], prefer.shape[-1] - fixed.shape[-1], dtype=x.dtype, requires_grad=True
    )
    z, preferred = _comparisons(prefer.to(x))
    pairs = prefer.sum().clamp(min=1)
    for ridge in ridges:
        optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

        def objective() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = (
                _loss(torch.cat([fixed, x @ w], 1), z, preferred) / pairs
                + ridge * w[1:].square().sum()  # noqa: B023
                + OFFSET_RIDGE * w[0].square().sum()
            )
            loss.backward()
            return loss

        optimizer.step(objective)
        yield w.detach().clone()
