"""Local teachers by `transformers`: one model in memory at a time, full batches of prompts of like
length.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.engines import Request, Response, failed
from persyn_datasets.engines.account import Account
from persyn_datasets.store.models import (
    batches,
    context_length,
    load_causal_lm,
    load_tokenizer,
    prompt_ids,
)

ROWS_PER_BATCH = 64
TOKENS_PER_BATCH = 131_072


class SampleEachRow(LogitsProcessor):
    """Inverse-transform sampling with one random stream per row: a row's sample does not depend on
    its batch.

    Leaves only the sampled token, so that greedy decoding takes it. Scores are (rows, vocabulary).
    """

    def __init__(self, seeds: Sequence[str]):
        self.streams = [random.Random(hashlib.sha256(seed.encode()).digest()) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Below 1 in float32 too, or the last token would be drawn whatever its probability.
        u = torch.tensor(
            [[min(stream.random(), 1 - 2**-24)] for stream in self.streams], device=scores.device
        )
        cdf = scores.float().softmax(-1).cumsum(-1)
        token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def generate(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """See `persyn_datasets.engines`."""
    teachers = {request.teacher.name: request.teacher for request in requests}
    # Teachers that share weights follow each other; a batch is of one teacher, whose prompts begin
    # alike.
    for teacher in sorted(teachers.values(), key=lambda t: (str(_weights(t)), t.name)):
        weights, sampling = _weights(teacher), teacher.sampling or Sampling()
        tokenizer, limit = load_tokenizer(*weights), context_length(load_causal_lm(*weights))
        rows = []
        for i in (i for i, request in enumerate(requests) if request.teacher.name == teacher.name):
            try:
                ids = prompt_ids(tokenizer, requests[i].messages)
            except TemplateError as error:
                yield i, failed(teacher, f"the model's chat template refuses the prompt: {error}")
                continue
            if len(ids) >= limit:
                yield (
                    i,
                    failed(
                        teacher, f"the prompt has {len(ids)} tokens, the model's context {limit}"
                    ),
                )
                continue
            rows.append((i, requests[i], ids))
        lengths = [min(limit, len(ids) + sampling.max_tokens) for _, _, ids in rows]
        for batch in batches(lengths, TOKENS_PER_BATCH, ROWS_PER_BATCH):
            while batch:
                if not (admitted := [r for r in batch if account.admit(rows[r][1])]):
                    return
                yield from _answer([rows[r] for r in admitted], weights, sampling)
                batch = [r for r in batch if r not in admitted]


def _weights(teacher: Teacher) -> tuple[str, str | None, bool]:
    return teacher.model, teacher.revision, teacher.trust_remote_code


@torch.inference_mode()
def _answer(
    rows: list[tuple[int, Request, list[int]]],
    weights: tuple[str, str | None, bool],
    sampling: Sampling,
) -> Iterator[tuple[int, Response]]:
    model, tokenizer = load_causal_lm(*weights), load_tokenizer(*weights)
    eos = model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or [tokenizer.eos_token_id])
    pad = next(iter(ends)) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # The system prompt and the examples are encoded once for the whole batch.
    columns = takewhile(
        lambda column: len(set(column)) == 1, zip(*(ids[:-1] for _, _, ids in rows), strict=False)
    )
    prefix = [column[0] for column in columns]
    width = max(len(ids) for _, _, ids in rows)
    most = min(sampling.max_tokens, context_length(model) - width)
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(input_ids)
    for r, (_, _, ids) in enumerate(rows):
        own = ids[len(prefix) :]
        input_ids[r, : len(prefix)], input_ids[r, width - len(own) :] = (
            torch.tensor(prefix),
            torch.tensor(own),
        )
        mask[r, : len(prefix)] = mask[r, width - len(own) :] = 1
    cache = DynamicCache(config=model.config)
    if prefix:
        model(torch.tensor([prefix], device=model.device), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(rows))

    steps = LogitsProcessorList()
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
        steps.append(SampleEachRow([f"{q.sampling.seed}:{q.prompt_id}" for _, q, _ in rows]))
    generate: Any = model.generate
    output = generate(
        input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=steps,
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            stop_strings=list(sampling.stop) or None,
        ),
        past_key_values=cache,
        tokenizer=tokenizer,
    )[:, width:].tolist()

    for (i, request, ids), tokens in zip(rows, output, strict=True):
        end = next((t for t, token in enumerate(tokens) if token in ends), None)
        text = str(tokenizer.decode(tokens[:end], skip_special_tokens=True))
        cut = min((text.index(s) for s in sampling.stop if s in text), default=None)
        text = text[:cut].strip()
        # A row that ends early is filled up with padding, which may be the end-of-sequence token.
        used = max((t for t, token in enumerate(tokens, start=1) if token != pad), default=0)
        used = used if end is None or cut is not None else end + 1
        yield (
            i,
            Response(
                teacher=request.teacher.name,
                text=text,
                finish_reason="length" if end is None and cut is None and used == most else "stop",
                prompt_tokens=len(ids),
                completion_tokens=used,
                error="" if text else "empty response",
            ),
        )


def check(teacher: Teacher) -> None:
    """Raises `InputError` if the model cannot be found or its chat template refuses the teacher's
    messages.
    """
    try:
        AutoConfig.from_pretrained(
            *_weights(teacher)[:1],
            revision=teacher.revision,
            trust_remote_code=teacher.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"Teacher {teacher.name!r}: model {teacher.model!r} not found: {error}"
        ) from error
    try:
        prompt_ids(
            load_tokenizer(*_weights(teacher)),
            teacher.conversation([{"role": "user", "content": "?"}]),
        )
    except TemplateError as error:
        raise InputError(
            f"Teacher {teacher.name!r}: the chat template of {teacher.model!r} refuses its system "
            "prompt or examples "
            f"({error}); put them into the first user message of `examples` instead."
        ) from error
