"""A router folder that somebody else made: data, where it would decide for the user."""

import json
import shutil

import pytest
from chat_server import ChatServer, echo

from persyn_datasets import InputError, Router
from persyn_datasets.cli import main
from persyn_datasets.config.overrides import apply_overrides
from persyn_datasets.data import distillation


def changed(folder, to, **teacher):
    """A copy in which the second teacher is asked otherwise, as a downloaded folder may have it."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["persyn"]["teachers"][1] |= teacher
    (to / "config.json").write_text(json.dumps(config))
    return str(to)


DANGERS = {
    "base_url": {"engine": "endpoint", "base_url": "https://elsewhere.example/v1"},
    "api_key_env": {"engine": "endpoint", "model": "m", "api_key_env": "OPENAI_API_KEY"},
    "trust_remote_code": {"engine": "transformers", "trust_remote_code": True},
    "engine_args": {"engine": "vllm", "engine_args": {"worker_cls": "evil.Worker"}},
    "model": {"engine": "transformers", "model": "/etc"},
}


@pytest.mark.parametrize("key", DANGERS)
def test_a_downloaded_router_decides_nothing_for_the_user(done, tmp_path, key):
    change = DANGERS[key] | ({"base_url": "http://a/v1"} if key == "api_key_env" else {})
    router = Router.from_pretrained(changed(done.output / "router", tmp_path / "router", **change))
    with pytest.raises(InputError, match="--set"):
        _ = router.teachers
    assert [t.name for t in router.teachers_with(names=[router.names[0]])] == [router.names[0]]
    stated = [
        f"teachers.1.{k}={v}" for k, v in change.items() if k not in ("engine", "engine_args")
    ]
    stated += ["teachers.1.engine_args.worker_cls=mine.Worker"] if key == "engine_args" else []
    assert len(router.teachers_with([*stated, f"teachers.1.model={change.get('model', 'm')}"])) == 3


def test_a_router_that_was_made_here_may_be_moved_and_cut(done, tmp_path):
    router = Router.from_pretrained(
        changed(done.output / "router", tmp_path / "moved", timeout=5.0)
    )
    assert router.teachers[1].timeout == 5.0  # it goes to the same place


def test_prompts_go_nowhere_before_the_user_names_the_server(done, tmp_path):
    with ChatServer(echo) as server:
        change = {"engine": "endpoint", "base_url": server.url, "model": "m"}
        router = changed(done.output / "router", tmp_path / "router", **change)
        (tmp_path / "p.jsonl").write_text('{"prompt": "3 times 4?"}\n')
        command = ["synthesize", router, str(tmp_path / "p.jsonl"), "--output"]
        name = Router.from_pretrained(router).names[1]
        only = ["--teachers", name]
        assert main([*command, str(tmp_path / "a"), *only]) == 1 and server.count == 0
        named = ["--set", f"teachers.1.base_url={server.url}"]
        assert main([*command, str(tmp_path / "b"), *only, *named]) == 0 and server.count > 0


@pytest.mark.parametrize("key", ["trust_remote_code", "base_url"])
def test_distillation_runs_no_code_and_names_no_server_either(done, tmp_path, chat_model, key):
    """It reads the teachers' tokenizers, and writes their servers for a trainer."""
    change = DANGERS[key] | {"model": "org/theirs"}
    router = changed(done.output / "router", tmp_path / "router", **change)
    (tmp_path / "p.jsonl").write_text('{"prompt": "3 times 4?"}\n')
    command = ["route", router, str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "out")]
    command += ["--distill-into", chat_model]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "load_tokenizer", lambda *args: seen.append(args))
        assert main(command) == 1 and not seen and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["https://elsewhere.example/p.jsonl", "file:///etc/passwd"])
def test_a_recipe_from_the_hub_reads_no_url_that_the_user_did_not_name(path):
    with pytest.raises(InputError, match=r"prompts\.path"):
        apply_overrides({"prompts": {"path": path}}, [], "The recipe")
    values = {"prompts": {"path": path}}
    apply_overrides(values, [f"prompts.path={path}"], "The recipe")
    assert values["prompts"]["path"] == path
