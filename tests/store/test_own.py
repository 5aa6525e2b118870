from dataclasses import replace

import pytest

from persyn_datasets import Price, Sampling, Teacher
from persyn_datasets.store import own

MINE = Teacher("org/m", trust_remote_code=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "org/n"},
        {"revision": "refs/pr/9"},
        {"engine": "endpoint", "base_url": "http://them/v1"},
        {"base_url": "http://them/v1"},
        {"api_key_env": "THEIRS"},
        {"engine_args": {"worker_cls": "x.Y"}},
        {"extra_body": {"api_base": "http://them/v1"}},
    ],
)
def test_a_teacher_that_goes_elsewhere_is_not_the_users(changes):
    own.remember([MINE.to_dict()])
    assert own.is_own(MINE.to_dict())
    assert not own.is_own(replace(MINE, **changes).to_dict())


def test_how_often_and_in_which_words_it_is_asked_is_the_same_teacher():
    own.remember([MINE.to_dict()])
    same = replace(MINE, name="n", timeout=5.0, price=Price(1, 2), sampling=Sampling(0.1))
    assert own.is_own(replace(same, system_prompt="s", license="mit").to_dict())
