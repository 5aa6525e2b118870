import json
from itertools import combinations, product

import numpy as np
import pytest

from persyn_datasets.data.responses import first_rows, mean_by_prompt
from persyn_datasets.router.metrics import compare, fill_failed

NAN = float("nan")


def router_metrics(scores, rewards, before, teachers, seed=0, prompt_ids=None):
    """`compare` with the best single teacher of other prompts; a prompt in several rows is one."""
    if prompt_ids is not None:
        scores, rewards = scores[first_rows(prompt_ids)], mean_by_prompt(rewards, prompt_ids)
    single = np.broadcast_to(fill_failed(before).mean(0), rewards.shape)
    return compare({"router": scores, "best single": single}, rewards, teachers, seed)


def by_hand(scores, rewards, before, teachers):
    """The documented definitions, prompt by prompt."""

    def filled(table):
        answered = [[r for r in row if r == r] for row in table]
        return [
            [r if r == r else min(a) for r in row]
            for row, a in zip(table, answered, strict=True)
            if a
        ]

    scores = [s for s, row in zip(scores, rewards, strict=True) if any(r == r for r in row)]
    rewards, before, n = filled(rewards), filled(before), len(teachers)
    worth = [sum(row[j] for row in before) / len(before) for j in range(n)]
    single = max(range(n), key=lambda j: worth[j])
    mean = lambda values: sum(values) / len(values)  # noqa: E731

    def hit(order_of, k):
        return mean(
            [any(row[j] == max(row) for j in order_of(i)[:k]) for i, row in enumerate(rewards)]
        )

    def random_hit(k):
        choices = list(combinations(range(n), k))
        return mean(
            [mean([any(row[j] == max(row) for j in c) for c in choices]) for row in rewards]
        )

    by_router = lambda i: sorted(range(n), key=lambda j: -scores[i][j])  # noqa: E731
    by_single = lambda i: sorted(range(n), key=lambda j: -worth[j])  # noqa: E731
    reward = {
        "router": mean([row[by_router(i)[0]] for i, row in enumerate(rewards)]),
        "best single": mean([row[single] for row in rewards]),
        "random": mean([mean(row) for row in rewards]),
        "oracle": mean([max(row) for row in rewards]),
    }
    # Its choices dealt at random: any prompt may get any prompt's choice.
    dealt = [by_router(i)[0] for i in range(len(rewards))]
    reward["shares at random"] = mean([mean([row[j] for j in dealt]) for row in rewards])
    hits = {
        f"hit@{k}": {
            "router": hit(by_router, k),
            "best single": hit(by_single, k),
            "random": random_hit(min(k, n)),
            "oracle": 1,
        }
        for k in (1, 3)
    }
    hits["hit@1"]["shares at random"] = mean(
        [mean([row[j] == max(row) for j in dealt]) for row in rewards]
    )
    return hits | {
        "routed": {teachers[j]: dealt.count(j) for j in range(n) if j in dealt},
        "prompts": len(rewards),
        "best_single_teacher": teachers[single],
        "reward": reward,
        "regret": {name: reward["oracle"] - r for name, r in reward.items()},
    }


def tables(prompts=40, teachers=5, seed=0):
    """Scores and coarse rewards (so that best teachers tie), with failed responses and prompts of
    which all failed.
    """
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(prompts, teachers))
    rewards, before = (np.round(rng.random((prompts, teachers)) * 3) / 3 for _ in range(2))
    for table in (rewards, before):
        table[rng.random(table.shape) < 0.15] = NAN
        table[[2, 7]] = NAN
    return scores, rewards, before, [f"t{i}" for i in range(teachers)]


@pytest.mark.parametrize("teachers", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_measure_by_hand(teachers, seed):
    arguments = tables(teachers=teachers, seed=seed)
    found = router_metrics(*arguments)
    expected = by_hand(*(a.tolist() if isinstance(a, np.ndarray) else a for a in arguments))
    advantage, over_random = found.pop("advantage"), found.pop("advantage_over_random")
    against = found.pop("against")
    assert against.keys() == {"best single", "random", "shares at random"}
    for line, lead in against.items():
        assert lead["mean"] == pytest.approx(
            expected["reward"]["router"] - expected["reward"][line]
        )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, dict) else value), key
    assert advantage["mean"] == pytest.approx(
        expected["reward"]["router"] - expected["reward"]["best single"]
    )
    assert over_random["mean"] == pytest.approx(
        expected["reward"]["router"] - expected["reward"]["random"]
    )


def test_a_worked_example():
    """Teacher c failed on the second prompt (so it counts 0.2 there); a and b tie as best on the
    third.
    """
    rewards = np.array([[1.0, 0.5, 0.0], [0.2, 0.6, NAN], [0.9, 0.9, 0.3], [NAN, NAN, NAN]])
    scores = np.array([[0, 1, 2.0], [0, 1, 2.0], [0, 1, -1.0], [5, 0, 0]])
    before = np.array([[0.0, 0.0, 1.0], [NAN, 0.5, 1.0]])
    m = router_metrics(scores, rewards, before, ["a", "b", "c"])
    assert (m["prompts"], m["best_single_teacher"]) == (3, "c")
    # The router's choices: c, c, b.
    assert m["reward"].pop("shares at random") == pytest.approx(
        ((0.5 + 0 + 0) + (0.6 + 0.2 + 0.2) + (0.9 + 0.3 + 0.3)) / 9
    )
    assert m["hit@1"].pop("shares at random") == pytest.approx((0 + 1 / 3 + 1 / 3) / 3)
    assert m["routed"] == {"b": 1, "c": 2}
    assert m["reward"] == pytest.approx(
        {"router": 1.1 / 3, "best single": 0.5 / 3, "random": 4.6 / 9, "oracle": 2.5 / 3}
    )
    assert m["hit@1"] == pytest.approx(
        {"router": 1 / 3, "best single": 0, "random": 4 / 9, "oracle": 1}
    )
    assert m["advantage"]["mean"] == pytest.approx(0.2)


def test_the_best_single_teacher_is_named_by_the_training_prompts_only():
    _, rewards, before, names = tables()
    rewards[:, 0] = 9.0  # the best on the held-out prompts
    before[:, 3] = 8.0
    assert router_metrics(rewards, rewards, before, names)["best_single_teacher"] == "t3"


def test_the_interval_holds_the_mean_has_the_right_width_and_is_reproducible():
    rng = np.random.default_rng(0)
    rewards, before = rng.random((400, 4)), rng.random((50, 4)) + np.array([0, 0, 1, 0])
    scores = rewards + rng.normal(size=rewards.shape)
    m = router_metrics(scores, rewards, before, list("abcd"), seed=1)
    a = m["advantage"]
    difference = rewards[np.arange(400), scores.argmax(1)] - rewards[:, 2]
    half = 1.96 * difference.std() / 20
    assert a["low"] < a["mean"] < a["high"]
    assert (a["low"], a["high"]) == pytest.approx(
        (a["mean"] - half, a["mean"] + half), abs=half / 8
    )
    assert (
        m
        == json.loads(json.dumps(m))
        == router_metrics(scores, rewards, before, list("abcd"), seed=1)
    )
    other = router_metrics(scores, rewards, before, list("abcd"), seed=2)
    assert other["advantage"] != a
    resampled = ("advantage", "advantage_over_random", "against")
    assert other | {key: m[key] for key in resampled} == m
    b, difference = (
        m["advantage_over_random"],
        rewards[np.arange(400), scores.argmax(1)] - rewards.mean(1),
    )
    half = 1.96 * difference.std() / 20
    assert (b["low"], b["high"]) == pytest.approx(
        (b["mean"] - half, b["mean"] + half), abs=half / 8
    )


def test_a_router_that_knows_the_rewards_is_the_oracle():
    _, rewards, before, names = tables(seed=4)
    m = router_metrics(np.nan_to_num(rewards, nan=-1), rewards, before, names)
    assert (m["hit@1"]["router"], m["regret"]["router"]) == (1.0, 0.0)
    assert m["reward"]["router"] == m["reward"]["oracle"] > m["reward"]["best single"]


def test_a_prompt_counts_once_however_often_it_stands_there():
    """Each prompt four times would halve the interval."""
    scores, rewards, before, names = tables(seed=3)
    ids = [f"p{i}" for i in range(len(scores))]
    once = router_metrics(scores, rewards, before, names, prompt_ids=ids)
    assert once == router_metrics(scores, rewards, before, names)
    four = [np.repeat(table, 4, axis=0) for table in (scores, rewards)]
    again = router_metrics(*four, before, names, prompt_ids=np.repeat(ids, 4).tolist())
    assert again == once
    counted_as_rows = router_metrics(*four, before, names)["advantage"]
    width = once["advantage"]["high"] - once["advantage"]["low"]
    assert counted_as_rows["high"] - counted_as_rows["low"] < 0.6 * width


def test_rows_of_one_prompt_that_differ_count_with_their_mean():
    rewards = np.array([[1.0, NAN], [0.0, 0.6], [0.2, 0.1]])
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    m = router_metrics(scores, rewards, rewards, ["a", "b"], prompt_ids=["x", "x", "y"])
    assert m["prompts"] == 2
    assert m["reward"]["router"] == pytest.approx((0.5 + 0.1) / 2)
    assert m["reward"]["oracle"] == pytest.approx((0.6 + 0.2) / 2)


def test_the_paired_test_by_all_sign_flips():
    """Brute force over 2^10 flips, with a prompt of no difference that says nothing."""
    rng = np.random.default_rng(5)
    difference = np.r_[rng.normal(0.3, 1, 10), 0.0]
    rewards = np.stack([np.zeros(11), difference], 1)
    lines = {
        "router": np.broadcast_to([0.0, 1.0], (11, 2)),
        "best single": np.broadcast_to([1.0, 0.0], (11, 2)),
    }
    found = compare(lines, rewards, ["a", "b"])["against"]["best single"]
    flips = np.array(list(product([1, -1], repeat=11)))
    as_far = np.abs(flips @ difference) >= abs(difference.sum()) - 1e-12
    assert found["p"] == pytest.approx(as_far.mean())
    assert found["differs"] == 11


def test_more_lines_are_judged_alike():
    scores, rewards, before, names = tables(seed=6)
    lines = {
        "router": scores,
        "best single": np.broadcast_to(np.nanmean(before, 0), rewards.shape),
        "best per group": -scores,
    }
    m = compare(lines, rewards, names)
    known = ~np.isnan(rewards).all(1)
    assert set(m["against"]) == {"best single", "best per group", "random", "shares at random"}
    assert m["against"]["best per group"]["differs"] == known.sum()
    assert m["reward"]["best per group"] < m["reward"]["oracle"]
