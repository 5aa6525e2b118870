import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from datasets import Dataset

from persyn_datasets import InputError, Pairify, Teacher, train_router
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.router.add_teacher import add_teacher, calibrate, temperature
from persyn_datasets.router.metrics import calibration_error, reliability

NAMES = ["zebra", "ant", "mole"]
WORDS = (
    "dog",
    "cat",
    "owl",
    "eel",
)  # the planted preference: dog → zebra, cat → ant, owl → mole, eel → newt
TEACHERS = [Teacher(f"org/{n}", name=n) for n in NAMES]


def ranked(n, names, start=0, words=WORDS[:3]):
    """Rows of Rank: the teacher of the prompt's word is the best, the others come in the order of
    `names`.
    """
    rows = []
    for i in range(start, start + n):
        messages = [{"role": "user", "content": f"Tell me of {i} {words[i % len(words)]}"}]
        best = WORDS.index(words[i % len(words)])
        responses = [
            {
                "teacher": name,
                "text": "four",
                "error": "",
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "reward": 1.0 if place == best else 0.5 - 0.1 * place,
            }
            for place, name in enumerate(names)
        ]
        rows.append(
            {"prompt_id": prompt_id(messages), "messages": messages, "responses": responses}
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module", params=["Bert", "Llama"])
def router(request, tmp_path_factory):
    """One whose head has a bias, and one whose head has none."""
    head = "MaskedLM" if request.param == "Bert" else "CausalLM"
    folder = tmp_path_factory.mktemp(request.param)
    backbone = save_model(folder / "b", kind=request.param, head=head, initializer_range=0.1)
    rows = ranked(90, NAMES)
    pairs = rows.map(Pairify(), batched=True, remove_columns=rows.column_names)
    return train_router(
        pairs, backbone, teachers=TEACHERS, freeze_backbone=True, output_dir=str(folder / "r")
    )


def head_of(path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    return model.score if hasattr(model, "score") else model.classifier


@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale(t):
    """Comparisons drawn from σ(o): of t · o the temperature is t, and dividing by it gives the
    least error.
    """
    random = np.random.default_rng(0)
    o = random.normal(size=(3000, 4))
    rewards = o + random.gumbel(
        size=o.shape
    )  # differences of Gumbels are logistic: P(i beats j) = σ(o_i − o_j)
    assert temperature(t * o, rewards) == pytest.approx(t, rel=0.05)
    assert calibration_error(reliability(o, rewards)) < 0.02


def test_without_a_comparison_there_is_no_temperature():
    o = np.random.default_rng(0).normal(size=(20, 3))
    assert temperature(o, np.full((20, 3), np.nan)) == 1
    assert temperature(o, np.ones((20, 3))) == 1


def test_reliability_by_hand():
    o = np.log([[0.66, 0.33, 0.11], [0.0001, 0.2, 0.8]])
    bins = reliability(o, np.array([[1.0, 0.0, 0.5], [0.2, 0.9, np.nan]]))
    # first: a over b with 2/3 (right), a over c with 6/7 (right), b over c with 3/4 (wrong);
    # second: b over a (right)
    assert [(b["comparisons"], b["observed"]) for b in bins] == [
        (1, 1.0),
        (1, 0.0),
        (1, 1.0),
        (1, 1.0),
    ]
    assert calibration_error(bins) == pytest.approx((1 / 3 + 3 / 4 + 1 / 7 + 0.0001 / 0.2001) / 4)
    assert calibration_error(reliability(o, np.zeros((2, 3)))) is None


def test_calibrating_divides_the_head_and_changes_no_choice(router, tmp_path):
    """On prompts whose best teacher is drawn at random the router is far too sure."""
    rows, random = ranked(60, NAMES, start=500).to_list(), np.random.default_rng(1)
    for row in rows:
        for response, reward in zip(row["responses"], random.permutation(3), strict=True):
            response["reward"] = float(reward)
    hopeless = Dataset.from_list(rows)
    o = router.scores(hopeless["messages"])
    after, facts = calibrate(router, hopeless, str(tmp_path / "r"))
    assert facts["temperature"] > 1.5 and facts["after"] < facts["before"]
    assert np.allclose(after.scores(hopeless["messages"]) * facts["temperature"], o, atol=1e-3)
    assert after.config.persyn["temperature"] == facts and after.content != router.content
    assert (after.scores(hopeless["messages"]).argmax(1) == o.argmax(1)).all()


def test_a_teacher_joins_and_the_others_stay_as_they_are(router, tmp_path):
    anchors, names = ranked(120, [*NAMES, "newt"], start=200, words=WORDS), [*NAMES, "newt"]
    larger = add_teacher(
        router, anchors, Teacher("org/newt", name="newt"), str(tmp_path / "larger")
    )
    assert larger.names == names and [t.name for t in larger.teachers] == names
    for old, new in zip(
        head_of(router.path).parameters(), head_of(larger.path).parameters(), strict=True
    ):
        assert torch.equal(old, new[:3]) and len(new) == 4
    fresh = ranked(60, names, start=900, words=WORDS)["messages"]
    o, before = larger.scores(fresh), router.scores(fresh)
    assert np.allclose(o[:, :3], before, atol=1e-3)
    assert np.mean([larger.names[i] == names[k % 4] for k, i in enumerate(o.argmax(1))]) > 0.9
    classify = transformers.pipeline("text-classification", larger.path, top_k=None, device="cpu")
    assert classify([fresh[3][0]["content"]])[0][0]["label"] == "newt"
    assert larger.config.persyn["added"][0]["prompts"] == 120 and larger.metrics is None


def test_who_cannot_join(router, tmp_path):
    anchors = ranked(8, NAMES)
    with pytest.raises(InputError, match="has a teacher 'ant' already"):
        add_teacher(router, anchors, TEACHERS[1], str(tmp_path / "a"))
    with pytest.raises(InputError, match="No anchor prompt compares 'newt'"):
        add_teacher(router, anchors, Teacher("org/newt", name="newt"), str(tmp_path / "a"))
