"""Learnability: how likely the student finds a response that it is trained on.

    r_l(y, θ) = (1/|y|) Σ_t log p_θ(y_t | what the trained text has before y_t)

From the same forward pass, the Rank-Surprisal Ratio RSR = Σ_t min(rank_t, 100) / Σ_t −log p_θ(y_t |
…), where rank_t counts the tokens that the student finds likelier, plus 1 (arXiv 2601.14249, Eq.
7): lower is better.
"""

from collections.abc import Iterator
from typing import TypedDict

import torch
from transformers import PreTrainedModel

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.student import Student
from persyn_datasets.signals.log_probs import response_log_probs
from persyn_datasets.signals.trained_text import ChatFormat, Rows
from persyn_datasets.store.models import context_length, load_causal_lm

# Of what is measured: where it changes, scores that are kept are measured again.
SCORER = 2
HIGHEST_RANK = 100
LEAST_SURPRISAL = 2**-24  # of a token: float32 has no number between 1 − 2⁻²⁴ and 1


class Signals(TypedDict):
    """What the student says of a response; None where it has no token.

    learnability: mean natural-log probability per token.
    rsr: Rank-Surprisal Ratio.
    tokens: of the response, by the student's tokenizer.
    dropped: characters of the response that the student's chat template leaves out.
    """

    learnability: float | None
    rsr: float | None
    tokens: int
    dropped: int


def signals(student: Student, rows: Rows) -> Iterator[tuple[int, Signals]]:
    """Score rows of (messages, response text), or `Row`s, with the student, each in the text on
    which it is trained (`trained_text`).

    The tokens of the response count, without the end of the turn, so that truncated responses
    compare. What does not fit into the student's context is cut off at the end of the response.

    Yields:
        (index of the row, its signals), in an order of the function's choice.

    Raises:
        InputError: a prompt alone fills the student's context, or the template refuses a row.
    """
    form = ChatFormat(student)
    model = load_causal_lm(student.model, student.revision, student.trust_remote_code)
    for i, log_probs, ranks, left_out in answer_log_probs(model, form, rows):
        if not len(log_probs):
            yield i, Signals(learnability=None, rsr=None, tokens=0, dropped=left_out)
            continue
        # Σ_t −log p_θ(y_t | …). r_l is minus its mean; RSR (Eq. 7) divides the clipped ranks by it,
        # but not by 0, of an answer that the student is certain of: that would end as a reward of
        # −∞. It gets the ratio of the least surprisal that float32 knows (the authors' code divides
        # by 1e-12 there): worse than any other, and finite.
        surprisal = -log_probs.sum()
        least = LEAST_SURPRISAL * len(log_probs)
        rsr = ranks.clamp(max=HIGHEST_RANK).sum() / surprisal.clamp(min=least)
        yield (
            i,
            Signals(
                learnability=-surprisal.item() / len(log_probs),
                rsr=rsr.item(),
                tokens=len(log_probs),
                dropped=left_out,
            ),
        )


def answer_log_probs(
    model: PreTrainedModel, form: ChatFormat, rows: Rows
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, int]]:
    """log p_θ of each token of an answer as it is trained, by any loaded model θ that reads
    `form`'s texts: the student, or the same one after some training.

    Yields:
        (index, log-probabilities (float32), ranks (int64), characters that the template drops), in
        an order of the function's choice; tensors of length 0 where no token of the answer is
        trained.

    Raises:
        InputError: see `signals`.
    """
    limit = context_length(model)
    encoded, places, left_out = [], [], []
    for i, text in enumerate(form.render(rows)):
        if text.start >= limit:
            raise InputError(
                f"The prompt {rows[i][0][-1]['content'][:60]!r} has {text.start} tokens for the "
                f"student {form.student.model!r}, whose context is {limit}; remove the prompt."
            )
        # Cut at the end, not at the beginning: the answer is scored behind its whole context.
        if answer := text.answer[: limit - text.start]:
            encoded.append((text.context, answer))
            places.append(i)
            left_out.append(len(text.dropped))
        else:
            yield i, torch.zeros(0), torch.zeros(0, dtype=torch.int64), len(text.dropped)
    for place, log_probs, ranks in response_log_probs(model, encoded):
        yield places[place], log_probs, ranks, left_out[place]
