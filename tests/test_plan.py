import json

import pytest
from conftest import make_tokenizer, save_model
from pool import make_recipe, problems, write_lines

from persyn_datasets import Generate, InputError, Recipe, plan
from persyn_datasets.data.sources import load
from persyn_datasets.engines.bound import tokens_counted


def test_the_papers_own_numbers(tmp_path):
    """N = 50,000, |M| = 19, c = 2,500: 95,000 generations against 950,000."""
    teachers = [{"model": f"org/{i}"} for i in range(19)]
    recipe = Recipe.from_dict(
        make_recipe(tmp_path, "s", teachers=teachers, calibration={"size": 2500})
    )
    counts = plan.plan(recipe, 50_000)
    assert (counts["generations"], counts["generate_then_select"]) == (95_000, 950_000)


def test_samples_multiply_the_calibration(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, calibration={"size": 10, "samples": 3})
    assert plan.plan(Recipe.from_dict(values), 24)["generations"] == 3 * 10 * 3 + 24 - 10
    plan.check(Recipe.from_dict(values))  # recorded answers need no temperature
    values = make_recipe(
        tmp_path, chat_model, engine="transformers", calibration={"size": 10, "samples": 3}
    )
    values["teachers"][1]["sampling"] = {"temperature": 0}
    with pytest.raises(InputError, match="'multiplier'"):
        plan.check(Recipe.from_dict(values))


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
    plan.check(Recipe.from_dict(values))
    file = tmp_path / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if thought == "column":
            row["reasoning"] = "One and one."
        else:
            row["response"] = thought + row["response"]
    write_lines(file, rows)
    with pytest.raises(InputError, match="reasoning"):
        plan.check(Recipe.from_dict(values))
    plan.check(Recipe.from_dict(values | {"keep_reasoning": "drop"}))


def test_check_returns_the_prompts(tmp_path, chat_model):
    recipe = Recipe.from_dict(make_recipe(tmp_path, chat_model))
    rows = plan.check(recipe)
    assert [
        (m[0]["content"], int(a)) for m, a in zip(rows["messages"], rows["answer"], strict=True)
    ] == problems()
    first, second = plan.calibration(recipe, rows), plan.calibration(recipe, rows)
    assert first["prompt_id"] == second["prompt_id"] and len(set(first["prompt_id"])) == 16
    other = Recipe.from_dict(make_recipe(tmp_path, chat_model, calibration={"size": 16, "seed": 4}))
    assert plan.calibration(other, rows)["prompt_id"] != first["prompt_id"]


def test_the_plan_in_words_has_the_costs(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 1000})
    values["teachers"][0] |= {"price": {"input": 2e3, "output": 3e3}, "system_prompt": "x" * 400}
    values["teachers"][1] |= {
        "price": {"input": 1e3, "output": 1e3},
        "system_prompt": None,
        "sampling": {"max_tokens": 500},
    }
    recipe = Recipe.from_dict(values)
    text = plan.describe(recipe, plan.check(recipe))
    of = plan.estimate(recipe, plan.check(recipe))["answer"]
    dear, cheap = of["adder"]["usd"], of["multiplier"]["usd"]
    length = sum(len(p) for p, _ in problems()) / 24  # at most a token for each byte
    assert dear > ((length + 400) * 2e3 + 1000 * 3e3) / 1e6
    assert cheap > (length * 1e3 + 500 * 1e3) / 1e6
    assert max(map(len, [line for line in text.splitlines() if chat_model not in line])) <= 80
    cells: dict[str, str] = {}
    for line in text.splitlines():
        name = line.split("  ")[0]
        cells[name] = cells.get(name, "") + line
    text = " ".join(text.split())
    assert f"${16 * dear:,.2f}" in cells["adder"] and "16,000" in cells["adder"]
    assert f"${16 * cheap:,.2f}" in cells["multiplier"] and "8,000" in cells["multiplier"]
    assert "not priced" in cells["guesser"]
    assert (
        f"then 8 responses, each from the teacher that the router picks (at most ${8 * dear:,.2f})"
        in text
    )
    assert "56 generations in all; generate-then-select needs 72 (1.3 times as many)" in text


def test_the_most_that_answers_cost_holds_for_every_script(tmp_path, chat_model):
    """Each byte a token, long prompts in the calibration, examples and a system prompt."""
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 10})
    shots = [{"role": "user", "content": "问" * 90}, {"role": "assistant", "content": "答" * 90}]
    values["teachers"][0] |= {"price": {"input": 1e3, "output": 0}, "examples": shots}
    recipe = Recipe.from_dict(values)
    rows = plan.check(recipe)
    drawn = set(plan.calibration(recipe, rows)["prompt_id"])
    rows = rows.map(
        lambda row: {
            "messages": [
                {"role": "user", "content": "光" * (900 if row["prompt_id"] in drawn else 1)}
            ]
        }
    )
    counted = plan.estimate(recipe, rows)["answer"]["adder"]["prompt_tokens"]
    assert counted > 3 * 900 + 2 * 3 * 90 + len("adder")


def local(tmp_path, chat_model, **more):
    values = make_recipe(tmp_path, chat_model, engine="transformers", **more)
    values["sampling"] = {"max_tokens": 3}
    for teacher in values["teachers"]:
        teacher["price"] = {"input": 1e3, "output": 1e3}
    return values


def test_prompts_of_local_teachers_are_planned_as_they_are_counted(tmp_path, chat_model):
    """The plan of a calibration is what it then uses."""
    values = local(tmp_path, chat_model, calibration={"size": 24})
    recipe = Recipe.from_dict(values)
    rows = plan.check(recipe)
    planned = plan.estimate(recipe, rows)["answer"]
    generated = Generate(recipe.teachers)(rows[:])["responses"]
    for t, name in enumerate(planned):
        used = sum(row[t]["prompt_tokens"] for row in generated)
        assert 24 * planned[name]["prompt_tokens"] == pytest.approx(used)
        assert planned[name]["prompt_tokens_at_most"] == planned[name]["prompt_tokens"]


def test_of_teachers_that_cost_nothing_a_sample_is_counted(tmp_path, chat_model):
    """All of the calibration, here; a server's tokens are not known, and marked so."""
    values = make_recipe(tmp_path, chat_model, engine="transformers")
    values["teachers"][2] |= {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}
    values["teachers"][2]["model"] = "org/there"
    recipe = Recipe.from_dict(values)
    rows = load(recipe.prompts)
    near, drawn = recipe.teachers[0], plan.calibration(recipe, rows)["messages"]
    counted = sum(tokens_counted(near, near.conversation(m)) for m in drawn)
    answer = plan.estimate(recipe, rows)["answer"]
    assert 16 * answer["adder"]["prompt_tokens"] == pytest.approx(counted)
    assert answer["guesser"]["prompt_tokens"] == answer["guesser"]["prompt_tokens_at_most"]
    line = next(x for x in plan.describe(recipe, rows).splitlines() if x.startswith("guesser"))
    assert f"≤ {16 * answer['guesser']['prompt_tokens']:,.0f}" in line


@pytest.mark.parametrize("where", ["many prompts", "a server with the model's folder"])
def test_expected_and_at_most_are_two_columns_where_they_differ(
    where, tmp_path, chat_model, monkeypatch
):
    values = local(tmp_path, chat_model)
    if where == "many prompts":
        monkeypatch.setattr(plan, "COUNTED", 10)
    else:
        for teacher in values["teachers"]:
            teacher |= {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}
    recipe = Recipe.from_dict(values)
    rows = load(recipe.prompts)
    counted = [
        tokens_counted(recipe.teachers[0], recipe.teachers[0].conversation(m))
        for m in rows["messages"]
    ]
    of = plan.estimate(recipe, rows)["answer"]["adder"]
    assert min(counted) <= of["prompt_tokens"] <= max(counted) < of["prompt_tokens_at_most"]
    assert of["usd"] == recipe.teachers[0].price.of(of["prompt_tokens_at_most"], 3)
    words = plan.describe(recipe, rows)
    assert all(
        f"{16 * of[key]:,.0f}" in words for key in ("prompt_tokens", "prompt_tokens_at_most")
    )
    assert max(map(len, [line for line in words.splitlines() if chat_model not in line])) <= 80


def test_a_batch_is_planned_at_half_the_price(tmp_path, chat_model):
    values, usd = local(tmp_path, chat_model), {}
    for engine in ("endpoint", "batch"):
        for teacher in values["teachers"]:
            teacher |= {"engine": engine, "base_url": "http://127.0.0.1:1/v1"}
        recipe = Recipe.from_dict(values)
        usd[engine] = plan.estimate(recipe, load(recipe.prompts))
    assert 0 < usd["batch"]["Generate"]["usd"] == usd["endpoint"]["Generate"]["usd"] / 2
    assert usd["batch"]["dearest"]["usd"] == usd["endpoint"]["dearest"]["usd"] / 2


def test_costs_are_those_counted_answer_by_answer(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 1000})
    for teacher, usd in zip(values["teachers"], (1e3, 2e3, 9e3), strict=True):
        teacher |= {"price": {"input": 0, "output": usd}, "system_prompt": None}
    recipe = Recipe.from_dict(values)
    rows = plan.check(recipe)
    costs, each, c = plan.estimate(recipe, rows), 1.0 + 2.0 + 9.0, 16  # USD of all three's answers
    assert costs["Generate"]["usd"] == pytest.approx(c * each)
    assert costs["Synthesize"]["usd"] == pytest.approx((24 - c) * each / 3)
    assert costs["Synthesize"]["completion_tokens"] == 8 * 1000
    assert costs["Generate"]["completion_tokens"] == 48_000
    assert costs["generate_then_select"] == 24 * 12.0
    assert costs["dearest"] == {"name": "guesser", "usd": 24 * 9.0}
    assert "$288.00" in plan.describe(recipe, rows)


def test_time_by_stated_or_measured_throughput(tmp_path, chat_model):
    """Endpoints answer while local teachers do, one after another."""
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 1000})
    here, also, there = values["teachers"]
    here |= {
        "engine": "transformers",
        "model": chat_model,
        "tokens_per_second": 50,
    }  # 20 s an answer
    also |= {"engine": "transformers", "model": chat_model}
    there |= {
        "engine": "endpoint",
        "base_url": "http://127.0.0.1:1/v1",
        "tokens_per_second": 4,
    }  # 250 s an answer
    recipe = Recipe.from_dict(values)
    rows = load(recipe.prompts)
    costs = plan.estimate(recipe, rows)
    assert costs["Generate"]["seconds"] is costs["Synthesize"]["seconds"] is None
    assert "No time is estimated: state the tokens_per_second of multiplier, or" in plan.describe(
        recipe, rows
    )
    lines = [
        {"teacher": "multiplier", "new_tokens": n, "seconds": s}
        for n, s in ((900, 60.0), (100, 40.0), (0, 9.0))
    ]
    lines.append(
        {"teacher": "guesser", "new_tokens": 500, "seconds": 50.0}
    )  # 100 s an answer: not what was stated
    costs = plan.estimate(recipe, rows, lines)
    assert costs["Generate"]["seconds"] == pytest.approx(16 * (20 + 100))
    assert costs["Synthesize"]["seconds"] == pytest.approx(8 / 3 * (20 + 100))
    assert "0.5 hours for the calibration, 0.1 for the rest" in " ".join(
        plan.describe(recipe, rows, lines).split()
    )
    assert (
        plan.wall(recipe.teachers, {"adder": 20.0, "multiplier": 100.0, "guesser": 250.0}) == 250.0
    )
    assert (
        plan.wall(recipe.teachers, {"multiplier": 100.0}) == 100.0
    )  # the others had nothing to do


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
        plan.check(Recipe.from_dict(make_recipe(tmp_path, chat_model, **changes)))
    assert message in str(error.value)
