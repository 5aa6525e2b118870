"""The model of a local teacher at work; the engine `transformers` says what it is without torch."""

import gc
import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persyn_datasets.config.teacher import Sampling, Teacher
from persyn_datasets.engines import Request, Response, answered, failed, thoughts
from persyn_datasets.engines.account import Account
from persyn_datasets.store.models import (
    batches,
    cache_argument,
    context_length,
    load_causal_lm,
    load_tokenizer,
    prompt_ids,
)

ROWS_PER_BATCH = 64
TOKENS_PER_BATCH = 131_072
# After so many tokens, and each time the answers are twice as long, the rows that ended leave.
FIRST_LOOK = 8


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
        # The first token whose cumulative probability exceeds u, scaled: sums may end below 1.
        cdf = scores.float().softmax(-1).cumsum(-1)
        token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""
        self.streams = [self.streams[row] for row in rows]


class Penalize(LogitsProcessor):
    """Makes tokens less likely that were there before, as vLLM and OpenAI define it.

    The repetition penalty (arXiv 1909.05858) is of prompt and answer, presence and frequency ones
    of the answer alone. transformers has the first one only, and counts padding as the prompt's.
    Scores are (rows, vocabulary); the answers begin at column `width` of the ids.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], width: int):
        self.repetition = sampling.repetition_penalty or 1.0
        self.presence = sampling.presence_penalty or 0.0
        self.frequency = sampling.frequency_penalty or 0.0
        self.prompts, self.width = prompts, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self.width :]
        once = torch.ones_like(new, dtype=scores.dtype)
        counts = torch.zeros_like(scores).scatter_add_(1, new, once)
        seen = counts > 0
        for row, ids in enumerate(self.prompts):
            seen[row, list(ids)] = True
        # Towards −∞ on either side of 0.
        less = torch.where(scores > 0, scores / self.repetition, scores * self.repetition)
        scores = torch.where(seen, less, scores)
        return scores - self.frequency * counts - self.presence * (counts > 0)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""
        self.prompts = [self.prompts[row] for row in rows]


def answer(requests: Sequence[Request], account: Account) -> Iterator[tuple[int, Response]]:
    """What an engine's `generate` does; see `persyn_datasets.engines`."""
    teachers = {request.teacher.name: request.teacher for request in requests}
    # Teachers that share weights follow each other; a batch is of one teacher, whose prompts begin
    # alike.
    for teacher in sorted(teachers.values(), key=lambda t: (str(_weights(t)), t.name)):
        work = _Work(teacher)
        for i, request in enumerate(requests):
            if request.teacher.name == teacher.name and (why := work.refuses(i, request)):
                yield i, failed(teacher, why)
        for batch in work.batches():
            # Under a `max_cost` some of a batch may have to wait until the others are settled.
            while batch:
                if not (admitted := [row for row in batch if account.admit(row.request)]):
                    return
                yield from work.answer(admitted)
                batch = [row for row in batch if row not in admitted]


class Row(NamedTuple):
    place: int  # among the requests
    request: Request
    ids: list[int]


class _Work:
    """One teacher, its rows, and how many of them its device takes at a time."""

    def __init__(self, teacher: Teacher) -> None:
        self.weights, self.sampling = _weights(teacher), teacher.sampling or Sampling()
        self.model, self.tokenizer = load_causal_lm(*self.weights), load_tokenizer(*self.weights)
        self.limit = context_length(self.model)
        self.rows: list[Row] = []
        self.tokens = tokens_that_fit(self.model)

    def refuses(self, place: int, request: Request) -> str:
        """Take a request in, or say why it cannot be answered."""
        try:
            ids = prompt_ids(self.tokenizer, request.messages, request.teacher.chat_template_kwargs)
        except TemplateError as error:
            return f"the model's chat template refuses the prompt: {error}"
        if len(ids) >= self.limit:
            return f"the prompt has {len(ids)} tokens, the model's context {self.limit}"
        self.rows.append(Row(place, request, ids))
        return ""

    def batches(self) -> Iterator[list[Row]]:
        """Rows that are answered together; no row's answer depends on the others.

        All rows of a batch write up to the same number of tokens. One that its context cuts short,
        or that may pass a length from which on its model encodes positions otherwise, is therefore
        together with those of its own length only.
        """
        edge = min(self.limit, positions_change_at(self.model))
        groups: dict[int, list[Row]] = {}
        for row in self.rows:
            free = len(row.ids) + self.sampling.max_tokens <= edge
            groups.setdefault(0 if free else len(row.ids), []).append(row)
        for _, rows in sorted(groups.items(), reverse=True):
            yield from self._split(rows)

    def _split(self, rows: list[Row]) -> Iterator[list[Row]]:
        lengths = [len(row.ids) + self._most(row) for row in rows]
        for batch in batches(lengths, self.tokens, ROWS_PER_BATCH):
            yield [rows[r] for r in batch]

    def _most(self, row: Row) -> int:
        return min(self.sampling.max_tokens, self.limit - len(row.ids))

    def answer(self, rows: list[Row]) -> Iterator[tuple[int, Response]]:
        """Answers to rows of a batch, in parts where the memory does not suffice for all."""
        parts = list(self._split(rows))
        while parts:
            part = parts.pop(0)
            try:
                answers = self._answer(part)
            except torch.OutOfMemoryError as error:
                gc.collect()
                torch.cuda.empty_cache()
                if len(part) == 1:
                    why = f"the device's memory does not suffice: {str(error).splitlines()[0]}"
                    yield part[0].place, failed(part[0].request.teacher, why)
                    continue
                tokens = sum(len(row.ids) + self._most(row) for row in part)
                # Later batches learn from it, too.
                self.tokens = min(self.tokens, tokens) // 2
                parts = [part[: len(part) // 2], part[len(part) // 2 :], *parts]
                continue
            yield from answers

    @torch.inference_mode()
    def _answer(self, rows: list[Row]) -> list[tuple[int, Response]]:
        model = self.model
        eos = model.generation_config.eos_token_id if model.generation_config else None
        ends = {eos} if isinstance(eos, int) else set(eos or [self.tokenizer.eos_token_id])
        pad = self.tokenizer.pad_token_id
        pad = next(iter(ends)) if pad is None else pad
        return [
            (row.place, self._response(row, tokens, ends, pad))
            for row, tokens in zip(rows, self._write(rows, ends, pad), strict=True)
        ]

    def _write(self, rows: list[Row], ends: set[int], pad: int) -> list[list[int]]:
        """The tokens of each row's answer, up to its end, and padding behind it.

        A batch is as long as its longest answer. So that the others cost nothing any more, it is
        written in parts, and after each the rows that have ended leave it.
        """
        cache, prefix = self._encode_prefix(rows)
        ids, mask = (x.to(self.model.device) for x in _padded([r.ids for r in rows], prefix, pad))
        width, most = ids.shape[1], self._most(rows[0])
        steps = _steps(self.sampling, rows, width)
        written: list[list[int]] = [[] for _ in rows]
        going = list(range(len(rows)))
        while going:
            so_far = ids.shape[1] - width
            # Where the cache cannot be split, all rows are written to the end at once.
            part = min(max(so_far, FIRST_LOOK), most - so_far) if cache else most
            ids = self._continue(ids, mask, cache, steps, part, ends, pad)
            for row, tokens in zip(going, ids[:, width:].tolist(), strict=True):
                written[row] = tokens
            if ids.shape[1] - width >= most:
                break
            left = [i for i, row in enumerate(going) if not self._ended(written[row], ends, pad)]
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
            if len(left) < len(going):
                going = [going[i] for i in left]
                ids, mask = ids[left], mask[left]
                if going and cache:
                    cache.batch_select_indices(torch.tensor(left, device=ids.device))
                for step in steps:
                    if isinstance(step, (SampleEachRow, Penalize)):
                        step.keep(left)
        return written

    def _continue(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache | None,
        steps: LogitsProcessorList,
        most: int,
        ends: set[int],
        pad: int,
    ) -> torch.Tensor:
        """The ids, with up to `most` more. `generate` goes on from the cache, but wants all ids."""
        generate: Any = self.model.generate
        longer: torch.Tensor = generate(
            ids,
            attention_mask=mask,
            logits_processor=steps,
            generation_config=GenerationConfig(
                # Greedy: `SampleEachRow` has left nothing but the token that it drew.
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=sorted(ends),
                pad_token_id=pad,
                stop_strings=list(self.sampling.stop) or None,
            ),
            tokenizer=self.tokenizer,
            **({cache_argument(self.model): cache} if cache else {}),
        )
        return longer

    def _text(self, tokens: list[int]) -> str:
        """As it was written: some tokenizers' files ask for `a , b` to become `a, b`."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(tokens, **options))

    def _ended(self, tokens: list[int], ends: set[int], pad: int) -> bool:
        if not self.sampling.stop:
            return not ends.isdisjoint(tokens)
        text = self._text(tokens)
        stopped = any(string in text for string in self.sampling.stop)
        return stopped or tokens[-1] == pad or not ends.isdisjoint(tokens)

    def _encode_prefix(self, rows: list[Row]) -> tuple[Cache | None, int]:
        """The system prompt and the examples, encoded once for the whole batch, and their number of
        tokens.

        Only for models that keep keys and values of each token, and nothing else: a recurrent state
        cannot go on with several tokens at once. And not where positions change, which a long
        prompt does as a whole.
        """
        cache = DynamicCache(config=self.model.config)
        simple = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
        )
        longest = max(len(row.ids) for row in rows) + self._most(rows[0])
        if not simple or longest > positions_change_at(self.model):
            return None, 0
        # Without each row's last token, which `generate` must still read, to go on from it.
        columns = zip(*(row.ids[:-1] for row in rows), strict=False)
        shared = takewhile(lambda column: len(set(column)) == 1, columns)
        prefix = [column[0] for column in shared]
        if prefix:
            ids = torch.tensor([prefix], device=self.model.device)
            self.model(ids, logits_to_keep=1, **{cache_argument(self.model): cache})
            cache.batch_repeat_interleave(len(rows))
        return cache, len(prefix)

    def _response(self, row: Row, tokens: list[int], ends: set[int], pad: int) -> Response:
        stop = self.sampling.stop
        end = next((t for t, token in enumerate(tokens) if token in ends), None)
        # `generate` has stopped behind a stop string, `answered` takes the text before it.
        text = self._text(tokens[:end])
        cut = any(string in text for string in stop)
        # A row that ends early is filled up with padding, which may be the end-of-sequence token.
        used = max((t for t, token in enumerate(tokens, start=1) if token != pad), default=0)
        used = used if end is None or cut else end + 1
        full = end is None and used == self._most(row)
        response = answered(
            row.request.teacher,
            thoughts.opening(self.tokenizer, row.ids) + text,
            "length" if full else "stop",
            len(row.ids),
            used,
            stop=stop,
        )
        return thoughts.with_count(response, self.tokenizer)


def tokens_that_fit(model: PreTrainedModel) -> int:
    """Tokens of a batch, prompts and answers: so many that their keys and values take half of the
    device's free memory, and at most `TOKENS_PER_BATCH`.
    """
    if model.device.type != "cuda":
        return TOKENS_PER_BATCH
    free, _ = torch.cuda.mem_get_info(model.device)
    # What torch has reserved and does not use is free for us, though the device counts it as taken.
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, min(TOKENS_PER_BATCH, free // 2 // max(1, _bytes_per_token(model))))


@torch.inference_mode()
def _bytes_per_token(model: PreTrainedModel) -> int:
    """Of the cache, as it is when 8 tokens come to 8 others; no list of architectures."""
    sizes = []
    for tokens in (8, 16):
        cache: Any = model(torch.zeros(1, tokens, dtype=torch.long, device=model.device))
        kept = getattr(cache, cache_argument(model), None)
        found = (vars(layer).values() for layer in getattr(kept, "layers", ()))
        tensors = [value for values in found for value in values if torch.is_tensor(value)]
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    return (sizes[1] - sizes[0]) // 8


def positions_change_at(model: PreTrainedModel) -> int:
    """The length of the longest row of a batch from which on all its rows get other position
    encodings (Phi-3's long rope); else more than any row has.
    """
    found = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [found, *(kind for kind in found.values() if isinstance(kind, dict))]
    lengths = [
        kind["original_max_position_embeddings"]
        for kind in kinds
        if kind.get("rope_type") == "longrope" and kind.get("original_max_position_embeddings")
    ]
    return min(lengths, default=10**9)


def _padded(rows: list[list[int]], prefix: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, longest): padding is between the first `prefix` tokens,
    which are common to all, and a row's own.
    """
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(input_ids)
    for r, ids in enumerate(rows):
        own = width - len(ids) + prefix
        for columns, tokens in ((slice(prefix), ids[:prefix]), (slice(own, width), ids[prefix:])):
            input_ids[r, columns] = torch.tensor(tokens, dtype=torch.long)
            mask[r, columns] = 1
    return input_ids, mask


def _steps(sampling: Sampling, rows: Sequence[Row], width: int) -> LogitsProcessorList:
    """In vLLM's order; the answers begin at column `width`."""
    steps = LogitsProcessorList()
    if any("penalty" in key for key in sampling.stated):
        steps.append(Penalize(sampling, [row.ids for row in rows], width))
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.min_p:
            steps.append(MinPLogitsWarper(sampling.min_p))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
        steps.append(SampleEachRow([row.request.stream for row in rows]))
    return steps


def _weights(teacher: Teacher) -> tuple[str, str | None, bool]:
    return teacher.model, teacher.revision, teacher.trust_remote_code
