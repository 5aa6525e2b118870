import json

import pytest
from conftest import make_tokenizer, save_model
from pool import make_recipe, problems, write_lines

from persyn_datasets import InputError, Recipe
from persyn_datasets.plan import checks


@pytest.mark.parametrize("thought", ["<think>\nOne and one.\n</think>\n\n", "column"])
def test_recorded_reasoning_that_the_student_would_lose_is_refused(tmp_path, thought):
    """A template like DeepSeek R1's, which drops what stands before `</think>`."""
    template = (
        "{% for m in messages %}{% set said = m['content'] %}"
        "{% if m['role'] == 'assistant' %}{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{{ m['role'] }}: {{ said }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    student = save_model(tmp_path / "student")
    make_tokenizer(template).save_pretrained(student)
    values = make_recipe(tmp_path, str(student), keep_reasoning="inline")
    checks.check(Recipe.from_dict(values))
    file = tmp_path / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if thought == "column":
            row["reasoning"] = "One and one."
        else:
            row["response"] = thought + row["response"]
    write_lines(file, rows)
    with pytest.raises(InputError, match="reasoning"):
        checks.check(Recipe.from_dict(values))
    checks.check(Recipe.from_dict(values | {"keep_reasoning": "drop"}))


def test_check_returns_the_prompts(tmp_path, chat_model):
    recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model))
    rows = checks.check(recipe)
    assert [
        (m[0]["content"], int(a)) for m, a in zip(rows["messages"], rows["answer"], strict=True)
    ] == problems()
    first, second = checks.calibration(recipe, rows), checks.calibration(recipe, rows)
    assert first["prompt_id"] == second["prompt_id"] and len(set(first["prompt_id"])) == 16
    other = Recipe.from_dict(make_recipe(tmp_path, chat_model, calibration={"size": 16, "seed": 4}))
    assert checks.calibration(other, rows)["prompt_id"] != first["prompt_id"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration": {"size": 25}},
            "calibration.size is 25, and there are 24 prompts; expected 2 to 24",
        ),
        ({"calibration": {"size": 1}}, "calibration.size is 1"),
        ({"calibration": {"size": 4}, "router": {"holdout": 0.1}}, "router.holdout 0.1 of 4"),
        ({"quality": {"model": "x"}}, "expected the key 'reward_model'"),
        (
            {"quality": {"reward_model": "/nowhere/rm"}},
            "quality.reward_model: model '/nowhere/rm' not found",
        ),
        ({"quality": "nothing.here"}, "quality: 'nothing.here'"),
        ({"router": {"backbone": "/nowhere/b"}}, "router.backbone: model '/nowhere/b' not found"),
    ],
)
def test_what_would_not_work_is_refused(tmp_path, chat_model, changes, message):
    with pytest.raises(InputError) as error:
        checks.check(Recipe.from_dict(make_recipe(tmp_path, chat_model, **changes)))
    assert message in str(error.value)
