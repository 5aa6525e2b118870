"""The target signal against references of its own: plain logits, and gradients."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from datasets import load_dataset
from pool import make_recipe, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from persyn_datasets import InputError, Rank, Recipe, Score, Student
from persyn_datasets.config.target import Target
from persyn_datasets.data.sources import load
from persyn_datasets.signals.target import theta_plus
from persyn_datasets.store.models import free

SOLUTIONS = [(f"{n} and {n}?", f"The sum of {n} and {n} is {2 * n}, there.") for n in range(10, 22)]


@pytest.fixture
def target(tmp_path):
    rows = [{"prompt": q, "solution": a} for q, a in SOLUTIONS]
    path = write_lines(tmp_path / "target.jsonl", rows)
    return Target(path, response_column="solution", learning_rate=5e-3)


def response(teacher, text, error=""):
    counts = {"prompt_tokens": 1, "completion_tokens": 1}
    return {
        "teacher": teacher,
        "sample": 0,
        "text": text,
        "finish_reason": "stop",
        "error": error,
        **counts,
    }


TEXTS = ("The sum of 40 and 40 is 80, there.", "zzz QQ zzz QQ", "I do not know.")
BATCH = {
    "prompt_id": ["a"],
    "messages": [[{"role": "user", "content": "40 and 40?"}]],
    "answer": ["80"],
    "responses": [
        [response(f"t{i}", text) for i, text in enumerate(TEXTS)] + [response("t3", "", "no luck")]
    ],
}


def log_likelihood(folder, question, text):
    """Mean log p of the text's tokens, from the plain logits of the whole sequence."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    y = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + y])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(y) - 1)
    return sum(log_probs[i, t].item() for i, t in zip(places, y, strict=True)) / len(y)


def test_a_student_whose_forward_keeps_all_logits(chat_model, target, monkeypatch):
    """As xLSTM's and many of models with code of their own: the same steps are taken."""
    expected = signals_of(Score(chat_model, target=target)(BATCH))
    monkeypatch.setenv("PERSYN_JOURNAL", f"{target.path}.journal")  # nothing is known
    whole = LlamaForCausalLM.forward
    widths = []

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **options):
        assert "logits_to_keep" not in options
        output = whole(self, input_ids, attention_mask, position_ids, **options)
        widths.append(output.logits.shape[1] - input_ids.shape[1])
        return output

    free()
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    found = signals_of(Score(chat_model, target=target)(BATCH))
    free()
    assert set(widths) == {0} and found == pytest.approx(expected, abs=1e-4)


def signals_of(scored):
    return [r["target"] for r in scored["responses"][0][:3]]


def test_it_is_the_difference_of_two_students_and_names_what_the_target_teaches(chat_model, target):
    [scored] = Score(chat_model, target=target)(BATCH)["responses"]
    plus = theta_plus(Student(chat_model), target).model
    for r, text in zip(scored, TEXTS, strict=False):
        by_hand = log_likelihood(plus, "40 and 40?", text) - log_likelihood(
            chat_model, "40 and 40?", text
        )
        assert r["target"] == pytest.approx(by_hand, abs=1e-4)
    like, noise, other, failed = (r["target"] for r in scored)
    assert like > noise and other is not None and failed is None


def test_theta_plus_has_learnt_the_target(chat_model, target):
    plus = theta_plus(Student(chat_model), target).model
    gains = [log_likelihood(plus, q, a) - log_likelihood(chat_model, q, a) for q, a in SOLUTIONS]
    assert min(gains) > 0.5


def test_to_first_order_it_is_the_inner_product_of_gradients(chat_model, tmp_path):
    """One tiny step: r_t of two responses differs as ⟨θ⁺ − θ, ∇ mean log p(y)⟩ does."""
    rows = [{"prompt": q, "solution": a} for q, a in SOLUTIONS[:8]]
    path = write_lines(tmp_path / "small.jsonl", rows)
    target = Target(path, response_column="solution", steps=1, learning_rate=1e-6)
    plus = theta_plus(Student(chat_model), target).model
    before = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float64)
    after = AutoModelForCausalLM.from_pretrained(plus, dtype=torch.float64)
    tokenizer = make_tokenizer(None)
    [scored] = Score(chat_model, target=target)(BATCH)["responses"]
    prompt = AutoTokenizer.from_pretrained(chat_model).apply_chat_template(
        BATCH["messages"][0], add_generation_prompt=True, return_dict=False
    )
    for r, text in zip(scored, TEXTS, strict=False):
        y = tokenizer(text, add_special_tokens=False).input_ids
        before.zero_grad()
        before(torch.tensor([prompt + y])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(
            -1, torch.tensor(y)[:, None]
        ).mean().backward()
        moved = zip(before.parameters(), after.parameters(), strict=True)
        inner = sum(((b.detach() - a.detach()) * a.grad).sum().item() for a, b in moved)
        assert r["target"] == pytest.approx(inner, rel=0.15, abs=3e-6)


def test_theta_plus_is_trained_once_and_found_by_its_content(chat_model, target, monkeypatch):
    from persyn_datasets.signals import target as module

    trained, train = [], module._train
    monkeypatch.setattr(module, "_train", lambda *args: (trained.append(1), train(*args)))
    first = theta_plus(Student(chat_model), target)
    assert theta_plus(Student(chat_model, family="tiny"), target).model == first.model
    assert len(trained) == 1
    other = Target(target.path, response_column="solution", learning_rate=5e-3, steps=3)
    assert theta_plus(Student(chat_model), other).model != first.model and len(trained) == 2


def test_only_safetensors_are_written(chat_model, target):
    files = {f.name for f in Path(theta_plus(Student(chat_model), target).model).iterdir()}
    assert "model.safetensors" in files and not any(f.endswith((".bin", ".pt")) for f in files)


def test_rank_takes_it(chat_model, target):
    scored = Score(chat_model, target=target)(BATCH)
    ranked = Rank(alpha=1.0, learnability="target")(BATCH | scored)
    assert ranked["best_teacher"] == ["t0"]
    with pytest.raises(InputError, match="target"):
        Rank(learnability="target")(BATCH | Score(chat_model)(BATCH))


@pytest.mark.parametrize(
    ("row", "options", "found"),
    [
        ({"prompt": "1?", "solution": " "}, {}, "row 0"),
        ({"prompt": "1?", "solution": 3}, {}, "3"),
        ({"prompt": "1?", "answer": "x"}, {}, "solution"),
        ({"prompt": "1?", "solution": "x"}, {"steps": 0}, "steps"),
        ({"prompt": "1?", "solution": "x"}, {"learning_rate": 0}, "learning_rate"),
    ],
)
def test_bad_targets_are_refused(tmp_path, row, options, found):
    path = write_lines(tmp_path / "bad.jsonl", [row])
    with pytest.raises(InputError, match=found):
        load(Target(path, response_column="solution", **options))


def test_a_recipe_says_so_before_anything_is_spent(tmp_path, chat_model, target):
    from persyn_datasets.plan import checks, cost

    values = make_recipe(tmp_path, chat_model, reward={"learnability": "target"})
    with pytest.raises(InputError, match="target"):
        Recipe.from_dict(values)
    spec = {"path": target.path, "response_column": "solution"}
    recipe = Recipe.from_dict(values | {"target": spec})
    prompts = checks.check(recipe)
    assert len(prompts) == 24
    made = cost.describe(recipe, prompts)
    assert "12 reference answers" in made and "20 steps" in made
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).target == recipe.target
    rows = [{"prompt": "3 times 4?", "solution": "12"}]
    leaky = spec | {"path": write_lines(tmp_path / "leaky.jsonl", rows)}
    with pytest.raises(InputError, match="among the prompts"):
        checks.check(Recipe.from_dict(values | {"target": leaky}))


def test_a_build_by_the_target_says_so(tmp_path, chat_model, target):
    from persyn_datasets import PersynBuilder

    spec = {"path": target.path, "response_column": "solution", "learning_rate": 5e-3}
    values = make_recipe(tmp_path, chat_model, reward={"learnability": "target"}, target=spec)
    builder = PersynBuilder(Recipe.from_dict(values), tmp_path / "out")
    builder.download_and_prepare()
    calibration = load_dataset(str(builder.folder), "calibration")
    rows = [r for part in calibration.values() for row in part["responses"] for r in row]
    assert len(rows) == 16 * 3 and all(isinstance(r["target"], float) for r in rows)
    assert {of["target"] is not None for of in builder.stats["per_teacher"].values()} == {True}
    card = (builder.folder / "README.md").read_text()
    assert "the target signal" in card and target.path.rpartition("/")[2] in card
