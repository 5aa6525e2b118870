import random

from datasets import Dataset

from persyn_datasets import Pairify, schema


def ranked_set(prompts, teachers, seed):
    rng, rows = random.Random(seed), []
    for p in range(prompts):
        names = rng.sample([f"t{i}" for i in range(teachers)], rng.randint(1, teachers))
        rewards = [rng.choice([None, 0.0, 0.25, 0.5, rng.random()]) for _ in names]
        responses = [{"teacher": t, "reward": r} for t, r in zip(names, rewards, strict=True)]
        rows.append({"prompt_id": str(p), "messages": [{"role": "user", "content": f"q{p}"}], "responses": responses})
    return rows


def test_against_a_double_loop():
    rows = ranked_set(prompts=120, teachers=7, seed=0)
    expected = {}
    for row in rows:
        for winner in row["responses"]:
            for loser in row["responses"]:
                if None not in (winner["reward"], loser["reward"]) and winner["reward"] > loser["reward"]:
                    margin = winner["reward"] - loser["reward"]
                    expected[row["prompt_id"], winner["teacher"], loser["teacher"]] = margin
    table = Dataset.from_list(rows)
    pairs = table.map(Pairify(), batched=True, batch_size=7, remove_columns=table.column_names)
    found = {}
    for pair in pairs:
        sides = [pair["teacher_a"], pair["teacher_b"]]
        found[pair["prompt_id"], sides[pair["label"]], sides[1 - pair["label"]]] = pair["margin"]
        assert pair["messages"] == [{"role": "user", "content": f"q{pair['prompt_id']}"}]
    assert found == expected
    assert len(pairs) == len(expected) > 300
    assert {**pairs.features} == schema.PAIRS
    assert {0, 1} == set(pairs["label"])


def test_n_distinct_rewards_give_all_pairs_and_ties_none():
    responses = [{"teacher": str(i), "reward": float(i)} for i in range(19)]
    batch = {"prompt_id": ["p"], "messages": [[{"role": "user", "content": "q"}]]}
    assert len(Pairify()(batch | {"responses": [responses]})["label"]) == 19 * 18 // 2
    ties = [{"teacher": str(i), "reward": 0.5} for i in range(4)]
    assert Pairify()(batch | {"responses": [ties]}) == {column: [] for column in schema.PAIRS}


def test_under_map_when_the_first_rows_give_no_pair():
    rows = ranked_set(prompts=30, teachers=4, seed=1)
    for row in rows[:20]:
        for response in row["responses"]:
            response["reward"] = None
    table = Dataset.from_list(rows)
    pairs = table.map(Pairify(), batched=True, batch_size=5, remove_columns=table.column_names)
    assert {**pairs.features} == schema.PAIRS
    assert min(int(p) for p in pairs["prompt_id"]) >= 20
