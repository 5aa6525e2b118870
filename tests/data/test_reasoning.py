"""Thought and answer, apart and together."""

import pytest

from persyn_datasets.data.reasoning import inline, opened_by, read, split, written_length


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("It is 7.", "", "It is 7."),
        ("<think>\n3 and 4\n</think>\n\nIt is 7.\n", "3 and 4", "It is 7."),
        (" <think>3 and 4</think>It is 7.", "3 and 4", "It is 7."),
        ("<think>\n<think>\n3 and 4\n</think>\n7", "3 and 4", "7"),  # the template wrote the first
        ("<think>\n\n</think>\n\nIt is 7.", "", "It is 7."),
        ("<think>\n3 and", "3 and", ""),
        ("3 and 4\n</think>\n\nIt is 7.", "3 and 4", "It is 7."),  # the template opened it
        ("3 and 4</think>", "3 and 4", ""),
        (
            "A thought ends with `</think>`, as in R1.",
            "",
            "A thought ends with `</think>`, as in R1.",
        ),
        ("Write <think>\nso\n</think>\nfirst.", "", "Write <think>\nso\n</think>\nfirst."),
        ("[THINK]3 and 4[/THINK]It is 7.", "3 and 4", "It is 7."),
        ("◁think▷3 and 4◁/think▷It is 7.", "3 and 4", "It is 7."),
        ("<thought>3 and 4</thought>\nIt is 7.", "3 and 4", "It is 7."),
        (
            "<|channel|>analysis<|message|>3 and 4<|end|><|start|>assistant<|channel|>final"
            "<|message|>It is 7.",
            "3 and 4",
            "It is 7.",
        ),
        ("", "", ""),
    ],
)
def test_split(text: str, thought: str, answer: str) -> None:
    assert split(text) == (thought, answer)


def test_what_is_put_together_comes_apart_again() -> None:
    for thought, answer in [
        ("3 and 4", "It is 7."),
        ("a\n\nb", "c\n\nd"),
        ("", "7"),
        ("3 and", ""),
    ]:
        assert split(inline(thought, answer)) == (thought, answer)


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("[/INST][THINK]", "[THINK]"),
    ],
)
def test_what_a_prompt_opens(prompt: str, tag: str) -> None:
    assert opened_by(prompt) == tag


def test_what_is_read_of_a_response() -> None:
    whole = {"text": "7", "reasoning": "3 and 4"}
    assert read(whole, "both") == "<think>\n3 and 4\n</think>\n\n7"
    assert read(whole, "answer") == "7"
    assert read(whole, "reasoning") == "<think>\n3 and 4"
    cut = {"text": "", "reasoning": "3 and"}
    assert {read(cut, what) for what in ("both", "answer", "reasoning")} == {"<think>\n3 and"}
    plain = {"text": "7"}  # of version 0.1.0
    assert [read(plain, what) for what in ("both", "answer", "reasoning")] == ["7", "7", ""]
    assert written_length(whole) == 8
    called = {"text": "", "reasoning": "3 and 4", "tool_calls": "[{}]"}
    assert read(called, "both") == "<think>\n3 and 4\n</think>\n\n"
    assert (read(called, "answer"), read(called, "reasoning")) == ("", "<think>\n3 and 4")
    assert written_length(called) == 11
