"""What of somebody else's recipe or router counts only if the user names it, too."""

from dataclasses import fields, is_dataclass
from typing import get_args, get_origin, get_type_hints

import pytest

from persyn_datasets import InputError, Recipe
from persyn_datasets.config.overrides import apply_overrides

THEIRS = "The recipe of org/theirs on the Hub"


def recipe(**changes):
    values = {
        "name": "x",
        "student": {"model": "org/s"},
        "prompts": {"path": "org/p"},
        "teachers": [{"model": "org/a"}, {"model": "org/b"}],
    }
    return values | changes


def teacher(**changes):
    return recipe(teachers=[{"model": "org/a"}, {"model": "org/b"} | changes])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        # Files, also those that are not there yet, and other places than the Hub.
        (recipe(evaluation={"data": {"persyn_math": "~/x.jsonl"}}), "evaluation.data.persyn_math"),
        (recipe(evaluation={"data": {"persyn_math": "/a/x.csv"}}), "evaluation.data.persyn_math"),
        (recipe(evaluation={"data": {"persyn_math": __file__}}), "evaluation.data.persyn_math"),
        (recipe(evaluation={"data": {"m": "http://h/x.csv"}}), "evaluation.data.m"),
        (recipe(evaluation={"include_path": "tasks"}), "evaluation.include_path"),
        (recipe(evaluation={"held_out": {"path": "../x.jsonl"}}), "evaluation.held_out.path"),
        (recipe(target={"path": "/not/there.jsonl"}), "target.path"),
        (recipe(prompts={"path": "a\\b.jsonl"}), "prompts.path"),
        (recipe(prompts={"decontaminate": {"against": [{"path": "./b"}]}}), "against.0.path"),
        # A branch anybody may open, of a model whose code runs here.
        (teacher(trust_remote_code=True, revision="refs/pr/9"), "teachers.1.revision"),
        (recipe(student={"trust_remote_code": True, "revision": "v"}), "student.revision"),
        (recipe(student={"model": "org/s", "trust_remote_code": True}), "student.model"),
        # Where a server sends the prompts on to.
        (teacher(extra_body={"api_base": "http://them/v1"}), "teachers.1.extra_body.api_base"),
        (teacher(extra_body={"provider": {"order": ["x"]}}), "extra_body.provider.order.0"),
        (recipe(quality={"judge": {"extra_body": {"a": 1}}}), "quality.judge.extra_body.a"),
        # Code, whatever it is called by.
        (recipe(quality="code-tests"), "quality"),
        (recipe(quality={"code-tests": True}), "quality.code-tests"),
        (recipe(quality={"function": "os.system"}), "quality.function"),
        (teacher(engine_args={"worker_cls": {"dtype": "x.Y"}}), "engine_args.worker_cls.dtype"),
        (teacher(engine_args={"hf_overrides": {"model": "x"}}), "engine_args.hf_overrides.model"),
        (teacher(engine_args={"worker_cls.dtype": "x.Y"}), "engine_args.worker_cls.dtype"),
    ],
)
def test_what_decides_for_the_user_is_named_by_the_user(values, key):
    with pytest.raises(InputError, match=f"{key} to .*--set"):
        apply_overrides(values, [], THEIRS)
    apply_overrides(values, [], "")  # the user's own


@pytest.mark.parametrize(
    "values",
    [
        recipe(),
        recipe(quality={"reward_model": "org/r", "revision": "v1"}),
        recipe(quality={"judge": {"model": "gpt-4o:2024"}, "pairwise": True, "scale": [1, 5]}),
        recipe(student={"model": "org/s", "revision": "v1", "trust_remote_code": False}),
        recipe(evaluation={"tasks": ["gsm8k"], "held_out": {"path": "org/h"}}),
        teacher(engine_args={"tensor_parallel_size": 8, "dtype": "bfloat16"}),
        teacher(system_prompt="/no_think", examples=[{"role": "user", "content": "http://h?a=b"}]),
    ],
)
def test_the_rest_is_taken_as_it_is(values):
    apply_overrides(values, [], THEIRS)


def test_all_that_is_to_be_named_is_said_at_once():
    values = teacher(base_url="http://them/v1", api_key_env="KEY")
    with pytest.raises(InputError) as error:
        apply_overrides(values, [], THEIRS)
    for key in ("teachers.1.base_url=http://them/v1", "teachers.1.api_key_env=KEY"):
        assert f"--set {key}" in str(error.value)


def test_what_is_to_be_pasted_runs_nothing():
    with pytest.raises(InputError, match=r"--set 'teachers\.1\.base_url=http://h;touch x'$"):
        apply_overrides(teacher(base_url="http://h;touch x"), [], THEIRS)


def test_a_section_that_the_user_states_counts_as_theirs():
    values = recipe(quality={"code-tests": True})
    apply_overrides(values, ["quality=math-verify"], THEIRS)
    assert values["quality"] == "math-verify"
    values = teacher(engine_args={"worker_cls": "x.Y"})
    apply_overrides(values, ["teachers.1.engine_args={dtype: float32}"], THEIRS)
    assert values["teachers"][1]["engine_args"] == {"dtype": "float32"}


def test_code_that_the_user_allows_is_of_the_revision_that_the_user_names():
    values = teacher(revision="refs/pr/9")
    with pytest.raises(InputError, match=r"teachers\.1\.revision"):
        apply_overrides(values, ["teachers.1.trust_remote_code=true"], THEIRS)


# Of all texts that a recipe may state, those that decide nothing for the user: names of columns,
# splits and choices, words for models, and revisions of what runs no code.
HARMLESS = set(
    "name split revision column answer_column response_column license language family "
    "strategy group strong weak system_prompt examples stop "
    "reasoning_effort lr_scheduler_type tasks engine columns response_format batch_size "
    "chat_template_kwargs max_share".split()
)
DANGER = "/etc/hostname"


def texts(part, path=()):
    """The path of every key of a recipe whose value may be or hold a text."""
    if is_dataclass(part):
        hints = get_type_hints(part)
        for key in fields(part):
            yield from texts(hints[key.name], (*path, key.name))
    elif part is str:
        yield path
    elif get_origin(part) is dict:
        yield (*path, "a")
    else:
        for inner in get_args(part):
            yield from texts(inner, path)


def test_every_key_of_a_recipe_is_harmless_or_guarded():
    """A new key fails here until somebody has judged it."""
    unguarded = set()
    for path in set(texts(Recipe)):
        values = DANGER
        for key in reversed(path):
            values = {key: values}
        try:
            apply_overrides(values, [], THEIRS)
            unguarded.add(path)
        except InputError:
            pass
    assert {path[-1] if path[-1] != "a" else path[-2] for path in unguarded} == HARMLESS
