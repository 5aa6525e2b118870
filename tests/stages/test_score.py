import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from persyn_datasets import InputError, Score, Student
from persyn_datasets.data import schema
from persyn_datasets.signals import math_verify
from persyn_datasets.signals import reward_model as rewards
from persyn_datasets.signals.learnability import SCORER
from persyn_datasets.signals.learnability import signals as of_student
from persyn_datasets.stages import score


def response(teacher, text, error=""):
    return {
        "teacher": teacher,
        "sample": 0,
        "text": text,
        "reasoning": "",
        "tool_calls": "",
        "finish_reason": "stop",
        "error": error,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "reasoning_tokens": 0,
    }


QUESTIONS = [
    ("1 + 1?", "2", "It is 2."),
    ("2 + 2?", "4", r"\boxed{4}"),
    ("Half of 1?", r"\frac{1}{2}", "0.5"),
]
ROWS = [
    {
        "prompt_id": str(i),
        "messages": [{"role": "user", "content": question}],
        "answer": answer,
        "responses": [
            response("a", right),
            response("b", "", "no luck"),
            response("c", "It is 7."),
            response("d", right),
        ],
    }
    for i, (question, answer, right) in enumerate(QUESTIONS)
]
BATCH = {key: [row[key] for row in ROWS] for key in ROWS[0]}


@pytest.fixture
def scored_rows(monkeypatch):
    """How many rows the student and the verifier were given."""
    given = {"student": 0, "verifier": 0}

    def learnability(student, rows):
        given["student"] += len(rows)
        return of_student(student, rows)

    def verifier(rows, verify=math_verify.verdicts):
        given["verifier"] += len(rows)
        return verify(rows)

    monkeypatch.setattr(score, "signals", learnability)
    monkeypatch.setattr(math_verify, "verdicts", verifier)
    return given


def signals(scored, name):
    return [[r[name] for r in row] for row in scored["responses"]]


def test_both_signals_and_none_for_failures(chat_model):
    scored = Score(student=chat_model)(BATCH)
    assert set(scored) == {"responses"}
    assert signals(scored, "quality") == [[1.0, None, 0.0, 1.0]] * 3
    for row, responses in zip(ROWS, scored["responses"], strict=True):
        assert responses[1]["learnability"] is responses[1]["rsr"] is None
        for r in responses[:1] + responses[2:]:
            [(_, alone)] = of_student(Student(chat_model), [(row["messages"], r["text"])])
            assert [r["learnability"], r["rsr"]] == pytest.approx(
                [alone["learnability"], alone["rsr"]], abs=1e-4
            )
    assert "quality" not in ROWS[0]["responses"][0]


def test_nothing_is_scored_twice(chat_model, scored_rows, tmp_path):
    first = Score(student=chat_model)(BATCH)
    assert scored_rows == {"student": 6, "verifier": 6}  # 3 prompts, of 3 answers two are the same
    assert Score(student=Student(chat_model, family="f"))(BATCH) == first
    assert scored_rows == {"student": 6, "verifier": 6}
    more = {key: [*BATCH[key], BATCH[key][0]] for key in BATCH}
    more["responses"][3] = [response("a", "It is 3.")]
    Score(student=chat_model)(more)
    assert scored_rows == {"student": 7, "verifier": 7}
    shutil.copytree(chat_model, tmp_path / "trained")
    (tmp_path / "trained" / "note.txt").write_text("other weights")
    Score(student=str(tmp_path / "trained"))(BATCH)
    assert scored_rows == {"student": 13, "verifier": 7}


def test_a_student_trained_in_place_is_loaded_anew(chat_model, base_model, tmp_path):
    shutil.copytree(chat_model, tmp_path / "s")
    before = Score(student=str(tmp_path / "s"))(BATCH)
    (tmp_path / "s" / "chat_template.jinja").unlink()
    shutil.copytree(base_model, tmp_path / "s", dirs_exist_ok=True)
    after = signals(Score(student=str(tmp_path / "s"))(BATCH), "learnability")
    assert after != signals(before, "learnability")
    for found, expected in zip(
        after, signals(Score(student=base_model)(BATCH), "learnability"), strict=True
    ):
        assert found[::2] == pytest.approx(expected[::2], abs=1e-4)


def test_under_map_also_when_a_failure_comes_late(chat_model):
    failed = ROWS[0] | {"responses": [response("a", "", "no luck")]}
    generated = Dataset.from_list([ROWS[i % 2] for i in range(1050)] + [failed])
    scored = generated.map(Score(student=chat_model), batched=True)
    assert scored[1050]["responses"][0]["quality"] is None
    assert signals(scored, "quality")[:1050] == [[1.0, None, 0.0, 1.0]] * 1050
    assert scored.features["responses"] == schema.SCORED["responses"]
    assert scored.column_names == generated.column_names


def test_a_reward_function_sees_the_columns_of_its_rows(chat_model):
    def longer(prompts, completions, answer, **columns):
        assert sorted(columns) == ["prompt_id"]
        return [
            float(f"{len(p[0]['content'])}.{len(c[0]['content'])}") + (a == "4") * 100
            for p, c, a in zip(prompts, completions, answer, strict=True)
        ]

    found = signals(Score(student=chat_model, quality=longer)(BATCH), "quality")
    # 6 and 10 characters in the prompts; 8, 9, and 3 in the responses; the answer "4" adds 100
    assert found == [[6.8, None, 6.8, 6.8], [106.9, None, 106.8, 106.9], [10.3, None, 10.8, 10.3]]


def test_quality_by_reward_model_and_by_dotted_path(
    chat_model, reward_model, tmp_path, monkeypatch
):
    found = signals(
        Score(student=chat_model, quality={"reward_model": reward_model})(BATCH), "quality"
    )
    [alone] = rewards.score([(ROWS[0]["messages"], "It is 7.")], {}, reward_model)
    assert found[0][2] == pytest.approx(alone, abs=1e-4)
    assert found[0][1] is None
    (tmp_path / "my_rewards.py").write_text(
        "def one(completions):\n    return [1] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        signals(Score(chat_model, "my_rewards.one")(BATCH), "quality")
        == [[1.0, None, 1.0, 1.0]] * 3
    )


def test_an_answer_may_be_a_number_and_zero(chat_model):
    batch = {
        "messages": BATCH["messages"][:1],
        "answer": [0],
        "responses": [[response("a", "It is 0.")]],
    }
    assert signals(Score(student=chat_model)(batch), "quality") == [[1.0]]


def test_calls_are_not_graded_by_what_sees_the_text_alone(chat_model):
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    batch = BATCH | {"tools": [None, tools, None]}
    with pytest.raises(InputError, match="quality: prompts have `tools`, and math-verify"):
        Score(student=chat_model)(batch)
    ours = Score(student=None, quality=lambda completions: [1.0] * len(completions))
    assert signals(ours(batch), "quality")[1] == [1.0, None, 1.0, 1.0]


def test_mistakes(chat_model):
    with pytest.raises(InputError, match=r"'reward_model'"):
        Score(student="m", quality={"model": "r"})
    with pytest.raises(InputError, match="'maths'"):
        Score(student="m", quality="maths")
    with pytest.raises(InputError, match="'answer'"):
        Score(student=chat_model)({k: v for k, v in BATCH.items() if k != "answer"})
    for nothing in (None, ""):
        with pytest.raises(InputError, match=r"'2 \+ 2\?'"):
            Score(student=chat_model)(BATCH | {"answer": ["2", nothing, "1"]})


def test_scores_of_another_meaning_are_measured_again_and_said_once(
    chat_model, scored_rows, journal_root, caplog
):
    old = journal_root / "learnability"
    slug = Score(student=chat_model)(BATCH) and next(old.iterdir()).name.rpartition("-")[0]
    assert scored_rows["student"] == 6
    [folder] = list(old.iterdir())
    identity = json.loads((folder / "identity.json").read_text())
    assert identity["scorer"] == SCORER
    assert set(identity) >= {"weights", "dtype", "template", "chat_template_kwargs", "date"}
    shutil.rmtree(folder)
    (old / f"{slug}-0123456789abcdef").mkdir()  # as version 0.1.0 left it
    (old / f"{slug}-0123456789abcdef" / "identity.json").write_text(
        json.dumps({"model": chat_model, "weights": "x", "dtype": "torch.float32"})
    )
    score._say_if_measured_anew.cache_clear()
    for _ in range(2):
        more = {key: BATCH[key][:] for key in BATCH}
        more["responses"][0] = [response("a", f"Other {len(scored_rows)} {_}")]
        Score(student=chat_model)(more)
    said = [r for r in caplog.records if r.name == score.__name__]
    assert len(said) == 1
    assert f"{slug}-0123456789abcdef" in said[0].getMessage()


def test_another_template_or_switch_is_another_score(chat_model, scored_rows, tmp_path):
    shutil.copytree(chat_model, tmp_path / "s")
    first = Score(student=str(tmp_path / "s"))(BATCH)
    switched = Student(str(tmp_path / "s"), chat_template_kwargs={"enable_thinking": False})
    Score(student=switched)(BATCH)
    assert scored_rows["student"] == 12
    template = tmp_path / "s" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|assistant|>\n", "<|assistant|>\nSo: "))
    Score(student=str(tmp_path / "s"))(BATCH)
    assert scored_rows["student"] == 18
    assert Score(student=str(tmp_path / "s")) == Score(student=str(tmp_path / "s"))
    assert signals(first, "learnability")[0][0] < 0


def test_a_student_on_the_hub_that_is_pushed_again_is_scored_again(chat_model, base_model, hub):
    def push(folder):
        files = {f.name: f.read_bytes() for f in Path(folder).iterdir()}
        hub.put(
            "org/student", files | {"chat_template.jinja": b"{{ messages[-1].content }}"}, "model"
        )

    push(chat_model)
    first = signals(Score(student="org/student")(BATCH), "learnability")
    assert signals(Score(student="org/student")(BATCH), "learnability") == first
    model = AutoModelForCausalLM.from_pretrained(base_model)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
    with tempfile.TemporaryDirectory() as other:
        shutil.copytree(chat_model, other, dirs_exist_ok=True)
        model.save_pretrained(other)
        push(other)
    assert signals(Score(student="org/student")(BATCH), "learnability") != first


def test_a_reward_model_trained_in_place_within_one_process(chat_model, reward_model, tmp_path):
    """The scores are the new weights', and are kept under the new weights' name."""
    place = tmp_path / "judge"
    shutil.copytree(reward_model, place)
    judge = Score(student=chat_model, quality={"reward_model": str(place)})
    before = signals(judge(BATCH), "quality")
    weights = place / "model.safetensors"
    old = weights.stat()
    model = AutoModelForSequenceClassification.from_pretrained(place)
    with torch.no_grad():
        model.score.weight.mul_(-1)
    model.save_pretrained(place)
    assert weights.stat().st_size == old.st_size
    os.utime(weights, ns=(old.st_atime_ns, old.st_mtime_ns))
    after = signals(judge(BATCH), "quality")
    for b, a in zip(before, after, strict=True):
        assert a[0] == pytest.approx(-b[0], abs=1e-4)
        assert a[1] is b[1] is None
    assert signals(judge(BATCH), "quality") == after


def test_a_reward_model_on_the_hub_that_is_pushed_again_within_one_process(
    chat_model, reward_model, hub, tmp_path
):
    """As in a folder: the branch's name is kept in no place of its weights."""

    def push(folder):
        files = {f.name: f.read_bytes() for f in Path(folder).iterdir()}
        return hub.put("org/judge", files, "model")

    push(reward_model)
    judge = Score(student=None, quality={"reward_model": "org/judge"})
    before = signals(judge(BATCH), "quality")
    shutil.copytree(reward_model, tmp_path / "judge")
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    with torch.no_grad():
        model.score.weight.mul_(-1)
    model.save_pretrained(tmp_path / "judge")
    second = push(tmp_path / "judge")
    after = signals(judge(BATCH), "quality")
    for b, a in zip(before, after, strict=True):
        assert a[0] == pytest.approx(-b[0], abs=1e-4)
    pinned = Score(student=None, quality=judge.quality | {"revision": second.oid})
    assert signals(pinned(BATCH), "quality") == after


def test_what_the_student_reads_and_quality_grades(chat_model):
    """The student what it is trained on, quality the answer alone; a cut-off thought is wrong."""
    thoughtful = response("a", "It is 2.") | {"reasoning": "It is 7."}
    cut = response("b", "") | {"reasoning": "It is 2.", "finish_reason": "length"}
    plain = response("c", "It is 7.")
    batch = {key: [BATCH[key][0]] for key in BATCH} | {"responses": [[thoughtful, cut, plain]]}
    texts = {
        "both": ["<think>\nIt is 7.\n</think>\n\nIt is 2.", "<think>\nIt is 2.", "It is 7."],
        "answer": ["It is 2.", "<think>\nIt is 2.", "It is 7."],
        "reasoning": ["<think>\nIt is 7.", "<think>\nIt is 2.", None],
    }
    for reads, read in texts.items():
        scored = Score(chat_model, reads=reads)(batch)
        assert signals(scored, "quality") == [[1.0, 0.0, 0.0]]
        messages = batch["messages"][0]
        expected = dict(
            of_student(Student(chat_model), [(messages, text) for text in read if text])
        )
        for i, found in enumerate(signals(scored, "learnability")[0]):
            wanted = expected[i]["learnability"] if read[i] else None
            assert found == (wanted if wanted is None else pytest.approx(wanted, abs=1e-4))
    assert signals(Score(chat_model)(batch), "rsr") == signals(
        Score(chat_model, reads="both")(batch), "rsr"
    )
