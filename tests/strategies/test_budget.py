import json

import numpy as np
import pytest
from datasets import load_dataset
from pool import TEACHERS, make_recipe, problems, write_lines
from scipy.special import softmax

from persyn_datasets import InputError, PersynBuilder, Recipe, Route, Router, Teacher, load_prompts
from persyn_datasets.cli import main
from persyn_datasets.report import text as report
from persyn_datasets.strategies.budget import (
    Budget,
    _line,
    estimates,
    expected_reward,
    mean_win,
    within_budget,
)

PRICES = {
    "adder": {"input": 100, "output": 1000},
    "multiplier": {"input": 200, "output": 3000},
    "guesser": None,
}


def priced(folder, model, **more):
    values = make_recipe(folder, model, **more)
    for teacher in values["teachers"]:
        teacher["price"] = PRICES[teacher["name"]]
    return values


@pytest.fixture(scope="module")
def done(chat_model, models_folder):
    """A build whose budget is the half of what it costs without one; its answers have no token
    counts.
    """
    folder = models_folder / "budget"
    folder.mkdir()
    free = PersynBuilder(Recipe.from_dict(priced(folder, chat_model)), folder / "free")
    free.download_and_prepare()
    most = free.stats["tradeoff"]["curve"][-1]["spend"]
    builder = PersynBuilder(
        Recipe.from_dict(priced(folder, chat_model, budget=most / 2)), folder / "half"
    )
    builder.download_and_prepare()
    return free, builder


def test_mean_win_is_what_bradley_terry_expects():
    o = np.random.default_rng(0).normal(size=(5, 4))
    sigma = 1 / (1 + np.exp(-(o[:, :, None] - o[:, None, :])))
    expected = [
        [np.mean([sigma[x, i, j] for j in range(4) if j != i]) for i in range(4)] for x in range(5)
    ]
    assert np.allclose(mean_win(softmax(o, -1)), expected)
    assert (mean_win(softmax(o, -1)).argsort() == o.argsort()).all()
    o[:, 1] = -np.inf  # not available: the others play among themselves
    worth = mean_win(softmax(o, -1))
    assert np.isneginf(worth[:, 1]).all() and np.allclose(
        worth[:, [0, 2, 3]], mean_win(softmax(o[:, [0, 2, 3]], -1))
    )


@pytest.mark.parametrize("spread", [1e-3, 1e-1, 1.0])
def test_no_reward_is_promised_that_was_never_seen(spread):
    """Like worths and noisy rewards: an unbounded line of least squares is steep (8 was seen)."""
    generator = np.random.default_rng(0)
    worth = 0.5 + spread * generator.uniform(-0.5, 0.5, 40)
    rewards = np.clip(0.5 + 2 * (worth - 0.5) / spread + generator.normal(0, 0.3, 40), 0, 1)
    intercept, slope = _line(worth, rewards)
    ends = np.array([intercept, intercept + slope])
    assert (ends >= rewards.min() - 1e-6).all() and (ends <= rewards.max() + 1e-6).all()
    assert slope >= 0


def test_a_line_within_the_rewards_is_that_of_least_squares():
    worth = np.array([*np.linspace(0, 1, 30), 0.5, 0.5])
    rewards = 0.3 + 0.4 * worth + np.random.default_rng(0).normal(0, 0.05, 32)
    rewards[-2:] = 0, 1  # so that the line is free
    assert np.allclose(_line(worth, rewards), np.polyfit(worth, rewards, 1)[::-1], atol=1e-6)
    assert _line(worth[:0], rewards[:0]) == (0, 0)


def test_what_is_expected_of_an_answer_is_what_calibration_measured(done):
    free, _ = done
    router = Router.from_pretrained(str(free.output / "router"))
    routed = load_prompts(free.recipe.prompts.path, column="prompt").map(
        Route(router), batched=True
    )
    reward, cost = estimates(routed, router, "usd", router.teachers)
    p = np.array(routed["router_scores"])
    line = router.config.persyn["expected"]["reward"]
    assert np.allclose(reward, line["intercept"] + line["slope"] * mean_win(p), atol=1e-6)
    # Recorded answers count no tokens: 4 characters are one, of the prompt and of the mean answer
    # in calibration.
    calibration = [
        row for side in load_dataset(str(free.folder), "calibration").values() for row in side
    ]
    for name, price in PRICES.items():
        lengths = [
            len(r["text"]) for row in calibration for r in row["responses"] if r["teacher"] == name
        ]
        prompts = np.array([len(problem) for problem, _ in problems()])
        price = price or {"input": 0, "output": 0}
        usd = (prompts / 4 * price["input"] + np.mean(lengths) / 4 * price["output"]) / 1e6
        assert np.allclose(cost[:, router.names.index(name)], usd)
    tokens = estimates(routed, router, "tokens", router.teachers, answered=routed["prompt_id"][:2])[
        1
    ]
    assert (tokens[:2] == 0).all() and (tokens[2:] > 0).all()


def test_the_line_takes_scores_to_held_out_rewards():
    p = softmax(np.random.default_rng(0).normal(size=(50, 3)), -1)
    reward = expected_reward(p, {"intercept": 0.2, "slope": 0.5})
    assert np.allclose(reward, 0.2 + 0.5 * mean_win(p)) and np.allclose(
        reward.mean(), 0.45
    )  # the mean win is a half


def test_a_builds_budget_is_kept_and_spent_best(done):
    free, half = done
    made = half.stats["tradeoff"]["budget"]
    most = free.stats["tradeoff"]["curve"][-1]
    assert (
        0 < made["spend"] <= most["spend"] / 2
        and made["reward"] < most["reward"]
        and made["multiplier"] > 0
    )
    before, after = (load_dataset(str(b.folder), "routing", split="train") for b in done)
    assert (
        before["router_scores"] == after["router_scores"] and before["teacher"] != after["teacher"]
    )
    answers = half.as_dataset(split="train")
    assert answers["teacher"] == after["teacher"] and len(answers) == 24
    # The calibration's answers are there already: those prompts keep their best teacher.
    paid = {
        key
        for side in load_dataset(str(half.folder), "calibration").values()
        for key in side["prompt_id"]
    }
    kept = [
        a == b
        for key, a, b in zip(after["prompt_id"], before["teacher"], after["teacher"], strict=True)
        if key in paid
    ]
    assert len(kept) == 16 and all(kept)


def test_the_curve_goes_from_the_cheapest_to_the_router_alone(done):
    free, _ = done
    tradeoff, metrics = free.stats["tradeoff"], free.stats["router"]["held_out"]
    spends, rewards = ([p[key] for p in tradeoff["curve"]] for key in ("spend", "reward"))
    assert (
        spends == sorted(spends) and rewards == sorted(rewards) and spends[0] == 0
    )  # the guesser is free
    assert tradeoff["curve"][-1]["measured"] == pytest.approx(metrics["reward"]["router"])
    best = tradeoff["teachers"][metrics["best_single_teacher"]]["measured"]
    assert best == pytest.approx(metrics["reward"]["best single"])
    assert tradeoff["teachers"]["guesser"]["spend"] == 0
    text = report.describe(free.recipe, free.stats)
    assert "guesser alone" in text and "Within the budget" not in text
    assert "Within the budget" in report.describe(done[1].recipe, done[1].stats)


def test_a_share_and_a_mask_hold_together(done):
    router = Router.from_pretrained(str(done[0].output / "router"))
    rows = load_prompts(done[0].recipe.prompts.path, column="prompt")
    routed = rows.map(Route(router, ["adder", "multiplier"]), batched=True)
    capped, expected = within_budget(
        routed, router, Budget(max_share={"adder": 0.25}), router.teachers
    )
    assert sorted(capped["teacher"]) == ["adder"] * 6 + ["multiplier"] * 18
    assert capped["router_scores"] == routed["router_scores"] and expected["unit"] == "usd"
    with pytest.raises(InputError, match="12 prompts.* 24"):
        within_budget(
            routed, router, Budget(max_share={"adder": 0.25, "multiplier": 0.25}), router.teachers
        )
    with pytest.raises(InputError, match=r"budget \(usd\).* 0"):
        within_budget(routed, router, Budget(usd=0), router.teachers)


def test_persyn_route_and_synthesize_keep_to_a_budget(done, tmp_path, capsys):
    router = str(done[0].output / "router")
    new = write_lines(tmp_path / "new.jsonl", [{"prompt": p} for p, _ in problems(12)])
    assert main(["route", router, new, "--output", str(tmp_path / "a"), "--budget", "0"]) == 0
    assert set(load_dataset(str(tmp_path / "a"), split="train")["teacher"]) == {"guesser"}
    share = "{max_share: {guesser: 0, adder: 0.5}}"
    assert (
        main(["synthesize", router, new, "--output", str(tmp_path / "b"), "--budget", share]) == 0
    )
    assert load_dataset(str(tmp_path / "b"), split="train")["teacher"].count("multiplier") >= 6
    for arguments, message in (
        (["--budget", "5", "--streaming"], "leave out --streaming"),
        (["--budget", "{dollars: 5}"], "unknown key 'budget.dollars'; did you mean"),
        (
            ["--budget", "{max_share: {nobody: 0.1}}"],
            "budget.max_share: 'nobody' is no teacher; they are adder",
        ),
        (["--budget", "much"], "budget: found 'much'"),
    ):
        assert main(["route", router, new, "--output", str(tmp_path / "c"), *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"usd": 1, "tokens": 5}, "give one of them"),
        ({}, "expected usd, tokens or max_share"),
        (-3, "budget.usd is -3"),
        ({"max_share": {"nobody": 0.1}}, "'nobody' is no teacher"),
        (5, "the teacher 'adder' has no price"),
        ("much", "budget: found 'much'"),
    ],
)
def test_a_budget_that_is_none_is_refused_at_once(budget, message, tmp_path, chat_model):
    with pytest.raises(InputError) as error:
        Recipe.from_dict(make_recipe(tmp_path, chat_model, budget=budget))
    assert message in str(error.value)


def test_a_router_that_does_not_know_what_answers_cost(done, tmp_path):
    router = Router.from_pretrained(str(done[0].output / "router"))
    router.save_pretrained(str(tmp_path / "r"))
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    del config["persyn"]["expected"]
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    bare = Router.from_pretrained(str(tmp_path / "r"))
    routed = load_prompts(write_lines(tmp_path / "p.jsonl", [{"prompt": "1 plus 1?"}])).map(
        Route(bare), batched=True
    )
    with pytest.raises(InputError, match="expected="):
        within_budget(routed, bare, Budget(tokens=100), [Teacher("m", name=n) for n in TEACHERS])
