from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from persyn_datasets import InputError, Rank
from persyn_datasets.data import schema
from persyn_datasets.stages.rank import combined_reward, normalized


def response(teacher, quality=None, learnability=None, error=""):
    return {
        "teacher": teacher,
        "error": error,
        "quality": quality,
        "learnability": learnability,
        "rsr": 2.0,
    }


def batch_of(*rows):
    return {
        "prompt_id": [f"p{i}" for i in range(len(rows))],
        "responses": [list(row) for row in rows],
    }


# Three prompts: A, B, C answer the first (X fails between them), A and C the second, nobody the
# third.
BATCH = batch_of(
    [
        response("A", 1.0, -0.8),
        response("X", error="no luck"),
        response("B", 0.0, -0.4),
        response("C", 1.0, -1.2),
    ],
    [response("A", 0.0, -2.0), response("C", 1.0, -1.6)],
    [
        response("X", error="no luck"),
        response("Y", error="no luck"),
        response("Z", error="no luck"),
    ],
)
# By hand, α = 0.4, reward = 0.6·q + 0.4·l of the normalised signals: prompt  1: q = (1, 0, 1); l:
# min −1.2, range 0.8 → (.5, 1, 0)         .6+.2 = .8    .4    .6 2: q = (0, 1); l = (0, 1)
# 0    .6+.4 = 1 zscore  1: q: mean 2/3, σ = √2/3 → (1/√2, −√2, 1/√2) l: mean −.8, σ = .4·√(2/3) →
# (0, √1.5, −√1.5) A .6/√2 = .424264   B −.6·√2 + .4·√1.5 = −.358630   C .424264 − .489898 =
# −.065634 2: q = l = (−1, 1)                                             −1    1 rank    1: q: A
# and C share the places 1 and 2 of 0..2 → (.75, 0, .75); l → (.5, 1, 0) A .45+.2 = .65   B .4   C
# .45 2: 0 and 1 none    1: A .6−.32 = .28   B −.16   C .6−.48 = .12 2: A −.8   C .6−.64 = −.04
# corpus     q of both: 0 0 1 1 1, so percentiles 0 and 1: as they are l of both: −2 −1.6 −1.2 −.8
# −.4; 1 % is at place .04: −2+.04·.4 = −1.984, 99 % at 3.96: −.416 1: l: range 1.568: A 1.184/1.568
# = .755102   B clipped to 1   C .784/1.568 = .5   → .902041   .4   .8 2: l: A clipped to 0   C
# .384/1.568 = .244898                         → 0   .697959
REWARDS = {
    "prompt": [[0.8, None, 0.4, 0.6], [0, 1]],
    "zscore": [[0.424264, None, -0.358630, -0.065634], [-1, 1]],
    "rank": [[0.65, None, 0.4, 0.45], [0, 1]],
    "none": [[0.28, None, -0.16, 0.12], [-0.8, -0.04]],
    "corpus": [[0.902041, None, 0.4, 0.8], [0, 0.697959]],
}
RANKS = [[1, None, 3, 2], [2, 1], [None] * 3]  # the same for all five


def column(ranked, name):
    return [[r[name] for r in row] for row in ranked["responses"]]


@pytest.mark.parametrize("normalize", REWARDS)
def test_rewards_by_hand(normalize):
    ranked = Rank(alpha=0.4, normalize=normalize)(BATCH)
    for found, expected in zip(
        column(ranked, "reward"), [*REWARDS[normalize], [None] * 3], strict=True
    ):
        assert found == [None if e is None else pytest.approx(e, abs=1e-6) for e in expected]
    assert column(ranked, "rank") == RANKS
    assert ranked["best_teacher"] == ["A", "C", None]


@pytest.mark.parametrize("missing", [None, float("nan")])
@pytest.mark.parametrize("signal", ["quality", "learnability"])
@pytest.mark.parametrize("normalize", REWARDS)
def test_a_signal_that_is_missing_poisons_no_other_answer(missing, signal, normalize):
    row = [
        response(t, q, -1.0 - i)
        for i, (t, q) in enumerate(zip("abcd", (1.0, 1.0, 0.0, 0.5), strict=True))
    ]
    row[0][signal] = missing
    nobody = [one | {signal: missing} for one in row]
    ranked = Rank(normalize=normalize)(batch_of(row, nobody))
    assert ranked["best_teacher"] == ["b", None]
    assert column(ranked, "reward")[0][0] is None and column(ranked, "reward")[1] == [None] * 4
    others = Rank(normalize=normalize)(batch_of(row[1:]))
    assert column(ranked, "reward")[0][1:] == column(others, "reward")[0]


def test_the_ends_of_alpha():
    ranked = Rank(alpha=0)(
        BATCH
    )  # quality alone: A and C share the first place, and the more learnable is best
    assert column(ranked, "rank") == [[1, None, 3, 1], [2, 1], [None] * 3]
    assert column(ranked, "reward")[0] == [1, None, 0, 1]
    assert ranked["best_teacher"] == ["A", "C", None]
    ranked = Rank(alpha=1)(BATCH)
    assert column(ranked, "rank") == [[2, None, 1, 3], [2, 1], [None] * 3]
    assert ranked["best_teacher"] == ["B", "C", None]


@pytest.mark.parametrize("alpha", [0.01, 0.25, 0.4, 0.49])
def test_with_right_and_wrong_every_small_alpha_ranks_alike(alpha):
    """As the documentation says; at 0.5 and more the order may be another."""
    assert column(Rank(alpha=alpha)(BATCH), "rank") == RANKS
    assert column(Rank(alpha=0.8)(BATCH), "rank") != RANKS


@pytest.mark.parametrize("wrong", [1, 5])
def test_a_wrong_answer_among_hundreds_of_right_ones_stays_wrong(wrong):
    """Of 600 answers: both percentiles are those of a right one, and wrong ones are likelier."""
    rows = [[response("A", 1.0, -2.0), response("B", 1.0, -1.5)] for _ in range(300)]
    for row in rows[:wrong]:
        row[1] = response("B", 0.0, -0.5)
    best = Rank(normalize="corpus")(batch_of(*rows))["best_teacher"]
    assert best == ["A"] * wrong + ["B"] * (300 - wrong)
    rare = 1 - normalized(np.array([[r["quality"] for r in row] for row in rows]), "corpus")
    assert rare.sum() == wrong  # and the other way round: all wrong but for a few


@pytest.mark.parametrize("normalize", ["prompt", "zscore", "rank", "corpus"])
@pytest.mark.parametrize(("quality", "learnability"), [(0.1, -0.7), (1.0, -1 / 3)])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_signals_that_are_all_equal_do_not_decide(normalize, quality, learnability, n):
    ranked = Rank(normalize=normalize)(
        batch_of([response(str(i), quality, learnability) for i in range(n)])
    )
    assert column(ranked, "rank") == [[1] * n]
    assert column(ranked, "reward") == [[0 if normalize != "rank" or n == 1 else 0.5] * n]


def test_one_valid_response_is_best():
    row = [response("X", error="no luck"), response("A", 0.0, -3.0), response("Y", 1.0, None)]
    ranked = Rank()(batch_of(row))
    assert column(ranked, "rank") == [[None, 1, None]]
    assert column(ranked, "reward") == [[None, 0, None]]
    assert ranked["best_teacher"] == ["A"]
    assert column(Rank(normalize="none")(batch_of(row)), "reward") == [
        [None, pytest.approx(-1.2), None]
    ]


def test_a_response_without_one_signal_does_not_scale_the_other():
    row = [response("A", 1.0, -1.0), response("B", 0.0, -2.0)]
    extremes = [
        response("X", 9.0, None),
        response("Y", None, -9.0),
        response("Z", 9.0, 9.0, error="late"),
    ]
    for normalize in REWARDS:
        with_them = Rank(normalize=normalize)(batch_of(row + extremes))
        assert column(with_them, "reward") == [
            column(Rank(normalize=normalize)(batch_of(row)), "reward")[0] + [None] * 3
        ]


def test_ties_go_to_the_learnable_then_to_the_seed_never_to_the_order():
    names = ["A", "B", "C", "D"]
    rows = [[response(name, 1.0, -0.5) for name in names] for _ in range(400)]
    best = Rank(alpha=0)(batch_of(*rows))["best_teacher"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        shuffled = [[row[i] for i in rng.permutation(4)] for row in rows]
        assert Rank(alpha=0)(batch_of(*shuffled))["best_teacher"] == best
    assert min(Counter(best).values()) > 60  # 100 expected of each, σ = 8.7
    assert Rank(alpha=0, seed=1)(batch_of(*rows))["best_teacher"] != best
    learnable = [[*row[:3], response("D", 1.0, -0.4), response("E", 0.0, -0.1)] for row in rows]
    assert set(Rank(alpha=0)(batch_of(*learnable))["best_teacher"]) == {"D"}


def test_arrays_and_nan():
    """NaN stays NaN, and the equation is (1 − α)·r_q + α·r_l."""
    r_q, r_l = (
        np.array([[1.0, np.nan, 0.0], [np.nan] * 3]),
        np.array([[-1.0, np.nan, -3.0], [np.nan] * 3]),
    )
    for how in REWARDS:
        assert (np.isnan(normalized(r_q, how)) == np.isnan(r_q)).all()
        mixed = combined_reward(r_q, r_l, 0.3, how)
        np.testing.assert_allclose(mixed, 0.7 * normalized(r_q, how) + 0.3 * normalized(r_l, how))


def test_input_is_not_changed_and_map_gives_the_schema():
    Rank()(BATCH)
    assert set(BATCH["responses"][0][0]) == {"teacher", "error", "quality", "learnability", "rsr"}
    full = {
        "sample": 0,
        "text": "x",
        "reasoning": "",
        "tool_calls": "",
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "reasoning_tokens": 0,
    }
    rows = [
        {"prompt_id": p, "responses": [full | r for r in row]}
        for p, row in zip(*BATCH.values(), strict=True)
    ]
    ranked = Dataset.from_list(rows * 400).map(Rank(), batched=True)
    assert {k: ranked.features[k] for k in schema.RANKED} == schema.RANKED
    assert list(ranked["best_teacher"]) == ["A", "C", None] * 400


def test_mistakes():
    with pytest.raises(InputError, match=r"reward\.alpha is 1\.1"):
        Rank(alpha=1.1)
    with pytest.raises(
        InputError,
        match=r"reward\.normalize is 'max'",
    ):
        Rank(normalize="max")
    with pytest.raises(InputError, match=r"reward\.learnability is 'loss'"):
        Rank(learnability="loss")


def tabled(batch):
    """As `with_format("arrow")` and Ray Data hand a batch over."""
    return pa.table({key: pa.array(column) for key, column in batch.items()})


def test_arrow_tables_give_the_same_whatever_their_chunks():
    """Slices with an offset, empty chunks, rows of unequal width, an empty batch."""
    rng = np.random.default_rng(0)
    rows = [
        [
            response(
                f"t{t}",
                *(None if rng.random() < 0.2 else float(rng.integers(3)) for _ in range(2)),
                error="no luck" if rng.random() < 0.2 else "",
            )
            for t in rng.permutation(7)[: rng.integers(8)]
        ]
        for _ in range(60)
    ]
    batch = batch_of(*rows) | {"level": list(range(60))}
    for rank in (Rank(), Rank(normalize="corpus", seed=3), Rank(learnability="rsr")):
        expected = rank(batch)
        whole = tabled(batch)
        chunked = pa.concat_tables(
            [whole.slice(0, 7), whole.slice(7, 0), whole.slice(7, 50), whole.slice(57)]
        )
        for table in (whole, chunked):
            ranked = rank(table)
            assert ranked.column_names == ["prompt_id", "responses", "level", "best_teacher"]
            assert ranked.drop_columns(["prompt_id", "level"]).to_pydict() == expected
            assert rank(ranked).equals(ranked)  # ranked again, in place of the first
        if rank.normalize != "corpus":
            for start, n in ((0, 5), (11, 30), (59, 1), (20, 0)):
                part = rank(chunked.slice(start, n)).to_pylist()
                assert part == rank(whole).to_pylist()[start : start + n]
    none = {"responses": [[], []], "best_teacher": [None, None]}
    assert Rank()(batch_of([], [])) == none
    assert (
        Rank()(tabled(batch_of([], []) | {"responses": [[], None]})).select(list(none)).to_pydict()
        == none
    )


def test_of_several_responses_a_teachers_reward_is_their_mean():
    row = [  # of A two and a failure, of B two, of C one; none: r = 0.5·q + 0.5·l
        response("A", 1.0, -1.0),
        response("A", 0.0, -2.0),
        response("A", error="no luck"),
        response("B", 0.0, -1.0),
        response("B", 1.0, -1.0),
        response("C", 0.0, -0.5),
    ]
    ranked = Rank(alpha=0.5, normalize="none")(batch_of(row, row[::-1], row[:1]))
    assert column(ranked, "reward")[0] == [
        0.0,
        -1.0,
        None,
        -0.5,
        0.0,
        -0.25,
    ]  # A −0.5, B −0.25, C −0.25
    assert column(ranked, "rank") == [[3, 3, None, 1, 1, 1], [1, 1, 1, None, 3, 3], [1]]
    assert ranked["best_teacher"] == ["C", "C", "A"]  # of B and C, C is more learnable


def test_the_rank_surprisal_ratio_as_learnability():
    """Lower is better: r_l = −RSR."""
    row = [
        response(t, 1.0, -1.0) | {"rsr": rsr}
        for t, rsr in (("A", 5.0), ("B", 2.0), ("C", 3.0), ("D", None))
    ]
    ranked = Rank(learnability="rsr")(batch_of(row))
    assert column(ranked, "reward") == [[0, pytest.approx(0.4), pytest.approx(0.4 * 2 / 3), None]]
    assert ranked["best_teacher"] == ["B"]
    assert column(Rank(alpha=1, normalize="none", learnability="rsr")(batch_of(row)), "reward") == [
        [-5, -2, -3, None]
    ]
