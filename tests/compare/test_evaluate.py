"""Students evaluated by lm-evaluation-harness and on held-out prompts. Needs the extra
`compare`.
"""

import json

import pytest
import yaml
from datasets import Dataset
from pool import answer, make_recipe, problems, write_lines

from persyn_datasets import InputError, Recipe, Student
from persyn_datasets.compare import evaluate
from persyn_datasets.config.evaluation import Evaluation, HeldOut
from persyn_datasets.engines import Response
from persyn_datasets.engines import transformers as engine
from persyn_datasets.signals.learnability import signals

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "persyn-datasets[compare]"')
ROWS = [
    {"prompt": p, "answer": str(a), "solution": answer("adder", p)} for p, a in problems(30)[24:]
]


@pytest.fixture
def held_out(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", ROWS)
    return HeldOut(
        path, column="prompt", answer_column="answer", response_column="solution", max_tokens=8
    )


@pytest.fixture
def tasks(tmp_path, held_out):
    """A folder with two tasks and a group of the harness's kind, over a local file."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": held_out.path}},
        "test_split": "test",
    }
    shared |= {"doc_to_text": "{{prompt}}"}
    writes = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_gen_toks": 8},
    }
    writes["metric_list"] = [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}
    ]
    chooses = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["even", "odd"],
        "doc_to_target": "{{answer|int % 2}}",
    }
    chooses["metric_list"] = [
        {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
    ]
    for name, values in {"writes": writes, "chooses": chooses}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **values}))
    (folder / "both.yaml").write_text(
        yaml.safe_dump({"group": "both", "task": ["writes", "chooses"]})
    )
    return str(folder)


def test_the_harness_runs_and_keeps_each_prompt(chat_model, tasks, tmp_path, monkeypatch):
    import lm_eval

    evaluation = Evaluation(tasks=("chooses", "both"), include_path=tasks, limit=4)
    measured = evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
    assert set(measured) == {
        "chooses/acc",
        "chooses/acc_norm",
        "both/acc",
        "both/acc_norm",
        "both/−exact_match",
    }
    assert list(measured["chooses/acc"]) == [f"chooses:{i}" for i in range(4)]
    assert measured["both/acc"] == measured["chooses/acc"]
    assert set(measured["both/−exact_match"].values()) == {0.0}
    samples = [
        json.loads(line) for line in (tmp_path / "out/chooses.jsonl").read_text().splitlines()
    ]
    for key, sample in zip(measured["chooses/acc"], samples, strict=True):
        even, odd = (float(likely[0][0]) for likely in sample["resps"])
        assert measured["chooses/acc"][key] == float(
            (odd > even) == int(sample["doc"]["answer"]) % 2
        )
        text = sample["arguments"][0][0]
        assert text == f"<s><|user|>\n{sample['doc']['prompt']}</s>\n<|assistant|>\n"
    assert 0 < sum(measured["chooses/acc"].values()) < 4  # or the line above would say little

    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda *args, **options: pytest.fail("measured again")
    )
    assert evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out") == measured
    with pytest.raises(pytest.fail.Exception):
        more = Evaluation(tasks=("chooses",), include_path=tasks, limit=5)
        evaluate.evaluate(Student(chat_model), more, tmp_path / "out")


def test_an_interrupted_task_asks_the_student_only_what_is_left(
    chat_model, tasks, tmp_path, monkeypatch
):
    from lm_eval.models.huggingface import HFLM

    generate, asked = HFLM._model_generate, []

    def stop_at_two(self, context, *args, **options):
        asked.append(len(context))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(self, context, *args, **options)

    monkeypatch.setattr(HFLM, "_model_generate", stop_at_two)
    evaluation = Evaluation(tasks=("writes",), include_path=tasks, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
    measured = evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
    assert asked == [4, 2, 2] and len(measured["writes/−exact_match"]) == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["writes.json", "writes.jsonl"]


def test_held_out_prompts_by_math_verify_and_likelihood(
    base_model, held_out, tmp_path, monkeypatch
):
    def adder(requests, account):
        """Adds, and is cut off at its last sum."""
        for i, request in enumerate(requests):
            assert request.teacher.sampling.temperature == 0
            text, prompt = (
                answer("adder", request.messages[-1]["content"]),
                request.messages[-1]["content"],
            )
            end = "length" if prompt == ROWS[5]["prompt"] else "stop"
            yield (
                i,
                Response(
                    teacher="",
                    text=text,
                    finish_reason=end,
                    prompt_tokens=1,
                    completion_tokens=1,
                    error="",
                ),
            )

    monkeypatch.setattr(engine, "generate", adder)
    measured = evaluate.evaluate(
        Student(base_model), Evaluation(held_out=held_out), tmp_path / "out"
    )
    assert list(measured["exact match"].values()) == [0, 1, 0, 1, 0, 0]
    rows = [([{"role": "user", "content": row["prompt"]}], row["solution"]) for row in ROWS]
    expected = {i: told["learnability"] for i, told in signals(Student(base_model), rows)}
    assert list(measured["log-likelihood"].values()) == pytest.approx(
        [expected[i] for i in range(6)], abs=1e-5
    )
    kept = [json.loads(line) for line in (tmp_path / "out/held-out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in kept] == [answer("adder", row["prompt"]) for row in ROWS]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "evaluation: there is nothing to do; give tasks"),
        ({"tasks": ("wirtes",)}, "no task 'wirtes'; `lm-eval ls tasks`"),
        (
            {"held_out": {"answer_column": None, "response_column": None}},
            "name an answer_column, a response_column",
        ),
        (
            {"held_out": {"response_column": "sol"}},
            "has no column 'sol'; it has solution, prompt_id, messages, answer",
        ),
        ({"held_out": {"split": "train"}}, "train.jsonl: 1 held-out prompts are among the prompts"),
    ],
)
def test_bad_evaluations_are_refused_before_anything_is_spent(
    values, message, held_out, tasks, tmp_path, monkeypatch
):
    from lm_eval.tasks import TaskManager

    def of_tests(include_path, **_):
        return TaskManager(include_path=include_path, include_defaults=False)

    # to list the harness's own takes seconds
    monkeypatch.setattr("lm_eval.tasks.TaskManager", of_tests)
    known = Dataset.from_dict({"prompt_id": ["x"]})
    if own := values.get("held_out"):
        if own.get("split") == "train":
            own = {
                "path": write_lines(tmp_path / "train.jsonl", ROWS),
                "response_column": "solution",
            }
            known = (
                HeldOut(held_out.path, column="prompt", answer_column="answer").load().select([2])
            )
        values = values | {
            "held_out": HeldOut(**{"path": held_out.path, "answer_column": "answer"} | own)
        }
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        Evaluation(**values, include_path=tasks if "tasks" in values else None).check(known)


def test_rows_that_cannot_be_measured_are_named(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl", [*ROWS, {"prompt": "So?", "answer": "1", "solution": " "}]
    )
    with pytest.raises(InputError, match=r"x\.jsonl, row 6: its 'solution' is ' '; fill it"):
        HeldOut(path, response_column="solution").load()
    path = write_lines(tmp_path / "y.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(InputError, match="a held-out prompt is there twice"):
        HeldOut(path, answer_column="answer").load()


def test_a_recipe_says_it(tmp_path, held_out, tasks):
    told = {
        "tasks": ["writes"],
        "include_path": tasks,
        "held_out": {"path": held_out.path, "answer_column": "answer"},
    }
    training = {"max_steps": 3, "lora": {"r": 4}}
    recipe = Recipe.from_dict(
        make_recipe(tmp_path, "org/student", evaluation=told, training=training)
    )
    assert (
        recipe.evaluation.tasks == ("writes",)
        and recipe.evaluation.held_out.answer_column == "answer"
    )
    assert (recipe.training.lora.r, recipe.training.lora.alpha, recipe.training.max_steps) == (
        4,
        32,
        3,
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    for section, key, nearest in (
        ("training", "learning_rat", "learning_rate"),
        ("evaluation", "task", "tasks"),
    ):
        with pytest.raises(
            InputError, match=f"unknown key '{section}.{key}'; did you mean '{nearest}'"
        ):
            Recipe.from_dict(make_recipe(tmp_path, "org/student", **{section: {key: 1}}))
