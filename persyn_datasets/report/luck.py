"""What of a calibration is luck, and what else than its meaning a reward follows."""

from dataclasses import asdict, replace
from typing import get_args

import numpy as np
from datasets import Dataset
from datasets.table import InMemoryTable

from persyn_datasets.config.reward import Normalize, Reward
from persyn_datasets.data.build import Luck
from persyn_datasets.data.reasoning import written_length
from persyn_datasets.data.responses import rewards_of
from persyn_datasets.router.metrics import fill_failed
from persyn_datasets.stages.rank import Rank

SHUFFLES = 200


def luck(ranked: Dataset, names: list[str], reward: Reward, seed: int = 0) -> Luck:
    """JSON values.

    Returns:
        `oracle`: the oracle's lead over the best single teacher; `shuffled`: the mean lead that is
        left when each teacher's rewards are shuffled among the prompts, so that no prompt says
        anything; `with_length`: the correlation within prompts of learnability and an answer's
        characters, None without any; `best_single`: the best single teacher under each
        normalisation.
    """
    rewards = rewards_of(ranked, names)
    filled = fill_failed(rewards)
    rng = np.random.default_rng(seed)
    shuffled = [_lead(rng.permuted(filled, axis=0)) for _ in range(SHUFFLES)]
    return {
        "oracle": _lead(filled),
        "shuffled": float(np.mean(shuffled)),
        "with_length": _with_length(ranked),
        "best_single": {how: _best(ranked, names, reward, how) for how in get_args(Normalize)},
    }


def in_words(found: Luck) -> str:
    more = "more" if found["oracle"] > found["shuffled"] else "no more"
    text = (
        f"The oracle leads the best single teacher by {found['oracle']:.3f}; rewards shuffled "
        f"among the prompts give {found['shuffled']:.3f}, so its lead is "
        f"{more} than luck alone would be."
    )
    if found["with_length"] is not None:
        text += f" Learnability and length correlate by {found['with_length']:+.2f} within prompts."
    best = found["best_single"]
    if len(set(best.values())) > 1:
        each = ", ".join(f"{name} by {how}" for how, name in best.items())
        text += f" The best single teacher depends on the normalisation: {each}."
    return text


def _lead(rewards: np.ndarray) -> float:
    return float(rewards.max(-1).mean() - rewards.mean(0).max())


def _with_length(ranked: Dataset) -> float | None:
    """Of the deviations from their prompt's mean."""
    pairs = []
    for row in ranked["responses"]:
        known = [
            (r["learnability"], written_length(r)) for r in row if r["learnability"] is not None
        ]
        if known:
            pairs.append(np.array(known, float) - np.mean(known, axis=0))
    both = np.concatenate(pairs) if pairs else np.zeros((0, 2))
    if len(both) < 2 or (both.std(0) == 0).any():
        return None
    return float(np.corrcoef(both.T)[0, 1])


def _best(ranked: Dataset, names: list[str], reward: Reward, how: Normalize) -> str:
    table = ranked.select_columns(["prompt_id", "responses"]).with_format("arrow")[:]
    again = Rank(**asdict(replace(reward, normalize=how)))(table)
    return names[
        int(fill_failed(rewards_of(Dataset(InMemoryTable(again)), names)).mean(0).argmax())
    ]
