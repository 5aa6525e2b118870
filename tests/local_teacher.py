"""Requests to local teachers, and what they answer."""

from persyn_datasets import Sampling, Teacher
from persyn_datasets.engines import Request
from persyn_datasets.engines import transformers as engine
from persyn_datasets.engines.account import Account

PROMPTS = {
    f"id{i}": [{"role": "user", "content": text}]
    for i, text in enumerate(["a", "the other day", "b " * 30])
}


def teacher_of(model, **sampling):
    return Teacher(model, name="t", sampling=Sampling(**({"max_tokens": 24} | sampling)))


def requests_of(teacher, messages):
    return [Request(teacher, key, teacher.conversation(m)) for key, m in messages.items()]


def by_id(requests, answers):
    """(teacher, prompt id) → response; each request is answered once."""
    answers = list(answers)
    found = {(requests[i].teacher.name, requests[i].prompt_id): response for i, response in answers}
    assert len(found) == len(answers)
    return found


def answers(teacher, prompts=None):
    """prompt id → response; one call of the engine `transformers`."""
    requests = requests_of(teacher, prompts or PROMPTS)
    return {requests[i].prompt_id: response for i, response in engine.generate(requests, Account())}
