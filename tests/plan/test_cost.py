import pytest
from pool import make_recipe, problems

from persyn_datasets import Generate, InputError, Recipe
from persyn_datasets.data.sources import load
from persyn_datasets.engines.bound import tokens_counted
from persyn_datasets.plan import checks, cost


def test_the_papers_own_numbers(tmp_path):
    """N = 50,000, |M| = 19, c = 2,500: 95,000 generations against 950,000."""
    teachers = [{"model": f"org/{i}"} for i in range(19)]
    recipe = Recipe.from_dict(
        make_recipe(tmp_path, "s", teachers=teachers, calibration={"size": 2500})
    )
    counts = cost.plan(recipe, 50_000)
    assert (counts["generations"], counts["generate_then_select"]) == (95_000, 950_000)


def test_samples_multiply_the_calibration(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, calibration={"size": 10, "samples": 3})
    assert cost.plan(Recipe.from_dict(values), 24)["generations"] == 3 * 10 * 3 + 24 - 10
    checks.check(Recipe.from_dict(values))  # recorded answers need no temperature
    values = make_recipe(
        tmp_path, chat_model, engine="transformers", calibration={"size": 10, "samples": 3}
    )
    values["teachers"][1]["sampling"] = {"temperature": 0}
    with pytest.raises(InputError, match="'multiplier'"):
        checks.check(Recipe.from_dict(values))


def test_the_plan_in_words_has_the_costs(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 1000})
    values["teachers"][0] |= {"price": {"input": 2e3, "output": 3e3}, "system_prompt": "x" * 400}
    values["teachers"][1] |= {
        "price": {"input": 1e3, "output": 1e3},
        "system_prompt": None,
        "sampling": {"max_tokens": 500},
    }
    recipe = Recipe.from_dict(values)
    text = cost.describe(recipe, checks.check(recipe))
    of = cost.estimate(recipe, checks.check(recipe))["answer"]
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
    rows = checks.check(recipe)
    drawn = set(checks.calibration(recipe, rows)["prompt_id"])
    rows = rows.map(
        lambda row: {
            "messages": [
                {"role": "user", "content": "光" * (900 if row["prompt_id"] in drawn else 1)}
            ]
        }
    )
    counted = cost.estimate(recipe, rows)["answer"]["adder"]["prompt_tokens"]
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
    rows = checks.check(recipe)
    planned = cost.estimate(recipe, rows)["answer"]
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
    near, drawn = recipe.teachers[0], checks.calibration(recipe, rows)["messages"]
    counted = sum(tokens_counted(near, near.conversation(m)) for m in drawn)
    answer = cost.estimate(recipe, rows)["answer"]
    assert 16 * answer["adder"]["prompt_tokens"] == pytest.approx(counted)
    assert answer["guesser"]["prompt_tokens"] == answer["guesser"]["prompt_tokens_at_most"]
    line = next(x for x in cost.describe(recipe, rows).splitlines() if x.startswith("guesser"))
    assert f"≤ {16 * answer['guesser']['prompt_tokens']:,.0f}" in line


@pytest.mark.parametrize("where", ["many prompts", "a server with the model's folder"])
def test_expected_and_at_most_are_two_columns_where_they_differ(
    where, tmp_path, chat_model, monkeypatch
):
    values = local(tmp_path, chat_model)
    if where == "many prompts":
        monkeypatch.setattr(cost, "COUNTED", 10)
    else:
        for teacher in values["teachers"]:
            teacher |= {"engine": "endpoint", "base_url": "http://127.0.0.1:1/v1"}
    recipe = Recipe.from_dict(values)
    rows = load(recipe.prompts)
    counted = [
        tokens_counted(recipe.teachers[0], recipe.teachers[0].conversation(m))
        for m in rows["messages"]
    ]
    of = cost.estimate(recipe, rows)["answer"]["adder"]
    assert min(counted) <= of["prompt_tokens"] <= max(counted) < of["prompt_tokens_at_most"]
    assert of["usd"] == recipe.teachers[0].price.of(of["prompt_tokens_at_most"], 3)
    words = cost.describe(recipe, rows)
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
        usd[engine] = cost.estimate(recipe, load(recipe.prompts))
    assert 0 < usd["batch"]["Generate"]["usd"] == usd["endpoint"]["Generate"]["usd"] / 2
    assert usd["batch"]["dearest"]["usd"] == usd["endpoint"]["dearest"]["usd"] / 2


def test_costs_are_those_counted_answer_by_answer(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 1000})
    for teacher, usd in zip(values["teachers"], (1e3, 2e3, 9e3), strict=True):
        teacher |= {"price": {"input": 0, "output": usd}, "system_prompt": None}
    recipe = Recipe.from_dict(values)
    rows = checks.check(recipe)
    costs, each, c = cost.estimate(recipe, rows), 1.0 + 2.0 + 9.0, 16  # USD of all three's answers
    assert costs["Generate"]["usd"] == pytest.approx(c * each)
    assert costs["Synthesize"]["usd"] == pytest.approx((24 - c) * each / 3)
    assert costs["Synthesize"]["completion_tokens"] == 8 * 1000
    assert costs["Generate"]["completion_tokens"] == 48_000
    assert costs["generate_then_select"] == 24 * 12.0
    assert costs["dearest"] == {"name": "guesser", "usd": 24 * 9.0}
    assert "$288.00" in cost.describe(recipe, rows)


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
    costs = cost.estimate(recipe, rows)
    assert costs["Generate"]["seconds"] is costs["Synthesize"]["seconds"] is None
    assert "No time is estimated: state the tokens_per_second of multiplier, or" in cost.describe(
        recipe, rows
    )
    lines = [
        {"teacher": "multiplier", "new_tokens": n, "seconds": s}
        for n, s in ((900, 60.0), (100, 40.0), (0, 9.0))
    ]
    lines.append(
        {"teacher": "guesser", "new_tokens": 500, "seconds": 50.0}
    )  # 100 s an answer: not what was stated
    costs = cost.estimate(recipe, rows, lines)
    assert costs["Generate"]["seconds"] == pytest.approx(16 * (20 + 100))
    assert costs["Synthesize"]["seconds"] == pytest.approx(8 / 3 * (20 + 100))
    assert "0.5 hours for the calibration, 0.1 for the rest" in " ".join(
        cost.describe(recipe, rows, lines).split()
    )
    assert (
        cost.wall(recipe.teachers, {"adder": 20.0, "multiplier": 100.0, "guesser": 250.0}) == 250.0
    )
    assert (
        cost.wall(recipe.teachers, {"multiplier": 100.0}) == 100.0
    )  # the others had nothing to do
