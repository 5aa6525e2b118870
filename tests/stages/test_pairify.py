import random

import pyarrow as pa
from datasets import Dataset, Features

from persyn_datasets import Pairify
from persyn_datasets.data import schema


def ranked_set(prompts, teachers, seed):
    rng, rows = random.Random(seed), []
    for p in range(prompts):
        names = rng.sample([f"t{i}" for i in range(teachers)], rng.randint(1, teachers))
        rewards = [rng.choice([None, 0.0, 0.25, 0.5, rng.random()]) for _ in names]
        responses = [{"teacher": t, "reward": r} for t, r in zip(names, rewards, strict=True)]
        rows.append(
            {
                "prompt_id": str(p),
                "messages": [{"role": "user", "content": f"q{p}"}],
                "responses": responses,
            }
        )
    return rows


def test_against_a_double_loop():
    rows = ranked_set(prompts=120, teachers=7, seed=0)
    expected = {}
    for row in rows:
        for winner in row["responses"]:
            for loser in row["responses"]:
                if (
                    None not in (winner["reward"], loser["reward"])
                    and winner["reward"] > loser["reward"]
                ):
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


def test_arrow_tables_give_the_same_whatever_their_chunks():
    rows = ranked_set(prompts=60, teachers=6, seed=2)
    expected = Pairify()({key: [row[key] for row in rows] for key in rows[0]})
    table = pa.Table.from_pylist(rows)
    chunked = pa.concat_tables(
        [table.slice(0, 7), table.slice(7, 0), table.slice(7, 50), table.slice(57)]
    )
    assert Pairify()(table).to_pydict() == Pairify()(chunked).to_pydict() == expected
    assert Pairify()(table).schema == Features(schema.PAIRS).arrow_schema
    parts = [Pairify()(chunked.slice(i, 13)) for i in range(0, 60, 13)]
    assert (
        pa.concat_tables(parts).to_pydict() == expected
    )  # also the order of the teachers is that of their row
    assert Pairify()(table.slice(0, 0)).num_rows == 0
    as_strings = table.drop_columns("messages").append_column(
        "prompt", [[f"q{i}" for i in range(60)]]
    )
    assert Pairify()(as_strings).to_pydict() == expected


def test_teachers_with_several_responses_are_compared_once_by_their_mean():
    rewards = [
        ("B", 1.0),
        ("A", 0.5),
        ("B", 0.0),
        ("A", None),
        ("C", 0.5),
        ("D", 1.0),
        ("D", 0.75),
        ("E", None),
    ]
    responses = [{"teacher": t, "reward": r, "sample": i} for i, (t, r) in enumerate(rewards)]
    batch = {
        "prompt_id": ["p"],
        "messages": [[{"role": "user", "content": "q"}]],
        "responses": [responses],
    }
    pairs = Pairify()(batch)  # A, B and C all have 0.5, D 0.875, E nothing
    sides = list(
        zip(pairs["teacher_a"], pairs["teacher_b"], pairs["label"], pairs["margin"], strict=True)
    )
    assert sides == [("B", "D", 1, 0.375), ("A", "D", 1, 0.375), ("C", "D", 1, 0.375)]
