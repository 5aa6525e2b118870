"""Stages out of order, and rows that others wrote: one sentence that names what is missing."""

import json

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset

from persyn_datasets import Generate, InputError, Pairify, Rank, Score, Synthesize, Teacher
from persyn_datasets.data import schema

ANSWER = {"sample": 0, "text": "x", "finish_reason": "stop", "prompt_tokens": None}
ANSWER |= {"completion_tokens": None, "error": ""}
GENERATED = [ANSWER | {"teacher": "a"}, ANSWER | {"teacher": "b"}]
SCORED = [r | {"quality": i, "learnability": -0.5, "rsr": None} for i, r in enumerate(GENERATED)]
PROMPT = {"prompt_id": "p", "messages": [{"role": "user", "content": "Why?"}]}
TEACHERS = [Teacher("m", name="a")]


@pytest.mark.parametrize(
    ("stage", "row", "message"),
    [
        ("score", PROMPT, "Score needs the column 'responses', which Generate adds"),
        (Rank(), PROMPT, "Rank needs the column 'responses', which Generate adds"),
        (Rank(), {"responses": SCORED}, "Rank needs the column 'prompt_id', which Generate adds"),
        (Rank(), PROMPT | {"responses": GENERATED}, "'quality', which Score adds"),
        (Pairify(), PROMPT, "Pairify needs the column 'responses', which Generate adds"),
        (Pairify(), PROMPT | {"responses": SCORED}, "'reward', which Rank adds"),
        (Pairify(), {"prompt_id": "p", "responses": SCORED}, "expected 'messages' or 'prompt'"),
        (Synthesize(TEACHERS), PROMPT, "Synthesize needs the column 'teacher', which Route adds"),
        (Synthesize(TEACHERS), PROMPT | {"teacher": None}, "Rows are assigned to None"),
        (Generate(TEACHERS), {"question": "Why?"}, "expected 'messages' or 'prompt'"),
    ],
)
def test_the_missing_stage_is_named(chat_model, stage, row, message):
    takes_arrow = isinstance(stage, Rank | Pairify)
    stage = Score(chat_model) if stage == "score" else stage
    rows = Dataset.from_list([row])
    for form in (None, "arrow") if takes_arrow else (None,):
        with pytest.raises(InputError, match=message):
            rows.with_format(form).map(stage, batched=True)


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("read", ["ours", "datasets"])
def test_rows_that_are_read_back_from_a_file(tmp_path, arrow, read):
    """One with other keys makes `datasets` keep the column as JSON."""
    from persyn_datasets.data.tables import load_table

    extra = {"prompt_id": "q", "messages": [PROMPT["messages"][0] | {"name": "Eve"}]}
    rows = [
        PROMPT | {"responses": SCORED},
        extra | {"responses": [SCORED[0] | {"note": {"z": 1}, "quality": 0.5}, SCORED[1]]},
        PROMPT | {"prompt_id": "r", "responses": []},
    ]
    file = tmp_path / "scored.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = (
        load_table(str(file))
        if read == "ours"
        else load_dataset("json", data_files=str(file), split="train")
    )
    for part in (table, concatenate_datasets([table.select([i]) for i in range(3)])):
        ranked = part.with_format("arrow" if arrow else None).map(Rank(alpha=0), batched=True)
        assert ranked.with_format(None)["best_teacher"][:] == ["b", "b", None]
        pairs = ranked.map(Pairify(), batched=True, remove_columns=ranked.column_names)
        assert [row["label"] for row in pairs.with_format(None)] == [1, 1]
        [message] = pairs.with_format(None)[0]["messages"]
        assert (message["role"], message["content"]) == ("user", "Why?")


def test_columns_that_steer_a_trainer():
    columns = ["prompt", "completion", "answer", "text", "label", "tools", "chosen", "images"]
    assert schema.steering(columns) == ["text", "chosen", "images"]


@pytest.mark.parametrize("images", [False, True])
def test_every_column_that_trl_keeps_for_itself_is_known(images):
    """What is no column of its own is removed by the trainer."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    trainer = trl.SFTTrainer.__new__(trl.SFTTrainer)
    trainer._signature_columns, trainer._is_vision_dataset = None, images
    trainer._set_signature_columns_if_needed()
    own = {*trainer._signature_columns} - {"prompt", "completion"}
    assert own and schema.steering(own) == [*own]
