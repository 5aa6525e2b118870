"""Students evaluated by lm-evaluation-harness and on held-out prompts. Needs the extra
`compare`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from pool import answer, make_recipe, problems, write_lines
from thinker import ANSWER, THOUGHT, save_thinker

from persyn_datasets import BuildError, InputError, Recipe, Student
from persyn_datasets.compare import evaluate, harness
from persyn_datasets.compare.harness import check
from persyn_datasets.config.evaluation import Evaluation, HeldOut
from persyn_datasets.data.sources import load
from persyn_datasets.engines import answered
from persyn_datasets.engines import transformers as engine
from persyn_datasets.signals.learnability import signals
from persyn_datasets.store.models import load_tokenizer

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
        "both/−cut",
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
                answered(request.teacher, text, end, 1, 1),
            )

    monkeypatch.setattr(engine, "generate", adder)
    measured = evaluate.evaluate(
        Student(base_model), Evaluation(held_out=held_out), tmp_path / "out"
    )
    assert list(measured["exact match"].values()) == [0, 1, 0, 1, 0, 0]
    rows = [([{"role": "user", "content": row["prompt"]}], row["solution"]) for row in ROWS]
    expected = {i: made["learnability"] for i, made in signals(Student(base_model), rows)}
    assert list(measured["log-likelihood"].values()) == pytest.approx(
        [expected[i] for i in range(6)], abs=1e-5
    )
    kept = [json.loads(line) for line in (tmp_path / "out/held-out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in kept] == [answer("adder", row["prompt"]) for row in ROWS]


@pytest.mark.parametrize(
    ("switches", "thought"), [(None, THOUGHT), ({"enable_thinking": False}, "")]
)
def test_a_student_is_asked_with_the_switches_of_its_template(
    switches, thought, held_out, tmp_path
):
    student = Student(save_thinker(tmp_path / "thinker"), chat_template_kwargs=switches)
    evaluate.evaluate(student, Evaluation(held_out=held_out), tmp_path / "out")
    lines = (tmp_path / "out/held-out.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert (line["reasoning"], line["text"], line["error"]) == (thought, ANSWER, "")


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
        (
            {"held_out": {"split": "train"}},
            "train.jsonl: 1 of the held-out prompts are among",
        ),
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
            known = load(HeldOut(held_out.path, column="prompt", answer_column="answer")).select(
                [2]
            )
        values = values | {
            "held_out": HeldOut(**{"path": held_out.path, "answer_column": "answer"} | own)
        }
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        check(Evaluation(**values, include_path=tasks if "tasks" in values else None), known)


def test_rows_that_cannot_be_measured_are_named(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl", [*ROWS, {"prompt": "So?", "answer": "1", "solution": " "}]
    )
    with pytest.raises(InputError, match=r"x\.jsonl, row 6.*'solution'"):
        load(HeldOut(path, response_column="solution"))
    path = write_lines(tmp_path / "y.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(InputError, match="twice"):
        load(HeldOut(path, answer_column="answer"))


def test_a_recipe_says_it(tmp_path, held_out, tasks):
    made = {
        "tasks": ["writes"],
        "include_path": tasks,
        "held_out": {"path": held_out.path, "answer_column": "answer"},
    }
    training = {"max_steps": 3, "lora": {"r": 4}}
    recipe = Recipe.from_dict(
        make_recipe(tmp_path, "org/student", evaluation=made, training=training)
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
        with pytest.raises(InputError, match=f"'{section}.{key}'.*'{nearest}'"):
            Recipe.from_dict(make_recipe(tmp_path, "org/student", **{section: {key: 1}}))


def test_a_task_without_a_limit_of_its_own_gets_ours(chat_model, tasks, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    generate, asked = HFLM._model_generate, []

    def noted(self, context, max_length, *args, **options):
        asked.append(max_length - context.shape[1])
        return generate(self, context, max_length, *args, **options)

    monkeypatch.setattr(HFLM, "_model_generate", noted)
    path = Path(tasks) / "writes.yaml"
    for own, expected in (({"max_gen_toks": 8}, 8), ({"do_sample": False}, 5)):
        values = yaml.safe_load(path.read_text()) | {"generation_kwargs": own | {"until": ["@"]}}
        path.write_text(yaml.safe_dump(values))
        evaluation = Evaluation(tasks=("writes",), include_path=tasks, limit=2, max_gen_toks=5)
        harness._manager.cache_clear()
        evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
        assert asked.pop() == expected


def test_answers_that_were_cut_are_counted(chat_model, caplog):
    tokenizer = load_tokenizer(chat_model)
    texts = ["the " * 20, "the"]
    samples = [
        {"doc_id": i, "arguments": [("p", {"until": []})], "resps": [[text]]}
        for i, text in enumerate(texts)
    ]
    most = len(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    found = evaluate._cut("t", {"samples": {"t": samples}}, tokenizer, most)
    assert found == {"t/−cut": {"t:0": -1.0, "t:1": 0.0}}
    assert "1 of 2 answers were cut off" in caplog.text
    samples[0]["arguments"][0][1]["max_gen_toks"] = 10 * most  # the task's own limit
    found = evaluate._cut("t", {"samples": {"t": samples}}, tokenizer, most)
    assert found == {"t/−cut": {"t:0": 0.0, "t:1": 0.0}}


def test_the_mean_of_a_ratio_over_parts_is_the_harnesss():
    """IFEval counts instructions, not prompts: 3 of 6 here, not (1 + 1/4 + 1) / 3."""
    parts = [[True], [True, False, False, False], [True]]
    samples = [
        {"metrics": ["inst"], "inst": p, "doc_id": i, "filter": "none"} for i, p in enumerate(parts)
    ]
    found = evaluate._by_prompt("t", {"samples": {"t": samples}, "higher_is_better": {"t": {}}})
    assert np.mean(list(found["t/inst"].values())) == pytest.approx(3 / 6)
    samples = [
        {"metrics": ["acc"], "acc": v, "doc_id": i, "filter": "none"} for i, v in enumerate([1, 0])
    ]
    found = evaluate._by_prompt("t", {"samples": {"t": samples}, "higher_is_better": {"t": {}}})
    assert found["t/acc"] == {"t:0": 1.0, "t:1": 0.0}


def test_a_student_of_nan_is_refused(chat_model, tasks, held_out, tmp_path):
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(chat_model)
    for weights in broken.parameters():
        torch.nn.init.constant_(weights, float("nan"))
    shutil.copytree(chat_model, tmp_path / "m")
    broken.save_pretrained(tmp_path / "m")
    student = Student(str(tmp_path / "m"))
    for evaluation in (
        Evaluation(tasks=("chooses",), include_path=tasks, limit=2),
        Evaluation(held_out=HeldOut(held_out.path, response_column="solution")),
    ):
        with pytest.raises(BuildError, match="NaN"):
            evaluate.evaluate(student, evaluation, tmp_path / "out")


def test_a_task_that_cannot_be_built_is_refused_at_the_start(tasks):
    with open(f"{tasks}/utils.py", "w") as file:
        file.write('raise ModuleNotFoundError("antlr4-python3-runtime==4.11 is required")\n')
    with open(f"{tasks}/writes.yaml", "a") as file:
        file.write("process_docs: !function utils.process_docs\n")
    with pytest.raises(InputError, match="'writes'.*antlr4"):
        check(Evaluation(tasks=("writes",), include_path=tasks), Dataset.from_dict({}))
    with pytest.raises(InputError, match="max_gen_toks is 0"):
        Evaluation(tasks=("chooses",), include_path=tasks, max_gen_toks=0)


def test_our_mathematics_tasks_read_a_file_and_are_graded_by_our_verifier(tmp_path, chat_model):
    mathematics = [{"problem": "Half of 7?", "answer": r"\frac{7}{2}"}]
    words = [{"Body": "He has 3.", "Question": "How many?", "Answer": "3.0"}]
    data = {
        "persyn_math": write_lines(tmp_path / "m.jsonl", mathematics),
        "persyn_svamp": write_lines(tmp_path / "s.jsonl", words),
    }
    evaluation = Evaluation(tasks=tuple(data), data=data, max_gen_toks=4)
    check(evaluation, Dataset.from_dict({"prompt_id": []}))
    with pytest.raises(InputError, match=r"evaluation\.data.*'gsm8k'.*persyn_math"):
        check(Evaluation(tasks=("persyn_math",), data={"gsm8k": "x"}), Dataset.from_dict({}))
    measured = evaluate.evaluate(Student(chat_model), evaluation, tmp_path / "out")
    assert set(measured) == {f"{task}/{m}" for task in data for m in ("right", "−cut")}
    sample = json.loads((tmp_path / "out/persyn_math.jsonl").read_text())
    assert "Half of 7?" in sample["arguments"][0][0]

    from persyn_datasets.tasks.grade import process_results

    assert process_results(mathematics[0], ["Answer: 7 halves? No: \\boxed{3.5}"]) == {"right": 1.0}
    assert process_results(words[0], ["The answer is 3 apples."]) == {"right": 1.0}
    assert process_results(words[0], ["The answer is 4 apples."]) == {"right": 0.0}
