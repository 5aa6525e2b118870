"""Bradley–Terry over pairs of teachers: P(B preferred to A) = σ(Zᵀ π(x)), Z = −1 at A and +1 at B
(paper §3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from datasets import Dataset

from persyn_datasets.config.teacher import Message


def bradley_terry_loss(o: torch.Tensor, prefer: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of P(C = 1) = σ(Zᵀ π(x)), summed over all pairs of all prompts.

    Args:
        o: π(x), (prompts, teachers).
        prefer: (prompts, teachers, teachers), 1 at [x, i, j] where i was preferred to j on prompt
            x, else 0.
    """
    # Each pair once, A < B: +1 where B was preferred, −1 where A was, 0 where nothing is known.
    a, b = torch.triu_indices(prefer.shape[-1], prefer.shape[-1], offset=1)
    preferred = prefer[:, b, a].to(o) - prefer[:, a, b].to(o)
    # Zᵀ π(x) = o_B − o_A. As 1 − σ(z) = σ(−z), a sign covers C = 1 and C = 0 in one term.
    z = o[:, b] - o[:, a]
    return -(F.logsigmoid(preferred * z) * preferred.abs()).sum()


def preferences(pairs: Dataset, names: Sequence[str]) -> tuple[list[list[Message]], torch.Tensor]:
    """The prompts of `Pairify`'s rows, and `prefer` as in `bradley_terry_loss`; teachers in the
    order of `names`.
    """
    index = {name: i for i, name in enumerate(names)}
    columns = pairs.select_columns(["prompt_id", "teacher_a", "teacher_b", "label"]).to_dict()
    # Messages are long, and the same in all rows of a prompt: they are read once, from its first.
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
