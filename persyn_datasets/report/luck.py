"""What of a calibration is luck, and what else than its meaning a reward follows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
from datasets import Dataset
from datasets.table import InMemoryTable

from persyn_datasets.config.reward import Normalize, Reward
from persyn_datasets.data.build import Luck
from persyn_datasets.data.reasoning import written_length
from persyn_datasets.data.responses import one_row_each, rewards_by_prompt, rewards_of
from persyn_datasets.router.metrics import fill_failed
from persyn_datasets.stages.rank import Rank

SHUFFLES = 200
_BOLD = re.compile(r"\*\*\S[^*\n]*\*\*")


def luck(ranked: Dataset, names: list[str], reward: Reward, seed: int = 0) -> Luck:
    """JSON values.

    Returns:
        `oracle`: the oracle's lead over the best single teacher; `shuffled`: the mean lead that is
        left when each teacher's rewards are shuffled among the prompts, so that no prompt says
        anything; `with_length`, `with_bold`: the correlation within prompts of learnability and an
        answer's characters, or whether it has bold text, None without any; `bold`: the share of
        answers that have some, of all and of the prompts' best; `best_single`: the best single
        teacher under each normalisation; `largest_mean`: that under the recipe's; `most_wins`: the
        teacher that wins most comparisons, which is Bradley–Terry's first, as each is compared with
        each.
    """
    rewards, ranked = rewards_by_prompt(ranked, names), one_row_each(ranked)
    filled = fill_failed(rewards)
    rng = np.random.default_rng(seed)
    shuffled = [_lead(rng.permuted(filled, axis=0)) for _ in range(SHUFFLES)]
    return {
        "oracle": _lead(filled),
        "shuffled": float(np.mean(shuffled)),
        "with_length": _follows(ranked, written_length),
        "with_bold": _follows(ranked, _has_bold),
        "bold": _shares_of_bold(ranked),
        "best_single": {how: _best(ranked, names, reward, how) for how in get_args(Normalize)},
        "largest_mean": names[int(filled.mean(0).argmax())],
        "most_wins": names[int(_wins(filled).argmax())],
    }


def in_words(found: Luck) -> str:
    more = "more" if found["oracle"] > found["shuffled"] else "no more"
    text = (
        f"The oracle leads the best single teacher by {found['oracle']:.3f}; with rewards "
        f"shuffled among the prompts it leads by {found['shuffled']:.3f}, so its lead is "
        f"{more} than luck alone gives."
    )
    if found["with_length"] is not None:
        text += f" Learnability and length correlate at {found['with_length']:+.2f} within prompts."
    if (bold := found.get("with_bold")) is not None:
        shares = found["bold"]
        text += (
            f" Learnability and bold text correlate at {bold:+.2f}: {shares['all']:.0%} of the "
            f"answers have some, and {shares['best']:.0%} of the best ones."
        )
    if (left := found.get("without_question")) is not None:
        text += (
            f" With and without the question, a prompt's answers have orders by learnability that "
            f"correlate at {left:+.2f}."
        )
    if found.get("most_wins", "") != found.get("largest_mean", ""):
        text += (
            f" {found['most_wins']} wins most comparisons, so Bradley–Terry puts it first; "
            f"{found['largest_mean']} has the largest mean reward."
        )
    best = found["best_single"]
    if len(set(best.values())) > 1:
        each = ", ".join(f"{name} by {how}" for how, name in best.items())
        text += f" The best single teacher depends on the normalisation: {each}."
    return text


def _lead(rewards: np.ndarray) -> float:
    return float(rewards.max(-1).mean() - rewards.mean(0).max())


def _wins(rewards: np.ndarray) -> np.ndarray:
    """Comparisons that each teacher wins, (teachers,); a tie is half of one."""
    others = rewards[:, None, :]
    mine = rewards[:, :, None]
    wins: np.ndarray = ((mine > others) + (mine == others) / 2).sum((0, 2))
    return wins


def _has_bold(response: Mapping[str, Any]) -> float:
    return float(bool(_BOLD.search(response["text"])))


def _shares_of_bold(ranked: Dataset) -> dict[str, float]:
    """Of the answers that have a reward; and of those of the prompts' best teachers."""
    every: list[float] = []
    best: list[float] = []
    for row, teacher in zip(ranked["responses"], ranked["best_teacher"], strict=True):
        of_row = [r for r in row if r["reward"] is not None]
        every += map(_has_bold, of_row)
        best += [_has_bold(r) for r in of_row if r["teacher"] == teacher]
    return {"all": float(np.mean(every or [0])), "best": float(np.mean(best or [0]))}


def _follows(ranked: Dataset, measure: Callable[[Mapping[str, Any]], float]) -> float | None:
    """The correlation of learnability and a measure of responses: of the deviations from their
    prompt's mean.
    """
    pairs = []
    for row in ranked["responses"]:
        known = [(r["learnability"], measure(r)) for r in row if r["learnability"] is not None]
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
