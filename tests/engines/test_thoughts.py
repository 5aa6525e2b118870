"""Thoughts by the engines that run here: apart from the answer, counted, kept where cut off."""

import json

import pytest
from asking import answers, ask, teach
from chat_server import ChatServer, completion
from thinker import ANSWER, THOUGHT, save_thinker

from persyn_datasets import Generate, Sampling, Teacher
from persyn_datasets.engines import from_record

GREEDY = Sampling(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def thinker(models_folder):
    return save_thinker(models_folder / "thinker")


def of_transformers(thinker, **more):
    teacher = Teacher(thinker, **{"sampling": GREEDY} | more)
    [[response]] = Generate([teacher])({"prompt": ["3 plus 4?"]})["responses"]
    return response


def test_a_thought_that_the_template_opens(thinker):
    response = of_transformers(thinker)
    assert (response["reasoning"], response["text"]) == (THOUGHT, ANSWER)
    assert (response["finish_reason"], response["error"]) == ("stop", "")
    assert (response["reasoning_tokens"], response["completion_tokens"]) == (3, 8)


def test_a_thought_that_is_cut_off(thinker):
    response = of_transformers(thinker, sampling=Sampling(temperature=0, max_tokens=2))
    assert (response["reasoning"], response["text"], response["error"]) == ("3+", "", "")
    assert (response["finish_reason"], response["reasoning_tokens"]) == ("length", 2)


def test_a_model_that_does_not_think_has_no_thought(chat_model):
    response = of_transformers(chat_model, sampling=Sampling(temperature=0, max_tokens=8))
    assert (response["reasoning"], response["reasoning_tokens"]) == ("", 0)


def test_all_shapes_of_one_answer_are_one(thinker, tmp_path, impatient):
    """A recording, a server that parses thoughts, and one that does not, beside `transformers`."""
    raw = f"{THOUGHT}</think>\n{ANSWER}"
    parsed = completion(ANSWER)
    parsed["choices"][0]["message"]["reasoning_content"] = THOUGHT
    recording = tmp_path / "answers.jsonl"
    recording.write_text(json.dumps({"prompt": "3 plus 4?", "teacher": "t", "response": raw}))
    recorded = Teacher(str(recording), name="t", engine="recorded")
    [[found]] = Generate([recorded])({"prompt": ["3 plus 4?"]})["responses"]
    shapes = [found]
    for body in (completion(raw), parsed):
        with ChatServer(lambda request, nth, body=body: (200, {}, body)) as server:
            shapes += answers(ask(teach(server), "3 plus 4?"))
    for response in shapes:
        assert (response["reasoning"], response["text"]) == (THOUGHT, ANSWER)
        assert (response["finish_reason"], response["error"]) == ("stop", "")


def test_a_record_of_version_0_1_0_had_its_thought_in_the_text():
    old = {"teacher": "t", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2}
    found = from_record(old | {"text": "<think>\n3+4\n</think>\n\n7.", "error": ""})
    assert (found["reasoning"], found["text"], found["reasoning_tokens"]) == ("3+4", "7.", None)
    assert from_record(dict(found)) == found


def test_a_switch_of_the_template_turns_thinking_off(thinker):
    response = of_transformers(thinker, chat_template_kwargs={"enable_thinking": False})
    assert (response["reasoning"], response["text"]) == ("", ANSWER)
    response = of_transformers(thinker, chat_template_kwargs={"opens": False})
    assert (response["reasoning"], response["text"]) == (THOUGHT, ANSWER)  # it opens it itself
