"""Calls of functions are scored in the text that is trained: every template in TRL's wheel that
knows them, against what `SFTTrainer` itself puts loss on.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from persyn_datasets import InputError, Student, Teacher
from persyn_datasets.data.reasoning import inline
from persyn_datasets.data.tools import to_calls, to_tools
from persyn_datasets.signals.learnability import signals
from persyn_datasets.signals.trained_calls import check
from persyn_datasets.signals.trained_text import ChatFormat, Row

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "scripts"))
students = pytest.importorskip("students", reason="TRL is not installed")

USER = [{"role": "user", "content": "Is it warm in Rome?"}]
TURNS = [
    {"role": "system", "content": "Be brief."},
    *USER,
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "And in Oslo?"},
]
PLACE = {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}}
FUNCTIONS = [
    {"name": "weather", "description": "Of a city.", "parameters": PLACE},
    {
        "name": "clock",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
    },
]
TOOLS = to_tools([{"type": "function", "function": f} for f in FUNCTIONS], "here")


def calls(*arguments):
    return to_calls([{"function": {"name": "weather", "arguments": a}} for a in arguments])


# 0.9549 is among the numbers that `datasets` 5.2 reads with an error in the last place.
ONE = calls({"city": "Oslo ü", "north": 0.9549, "days": [1, None]})
TWO = calls({"city": "Oslo"}, {"city": "Rome"})
THOUGHT = inline("The user asks for Oslo.", "")
ROWS = [
    Row(USER, "", TOOLS, ONE),
    Row(TURNS, "", TOOLS, ONE),
    Row(USER, "I look it up.", TOOLS, ONE),
    Row(USER, f"{THOUGHT}\n</think>\n\n", TOOLS, ONE),
    Row(USER, "", TOOLS, TWO),
    Row(USER, "It is 5.", TOOLS),
    Row(TURNS, "It is 5."),
]
# Of the templates in TRL 1.16.0's wheel, with or without `_training`: those that know calls, those
# of one call in an answer, and those that end a call otherwise than a text.
QWEN = ("2_5", "3", "3_5_nothink", "3_5_think", "3_6", "3_8", "3_instruct_2507", "3_vl")
NEMOTRON = ("3_5_lightning", "3_nano", "3_super", "3_ultra")
SINGLE = {"llama3_1", "llama3_2"}
KNOW = {*(f"qwen{name}" for name in QWEN), *(f"nemotron_{name}" for name in NEMOTRON), *SINGLE}
KNOW |= {
    "gemma4_v2",
    "glm4moe",
    "muse_glimmer",
    "lfm2_2_5",
    "lfm2_2_5_v2",
    "lfm2_2_5_vl",
    "lfm2_v2",
}
END = {"glm4moe_training", "gptoss", "diffusion_gemma"}
END |= {f"gemma4{version}" for version in ("", "_v3", "_v4", "_v5")}


FREELY = Teacher("m", engine="endpoint", base_url="http://x/v1")
SINGLY = replace(FREELY, extra_body={"parallel_tool_calls": False})


def table(*rows):
    return Dataset.from_list([{"messages": m, "tools": tools} for m, tools in rows])


def kind(name):
    return name if name in END else name.removesuffix("_training")


def refusal(student, single):
    try:
        check(student, table((USER, TOOLS), (TURNS, TOOLS)), [SINGLY if single else FREELY])
    except InputError as error:
        assert student.model in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("name", [n for n in students.names() if kind(n) in KNOW])
def test_what_is_scored_is_what_trl_trains(name, tmp_path):
    student = Student(students.save_student(name, tmp_path / "student"))
    single = name in SINGLE
    assert refusal(student, single=True) == ""
    assert bool(refusal(student, single=False)) == single
    form = ChatFormat(student)
    rows = [row for row in ROWS if not (single and row.calls == TWO)]
    found = list(form.render(rows))
    trained = students.trained_by_trl(student.model, form.tokenizer, rows)
    assert [(text.ids, text.loss_from) for text in found] == trained
    *called, offered, plain = found
    decode = form.tokenizer.decode
    for row, text in zip(rows, called, strict=False):
        answer = decode(text.answer)
        assert 1 <= text.loss_from <= text.start < text.end <= len(text.ids)
        assert "weather" in answer and "Oslo" in answer
        assert ("Rome" in answer) == (row.calls == TWO)
        assert "weather" not in decode(text.ids[text.loss_from : text.start])
        # Behind it is what is behind a text; a token may reach over both.
        end, usual = decode(text.ids[text.end :]), decode(offered.ids[offered.end :])
        assert usual.endswith(end) and len(usual) - len(end) <= 1
    [at_once, _, looked, thought] = (decode(text.answer) for text in called[:4])
    assert "I look it up." in looked or called[2].dropped == "I look it up."
    assert "asks for Oslo" in thought or "asks for Oslo" in called[3].dropped
    assert at_once.lstrip().removesuffix("<") in looked  # "<": of a token that reaches over the end
    assert decode(offered.answer) == decode(plain.answer) == "It is 5."
    assert "Of a city." in decode(offered.context) and "Of a city." not in decode(plain.context)


@pytest.mark.parametrize("name", [n for n in students.names() if kind(n) not in KNOW])
def test_templates_that_leave_something_out_are_refused(name, tmp_path):
    why = refusal(Student(students.save_student(name, tmp_path)), single=True)
    assert why
    assert ("ends a call" in why) == (kind(name) in END)


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "nemotron_3_nano"])
def test_learnability_of_calls_is_of_the_trained_text(name, tmp_path):
    """Against a plain forward pass over what TRL trains."""
    folder = students.save_student(name, tmp_path)
    form = ChatFormat(Student(folder))
    found = dict(signals(Student(folder), ROWS[:3]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for i, (ids, _) in enumerate(students.trained_by_trl(folder, form.tokenizer, ROWS[:3])):
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        picked = log_probs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        text = next(form.render([ROWS[i]]))
        own = picked[text.start - 1 : text.end - 1]
        assert found[i]["learnability"] == pytest.approx(own.mean().item(), abs=1e-4)
        assert found[i]["tokens"] == len(own) > 5


def test_what_a_template_cannot_read_is_refused(tmp_path):
    """Every list of functions is tried, not one of a kind."""
    folder = tmp_path / "student"
    students.save_student("qwen3", folder)
    template = (students.TEMPLATES / "qwen3.jinja").read_text()
    refuses = "{{ raise_exception('no clocks') if tools and 'clock' in tools | tojson }}"
    (folder / "chat_template.jinja").write_text(refuses + template)
    only = to_tools([{"type": "function", "function": FUNCTIONS[0]}], "here")
    check(Student(str(folder)), table((USER, only), (USER, None)), [FREELY])
    with pytest.raises(InputError, match="no clocks"):
        check(Student(str(folder)), table((USER, only), (USER, TOOLS)), [FREELY])
