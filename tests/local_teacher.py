"""Requests to teachers of the engine `transformers`."""

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


def answers(teacher, prompts=None):
    """prompt id → response; one call of the engine."""
    requests = [
        Request(teacher, key, teacher.conversation(m)) for key, m in (prompts or PROMPTS).items()
    ]
    return {requests[i].prompt_id: response for i, response in engine.generate(requests, Account())}
