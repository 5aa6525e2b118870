import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from persyn_datasets import InputError
from persyn_datasets.signals import quality

BOXED = [
    ("42", r"So it is \boxed{42}.", 1.0),
    ("42", r"So it is \boxed{41}.", 0.0),
    ("1,000", "The answer is 1000.", 1.0),
    (r"\frac{1}{2}", r"It is $\frac{2}{4}$.", 1.0),
    (r"\frac{1}{2}", "It is 0.5", 1.0),
    (r"$\sqrt{8}$", r"\boxed{2\sqrt{2}}", 1.0),
    (r"\frac{1}{2}", r"It is $\frac{1}{3}$.", 0.0),
    ("7", "I do not know.", 0.0),
    ("0", r"\boxed{0}", 1.0),
]


def test_math_verify_right_and_wrong():
    assert quality.math_verify([(answer, text) for answer, text, _ in BOXED]) == [
        right for *_, right in BOXED
    ]


def test_math_verify_in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(
            quality.math_verify, [(answer, text) for answer, text, _ in BOXED]
        ).result()
    assert scores == [right for *_, right in BOXED]


def conversation(i):
    return [
        {"role": "user", "content": "the " * i},
        {"role": "assistant", "content": "er" * (7 * i % 30) + str(i)},
    ]


ROWS = [conversation(i) for i in range(12)]


def one_at_a_time(path):
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in ROWS]
    with torch.inference_mode():
        return [
            model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
            for text in texts
        ]


@pytest.mark.parametrize("tokens_per_batch", [1, 300, 10_000])
@pytest.mark.parametrize("kind", ["Llama", "Bert"])
def test_reward_model_scores_do_not_hang_on_the_batch(
    kind, tmp_path, monkeypatch, tokens_per_batch
):
    monkeypatch.setattr(quality, "TOKENS_PER_BATCH", tokens_per_batch)
    model = save_model(tmp_path, kind, head="SequenceClassification", num_labels=1)
    alone = one_at_a_time(model)
    assert quality.reward_model_scores(ROWS, model) == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.1


@pytest.mark.parametrize(
    ("config_pad", "tokenizer_pad"), [(None, "<pad>"), (None, "</s>"), (1, "<pad>"), (0, None)]
)
def test_reward_model_whose_config_and_tokenizer_differ_in_padding(
    reward_model, tmp_path, config_pad, tokenizer_pad
):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.pad_token_id = config_pad
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    tokenizer.pad_token = tokenizer_pad
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("pad_token_id") == config_pad
    alone = one_at_a_time(tmp_path)
    assert quality.reward_model_scores(ROWS, str(tmp_path)) == pytest.approx(alone, abs=1e-4)


def test_what_is_no_reward_model(base_model, models_folder):
    two = save_model(models_folder / "two-labels", head="SequenceClassification", num_labels=2)
    with pytest.raises(InputError, match="has 2 labels; a reward model has one"):
        quality.reward_model_scores(ROWS, two)
    bare = save_model(
        models_folder / "bare", head="SequenceClassification", num_labels=1, chat=False
    )
    with pytest.raises(InputError, match="no chat template; expected one"):
        quality.reward_model_scores(ROWS, bare)


PROMPTS, COMPLETIONS = [[row[0]] for row in ROWS[:3]], [[row[1]] for row in ROWS[:3]]
COLUMNS = {"answer": ["a", "b", "c"], "level": [1, 2, 3]}


def test_reward_functions_get_what_they_name():
    seen = {}

    def everything(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, None, 0.5]

    assert quality.call(everything, PROMPTS, COMPLETIONS, COLUMNS) == [1.0, None, 0.5]
    assert seen == {"prompts": PROMPTS, "completions": COMPLETIONS, **COLUMNS}

    def some(completions, level):
        return torch.tensor(
            [len(c[0]["content"]) + n for c, n in zip(completions, level, strict=True)]
        )

    lengths = [len(row[1]["content"]) for row in ROWS[:3]]
    assert quality.call(some, PROMPTS, COMPLETIONS, COLUMNS) == [
        lengths[0] + 1,
        lengths[1] + 2,
        lengths[2] + 3,
    ]
    with pytest.raises(InputError, match=r"some_few.* returned 1 scores for 3 responses"):
        quality.call(some_few, PROMPTS, COMPLETIONS, COLUMNS)


def some_few(prompts, **_):
    return [1.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "no.such.module",
            "'no.such.module' is not 'math-verify', not {reward_model: …} and not a callable's "
            "path",
        ),
        ("json.no_such", "'json.no_such' is not 'math-verify'"),
        ("maths-verify", "'maths-verify' is not 'math-verify'"),
        ("", "'' is not 'math-verify'"),
        ("string.digits", "'string.digits' is a str; expected a callable"),
    ],
)
def test_dotted_paths(path, message):
    assert quality.resolve("json.dumps") is json.dumps
    with pytest.raises(InputError, match=message):
        quality.resolve(path)
