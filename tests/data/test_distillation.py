"""Routed prompts as TRL's multi-teacher distillation reads them, with TRL's own worker."""

import json

import pytest
import transformers
from conftest import make_tokenizer
from datasets import Dataset, load_dataset
from pool import TEACHERS, make_recipe, problems, write_lines

from persyn_datasets import InputError, PersynBuilder, Recipe, Teacher
from persyn_datasets.cli import main
from persyn_datasets.data.distillation import servers, sharing, teacher_ids
from persyn_datasets.store import own

TEXTS = ["What is the other?", "3 plus 4?"]


@pytest.fixture
def others(tmp_path, chat_model):
    """Folders with other tokenizers: one token more; the same tokens, other pieces."""
    larger = make_tokenizer(None)
    larger.add_tokens(["<more>"])
    larger.save_pretrained(tmp_path / "larger")
    backend = make_tokenizer(None).backend_tokenizer
    state = json.loads(backend.to_str())
    state["model"]["merges"] = state["model"]["merges"][:1]
    split = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(backend).from_str(json.dumps(state)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    split.save_pretrained(tmp_path / "split")
    return {name: Teacher(str(tmp_path / name), name=name) for name in ("larger", "split")}


def test_who_shares_the_tokenizer(others, chat_model, base_model):
    teachers = [Teacher(base_model, name="same"), *others.values()]
    assert sharing(teachers, chat_model, TEXTS) == ["same"]
    reasons = "larger: its vocabulary of .*; split: it encodes the prompts as other tokens"
    with pytest.raises(InputError, match=reasons):
        sharing(list(others.values()), chat_model, TEXTS)
    with pytest.raises(InputError, match="gone: its tokenizer is not found"):
        sharing([Teacher("./gone", name="gone")], chat_model, TEXTS)
    with pytest.raises(InputError, match="The student './gone' is not found"):
        sharing(teachers, "./gone", TEXTS)


def test_servers():
    served = Teacher("m", name="a", engine="endpoint", base_url="http://host:9/v1/")
    urls, [command] = servers([served, Teacher("org/b", name="b")])
    assert urls == {"a": "http://host:9", "b": "http://localhost:8002"}
    assert command.startswith("vllm serve org/b --port 8002 ")
    _, [command] = servers([Teacher("x; touch y", name="c")])
    assert command.startswith("vllm serve 'x; touch y' --port 8001 ")


def test_functions_that_the_trainer_would_leave_out_are_refused():
    row = {"prompt_id": "p", "messages": [{"role": "user", "content": "?"}], "teacher": "a"}
    assert teacher_ids(Dataset.from_list([row | {"tools": None}])).to_list() == [
        {"prompt_id": "p", "prompt": row["messages"], "teacher_id": "a"}
    ]
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    with pytest.raises(InputError, match="'tools'"):
        teacher_ids(Dataset.from_list([row | {"tools": None}, row | {"tools": tools}]))


def test_route_writes_what_the_trainer_reads(tmp_path, chat_model, others, capsys):
    from trl.experimental.async_distillation import AsyncDistillationConfig
    from trl.experimental.async_distillation.async_rollout_worker import _AsyncRolloutLoop

    values = make_recipe(tmp_path, chat_model)
    PersynBuilder(Recipe.from_dict(values), tmp_path / "out").download_and_prepare()
    config = tmp_path / "out" / "router" / "config.json"
    known = json.loads(config.read_text())
    for teacher in known["persyn"]["teachers"]:  # two models share the student's tokenizer
        other = teacher["name"] == "guesser"
        teacher |= {"engine": "vllm", "model": others["larger"].model if other else chat_model}
    config.write_text(json.dumps(known))
    own.remember(known["persyn"]["teachers"])  # as if the recipe had named them so
    new = write_lines(tmp_path / "new.jsonl", [{"prompt": p} for p, _ in problems()])
    command = ["route", str(config.parent), new, "--output", str(tmp_path / "routed")]
    assert main([*command, "--distill-into", chat_model]) == 0
    assert capsys.readouterr().out.count("Start a server: vllm serve") == 2

    rows = load_dataset(str(tmp_path / "routed"), split="train")
    urls = json.loads((tmp_path / "routed" / "teacher_servers.json").read_text())
    assert rows.column_names == ["prompt_id", "prompt", "teacher_id"] and len(rows) == 24
    assert set(rows["teacher_id"]) <= set(urls) == set(TEACHERS) - {"guesser"}
    assert rows[0]["prompt"] == [{"role": "user", "content": problems()[0][0]}]

    given = AsyncDistillationConfig(
        output_dir=str(tmp_path / "t"), teacher_server_urls=urls, bf16=False, report_to="none"
    )
    worker = _AsyncRolloutLoop.__new__(_AsyncRolloutLoop)
    worker.teacher_server_urls = given.teacher_server_urls
    found = [worker._resolve_teacher_server_url(row) for row in rows]
    assert found == [(row["teacher_id"], urls[row["teacher_id"]]) for row in rows]
