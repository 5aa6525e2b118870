import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from datasets import Dataset
from scipy.optimize import brentq, minimize

from persyn_datasets import InputError, Pairify, Teacher, train_router
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.router.add_teacher import OFFSET_RIDGE, RIDGES, add_teacher, fit_output
from persyn_datasets.router.temperature import calibrate

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
    with pytest.raises(InputError, match="'ant'"):
        add_teacher(router, anchors, TEACHERS[1], str(tmp_path / "a"))
    with pytest.raises(InputError, match="'newt'"):
        add_teacher(router, anchors, Teacher("org/newt", name="newt"), str(tmp_path / "a"))


def planted(x, weight, bias=0.0, noise=0.0, seed=1):
    """`o` of two other teachers, and how a new one of this planted output compares with them."""
    random = np.random.default_rng(seed)
    o = random.normal(size=(len(x), 2))
    drawn = x @ weight + bias + noise * random.logistic(size=len(x))
    return o, np.sign(drawn[:, None] - o)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_output_is_at_the_optimum(with_bias):
    """Against a general optimiser, on the loss as it is documented."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 5)) * [1, 10, 0.1, 3, 1] + [0, 5, 0, 0, 2]
    o, ahead = planted(x / x.std(0), random.normal(size=5), bias=0.5, noise=1.0)
    weight, bias, ridge = fit_output(x, o, ahead, with_bias)
    constant = np.ones(60)
    if not with_bias:
        assert bias == 0
        constant = x @ np.linalg.lstsq(x, constant)[0]
    centred = x - constant[:, None] * x.mean(0)
    z = np.column_stack([constant, centred / centred.std(0)])

    def loss(w):
        p = 1 / (1 + np.exp(-ahead * ((z @ w)[:, None] - o)))
        return -np.log(p).mean() + ridge * w[1:] @ w[1:] + OFFSET_RIDGE * w[0] ** 2

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    assert x @ weight[0] + bias[0] == pytest.approx(z @ best, abs=2e-3)


def test_a_planted_output_is_found_on_new_prompts():
    random = np.random.default_rng(1)
    weight, x = random.normal(size=6), random.normal(size=(600, 6))
    x[:, 0] = 2 + 0.01 * x[:, 0]  # a feature that is nearly constant, as language models have
    o, ahead = planted(x, weight, bias=1.0)
    for with_bias in (True, False):
        w, b, _ = fit_output(x[:300], o[:300], ahead[:300], with_bias)
        found = np.sign((x[300:] @ w[0] + b[0])[:, None] - o[300:])
        assert (found == ahead[300:]).mean() > 0.93


def test_cross_validation_takes_much_ridge_for_noise_and_little_for_a_clear_signal():
    random = np.random.default_rng(2)
    x = random.normal(size=(80, 10))
    assert fit_output(x, *planted(x, np.zeros(10), noise=1.0))[2] > 100 * min(RIDGES)
    assert fit_output(x, *planted(x, random.normal(size=10)))[2] < 0.01


def test_a_teacher_that_always_wins_has_a_finite_output():
    """There is no optimum without a penalty; with ours, σ(−w) = 2·OFFSET_RIDGE·w where features and
    the other's output say nothing.
    """
    x = 3 + np.random.default_rng(0).normal(size=(60, 8))
    weight, bias, _ = fit_output(x, np.zeros((60, 1)), np.ones((60, 1)))
    w = brentq(lambda w: 1 / (1 + np.exp(w)) - 2 * OFFSET_RIDGE * w, 0, 20)
    assert (x @ weight[0] + bias[0]).mean() == pytest.approx(w, abs=0.1)
