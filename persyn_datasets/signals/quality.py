"""Quality r_q(y): a verified answer, a reward model, or the user's own reward function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from threading import current_thread, main_thread
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.store.models import batches, load_classifier, load_tokenizer

MATH_VERIFY = "math-verify"
TOKENS_PER_BATCH = 16_384 if torch.cuda.is_available() else 1024  # a CPU wants its cache
RewardFunction = Callable[..., Sequence[float | None]]


def resolve(path: str) -> RewardFunction:
    """The callable at a dotted path, e.g. `my_package.rewards.politeness`.

    Raises:
        InputError: nothing callable is there.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"quality: {path!r} is not 'math-verify', not {{reward_model: …}} and not a "
            f"callable's path ({error})."
        ) from error
    if not callable(function):
        raise InputError(f"quality: {path!r} is a {type(function).__name__}; expected a callable.")
    return function


def call(
    function: RewardFunction,
    prompts: list[list[Message]],
    completions: list[list[Message]],
    columns: Mapping[str, list[Any]],
) -> list[float | None]:
    """Call a reward function the way TRL's trainers do: `f(prompts=, completions=, **columns) ->
    list of floats`.

    `prompts` and `completions` are conversational; every other column of the rows comes by its
    name.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = {"prompts": prompts, "completions": completions, **columns}
    scores = list(function(**{k: v for k, v in given.items() if takes_all or k in parameters}))
    if len(scores) != len(prompts):
        raise InputError(
            f"quality: {function} returned {len(scores)} scores for {len(prompts)} responses."
        )
    return [None if score is None else float(score) for score in scores]


def parse_answer(answer: str) -> list[Any]:
    """A reference answer as Math-Verify's expressions; bare LaTeX is understood too. Empty: not
    understood.
    """
    from math_verify import parse

    return parse(answer) or parse(f"${answer}$")


def _verify(rows: list[tuple[str, str]]) -> list[float]:
    from math_verify import parse, verify

    return [float(verify(parse_answer(answer), parse(text))) for answer, text in rows]


def math_verify(rows: list[tuple[str, str]]) -> list[float]:
    """1.0 where the final answer of a response is right, else 0.0, for (reference answer, response)
    rows.
    """
    if current_thread() is main_thread():
        return _verify(rows)
    # Math-Verify stops runaway expressions by SIGALRM, which only a main thread may set.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_verify, rows).result()


def _reward_model(
    model: str, revision: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loaded = load_classifier(model, revision, trust_remote_code)
    if loaded.config.num_labels != 1:
        raise InputError(
            f"quality.reward_model: {model!r} has {loaded.config.num_labels} labels; a reward "
            "model has one."
        )
    tokenizer = load_tokenizer(model, revision, trust_remote_code)
    config = loaded.config.get_text_config()
    if config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer


@torch.inference_mode()
def reward_model_scores(
    rows: Sequence[list[Message]],
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[float]:
    """The raw scalar output (no activation) of a reward model for whole conversations, by its chat
    template.
    """
    loaded, tokenizer = _reward_model(model, revision, trust_remote_code)
    if tokenizer.chat_template is None:
        raise InputError(
            f"quality.reward_model: the tokenizer of {model!r} has no chat template; expected one."
        )
    texts: Any = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    scores = [0.0] * len(rows)
    # The model's own padding, not the tokenizer's: it scores the last token that is not this.
    # Without it, row by row.
    pad = loaded.config.get_text_config().pad_token_id
    for batch in batches(
        [len(row) for row in ids], TOKENS_PER_BATCH, rows=1 if pad is None else None
    ):
        width = len(ids[batch[0]])
        padded = torch.tensor(
            [ids[i] + [pad] * (width - len(ids[i])) for i in batch], device=loaded.device
        )
        lengths = torch.tensor([[len(ids[i])] for i in batch], device=loaded.device)
        mask = (torch.arange(width, device=loaded.device) < lengths).long()
        logits = loaded(padded, attention_mask=mask).logits
        for i, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
            scores[i] = score
    return scores
