import numpy as np
import pytest
from conftest import save_model
from datasets import Dataset
from pool import TEACHERS, problems

from persyn_datasets import InputError, Route, Router
from persyn_datasets.data import prompts


@pytest.fixture(scope="module")
def router(done):
    return Router.from_pretrained(str(done.output / "router"))


@pytest.fixture
def rows():
    return Dataset.from_list([{"prompt": p, "source": "made"} for p, _ in problems(7)])


def test_it_adds_a_teacher_and_a_distribution(router, rows):
    routed = rows.map(Route(router), batched=True)
    scores = np.array(routed["router_scores"])
    assert scores.shape == (7, len(TEACHERS)) and np.allclose(scores.sum(1), 1, atol=1e-6)
    assert routed["teacher"] == [router.names[i] for i in scores.argmax(1)]
    assert routed["messages"] == [[{"role": "user", "content": p}] for p in rows["prompt"]]
    assert routed["prompt_id"] == [prompts.prompt_id(m) for m in routed["messages"]]
    assert routed["source"] == rows["source"]


def test_the_scores_are_bradley_terry_strengths(router, rows):
    """p_B / (p_A + p_B) is what the router expects: σ(o_B − o_A)."""
    o = router.scores([[{"role": "user", "content": p}] for p in rows["prompt"]])
    p = np.array(Route(router)({"prompt": rows["prompt"]})["router_scores"])
    assert np.allclose(
        p[:, 1] / (p[:, 0] + p[:, 1]), 1 / (1 + np.exp(o[:, 0] - o[:, 1])), atol=1e-5
    )


def test_batches_and_streams_give_the_same(router, rows):
    route = Route(router.path)  # by its path, too
    whole, streamed = (
        rows.map(route, batched=True),
        rows.to_iterable_dataset().map(route, batched=True, batch_size=3),
    )
    single = rows.map(route, batched=True, batch_size=1)
    for other in (single, streamed):
        assert [r["teacher"] for r in other] == whole["teacher"]
        assert np.allclose([r["router_scores"] for r in other], whole["router_scores"], atol=1e-5)


def test_teachers_are_masked_without_a_second_pass(router, rows, monkeypatch):
    first = rows.map(Route(router), batched=True)
    two = router.names[:2]
    expected = Route(router, two)(first[:])
    monkeypatch.setattr(Router, "scores", None)  # a pass would fail
    again = Route(router, two, from_scores=True)(first[:])
    assert again["teacher"] == expected["teacher"] and set(again["teacher"]) == set(two)
    assert np.allclose(again["router_scores"], expected["router_scores"], atol=1e-6)
    third = [router.names[2]]
    with pytest.raises(InputError, match=f"router_scores: .*{third[0]}"):
        Route(router, third, from_scores=True)(first[:] | again)
    with pytest.raises(InputError, match="router_scores: .* 3 numbers"):
        Route(router, from_scores=True)(rows[:])
    with pytest.raises(InputError, match="router_scores: .* 3 numbers"):
        Route(router, from_scores=True)(first[:] | {"router_scores": [[0.5, 0.5]] * 7})


def test_bad_input(router, tmp_path):
    with pytest.raises(InputError, match="router"):
        Route(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="'messages'.*'prompt'"):
        Route(router)({"question": ["?"]})
    with pytest.raises(InputError, match="'persyn'"):
        Route(save_model(tmp_path / "plain"))
