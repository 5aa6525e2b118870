"""A share of a count is one number, wherever it is computed: 0.29 of 100 are 29."""

from fractions import Fraction

import numpy as np
import pytest
from chat_server import ChatServer, echo
from datasets import Dataset
from pool import make_recipe

from persyn_datasets import BuildError, Generate, Recipe, Sampling, Teacher
from persyn_datasets.config.shares import part_of
from persyn_datasets.plan import cost
from persyn_datasets.strategies.second_opinion import Room, least_sure

SHARES = [0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.58, 0.999, 0.0, 1.0]  # × 100 is below, of most


def test_a_part_is_the_largest_that_is_no_more_than_its_share():
    for share in SHARES:
        for count in (0, 1, 7, 100, 1000, 10**9):
            assert part_of(share, count) == Fraction(str(share)) * count // 1


@pytest.mark.parametrize("share", SHARES)
def test_plan_and_second_opinions_ask_the_same_number(share, chat_model, tmp_path):
    scores = np.full((100, 2), 0.5)
    routed = Dataset.from_dict({"router_scores": scores.tolist(), "teacher": ["a"] * 100})
    room = Room(np.array([100, 100]), np.zeros((100, 2)), np.inf)
    recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model, second_opinion=share))
    planned = cost.plan(recipe, 100)["asked_twice"]
    assert planned == Fraction(str(share)) * 100 // 1
    assert len(least_sure(routed, ["a", "b"], share)[0]) == planned
    assert len(least_sure(routed, ["a", "b"], share, room)[0]) == planned


def test_as_many_may_fail_as_max_failed_allows():
    def reply(request, nth):
        n = int(request["messages"][-1]["content"][7:])
        return (400, {}, {"error": "no"}) if n % 100 < 29 and n < 200 else echo(request, nth)

    with ChatServer(reply) as server:
        limits = {"sampling": Sampling(max_tokens=9), "base_url": server.url}
        teacher = Teacher("m", engine="endpoint", **limits)
        prompts = {"prompt": [f"prompt {n}" for n in range(100)]}
        rows = Generate([teacher], max_failed=0.29)(prompts)["responses"]
        assert sum(bool(r["error"]) for (r,) in rows) == 29
        with pytest.raises(BuildError, match="29 of 100"):
            Generate([teacher], max_failed=0.28)(prompts)
