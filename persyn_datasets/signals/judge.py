"""Quality by a judge: a model behind a server that reads a prompt and its answers, and says how
good they are (single grading and pairwise comparison of MT-bench, arXiv 2306.05685, §3.1).

Pointwise, it states a score, and several samples are averaged. Pairwise, it compares each two
answers to a prompt in both orders, since judges favour a position (ibid., §3.3): an answer's
quality is the share of its comparisons that it wins, where a tie is half a win.

It is asked as teachers are: its answers are in the journal, tried again, and in the account.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import judge_from
from persyn_datasets.config.teacher import Message, Sampling, Teacher
from persyn_datasets.data.prompts import prompt_id
from persyn_datasets.engines import Request, check_keys, engine_of, facts_of
from persyn_datasets.engines.account import Account
from persyn_datasets.engines.dispatch import respond
from persyn_datasets.signals import Facts
from persyn_datasets.store.identity import teacher_identity

FACTS = Facts(
    keys=("judge", "prompt", "scale", "samples", "pairwise"),
    journalled=False,  # its answers are, as a teacher's
    asks=True,
)
STAGE = "Judge"  # in the account
SCALE = (1, 10)
PROMPT = """Judge the answer of an assistant to the conversation below. Is it right, helpful and to
the point? Length alone is no merit. Say in a sentence or two what is good and what is bad about it.

<conversation>
{prompt}
</conversation>

<answer>
{response}
</answer>"""
PAIR = """Compare the answers of two assistants to the conversation below. Which is more right,
helpful and to the point? Neither length nor order is a merit. Say in a sentence or two how they
differ.

<conversation>
{prompt}
</conversation>

<answer A>
{response_a}
</answer A>

<answer B>
{response_b}
</answer B>"""
END = "\n\nEnd with your score, a number from {} to {}, in double brackets, e.g. [[{}]]."
END_OF_PAIR = "\n\nEnd with the better one in double brackets: [[A]], [[B]], or [[tie]]."

_NAME = re.compile(r"\{(\w+)\}")
_SCORE = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*\d+\s*)?\]\]")
_BETTER = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE)
_VALUE = {"a": 1.0, "b": 0.0, "tie": 0.5}
logger = logging.getLogger(__name__)

Row = tuple[list[Message], str]


def asked(spec: Mapping[str, Any]) -> Teacher:
    """The judge as a model and how it is asked: greedily, unless several samples are drawn.

    Raises:
        InputError: it is not stated as a teacher is.
    """
    samples = spec.get("samples", 1)
    judge = spec["judge"]
    if not isinstance(judge, Mapping):
        raise InputError(
            f"quality.judge: found {judge!r}; expected {{model: …, base_url: …}}, as for a teacher."
        )
    stated = {"engine": "endpoint", "name": f"judge {judge.get('model')}", **judge}
    sampling = stated.get("sampling") or {}
    if isinstance(sampling, Mapping):
        stated["sampling"] = {"temperature": 1.0 if samples > 1 else 0.0, **sampling}
    return judge_from(stated)


def score(
    rows: Sequence[Row],
    columns: Mapping[str, list[Any]],
    judge: Mapping[str, Any],
    prompt: str | None = None,
    scale: Sequence[float] = SCALE,
    samples: int = 1,
    pairwise: bool = False,
    account: Account | None = None,
) -> list[float | None]:
    """The mean score of each row on `scale`; pairwise, its share of wins, in [0, 1].

    None where the judge failed or said nothing that can be read; how many is logged. What is known
    of the judge itself is left in `account.notes`: see `Judged`.
    """
    asking = asked({"judge": judge, "samples": samples})
    account = Account() if account is None else account
    said = _Said(asking, samples, account)
    if pairwise:
        values = _by_pairs(rows, columns, prompt or PAIR, said)
    else:
        values = _by_score(rows, columns, prompt or PROMPT, scale, said)
    before = account.notes.get("judge", {})
    found = dict[str, float](said.counts) | ({"spread": said.spread} if said.spread else {})
    counted = {key: before.get(key, 0) + value for key, value in found.items()}
    account.notes["judge"] = counted | {"name": asking.name}
    if missing := sum(value is None for value in values):
        logger.warning(
            "quality.judge: %d of %d answers have no score, since %s failed or stated none; they "
            "take no part.",
            missing,
            len(values),
            asking.name,
        )
    return values


def check(spec: Mapping[str, Any], prompts: Any) -> None:
    """The judge can be asked, and its prompt holds the answers and names no column that is missing.

    Raises:
        InputError: with what is wrong.
    """
    samples, pairwise = spec.get("samples", 1), spec.get("pairwise", False)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise InputError(f"quality.samples is {samples!r}; expected 1 or more.")
    _check_scale(spec.get("scale", SCALE))
    needed = ("response_a", "response_b") if pairwise else ("response",)
    names = _NAME.findall(template(spec))
    for name in needed:
        if name not in names:
            raise InputError(
                f"quality.prompt: it has no {{{name}}}, so the judge would not see the answer; put "
                "it where the answer belongs."
            )
    known = {"prompt", *needed, *prompts.column_names}
    if missing := [name for name in names if name not in known]:
        raise InputError(
            f"quality.prompt: {{{missing[0]}}} is neither the prompt, an answer, nor a column; "
            f"known are {', '.join(sorted(known))}."
        )
    _check_judge(asked(spec), samples)


def _check_scale(scale: Any) -> None:
    numbers = isinstance(scale, Sequence) and len(scale) == 2
    if not numbers or not all(isinstance(n, int | float) for n in scale) or scale[0] >= scale[1]:
        raise InputError(f"quality.scale is {scale!r}; expected the lowest and the highest score.")


def _check_judge(judge: Teacher, samples: int) -> None:
    check_keys(judge)
    if not facts_of(judge).remote:
        raise InputError(
            f"quality.judge: its engine is {judge.engine!r}; a judge runs behind a server: start "
            "one, e.g. with `vllm serve`, and name its base_url."
        )
    if samples > 1 and (judge.sampling or Sampling()).temperature == 0:
        raise InputError(
            f"quality.samples is {samples}, but the judge is greedy (temperature 0): all would be "
            "the same. Give it a temperature, or draw 1."
        )
    engine_of(judge).check(judge)


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How the judge is asked, and what."""
    scale = list(spec.get("scale", SCALE))
    other = {key: spec.get(key) for key in ("prompt", "samples", "pairwise")}
    return {"judge": teacher_identity(asked(spec)), "scale": scale, **other}


def template(spec: Mapping[str, Any]) -> str:
    """What it is asked, with places for prompt and answers."""
    return str(spec.get("prompt") or (PAIR if spec.get("pairwise") else PROMPT))


def requests_of_prompt(spec: Mapping[str, Any], answers: int) -> int:
    """How often it is asked about a prompt with so many answers."""
    each = answers * (answers - 1) if spec.get("pairwise") else answers
    return each * int(spec.get("samples", 1))


class _Said:
    """What the judge says to texts, `samples` times each."""

    def __init__(self, judge: Teacher, samples: int, account: Account) -> None:
        self.judge, self.samples, self.account = judge, samples, account
        self.counts: Counter[str] = Counter()  # as in `Judged`
        self.spread = 0.0

    def read(
        self, texts: Sequence[str], verdict_of: Callable[[str], float | None]
    ) -> list[list[float]]:
        """The verdicts on each text, without those that failed or cannot be read."""
        asking = []
        for text in texts:
            messages = [{"role": "user", "content": text}]
            conversation = self.judge.conversation(messages)
            key = prompt_id(messages)
            asking += [Request(self.judge, key, conversation, s) for s in range(self.samples)]
        found = respond(asking, STAGE, self.account)
        self.counts["asked"] += len(found)
        self.counts["failed"] += sum(bool(answer["error"]) for answer in found)
        verdicts = [None if a["error"] else verdict_of(a["text"]) for a in found]
        self.counts["unread"] += verdicts.count(None) - self.counts["failed"]
        parts = (verdicts[i : i + self.samples] for i in range(0, len(found), self.samples))
        return [[value for value in part if value is not None] for part in parts]


def _by_score(
    rows: Sequence[Row],
    columns: Mapping[str, list[Any]],
    prompt: str,
    scale: Sequence[float],
    said: _Said,
) -> list[float | None]:
    low, high = scale
    end = END.format(low, high, high)
    texts = [
        _filled(prompt, _cells(columns, i) | {"prompt": _shown(messages), "response": text}) + end
        for i, (messages, text) in enumerate(rows)
    ]
    scores = said.read(texts, lambda text: _number(text, low, high))
    several = [pstdev(of) for of in scores if len(of) > 1]
    said.counts.update(repeated=len(several))
    said.spread += sum(several)
    return [fmean(of) if of else None for of in scores]


def _number(text: str, low: float, high: float) -> float | None:
    """The score that it states last, if that is on the scale."""
    found = _SCORE.findall(text)
    return float(found[-1]) if found and low <= float(found[-1]) <= high else None


def _by_pairs(
    rows: Sequence[Row], columns: Mapping[str, list[Any]], prompt: str, said: _Said
) -> list[float | None]:
    pairs = list(_pairs(rows))
    texts = [
        _filled(prompt, _cells(columns, a) | _pair(rows, a, b)) + END_OF_PAIR
        for i, j in pairs
        for a, b in ((i, j), (j, i))
    ]
    verdicts = said.read(texts, _better)
    wins: dict[int, list[float]] = defaultdict(list)
    for (i, j), first, second in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
        if not first or not second:
            continue
        value = (fmean(first) + 1 - fmean(second)) / 2
        wins[i].append(value)
        wins[j].append(1 - value)
        said.counts.update(pairs=1, agreed=int(fmean(first) == 1 - fmean(second)))
    return [fmean(wins[i]) if i in wins else None for i in range(len(rows))]


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Each two different answers to a prompt."""
    of_prompt: dict[str, list[int]] = defaultdict(list)
    for i, (messages, _) in enumerate(rows):
        of_prompt[prompt_id(messages)].append(i)
    for places in of_prompt.values():
        yield from ((i, j) for i, j in combinations(places, 2) if rows[i][1] != rows[j][1])


def _pair(rows: Sequence[Row], a: int, b: int) -> dict[str, str]:
    messages, _ = rows[a]
    return {"prompt": _shown(messages), "response_a": rows[a][1], "response_b": rows[b][1]}


def _better(text: str) -> float | None:
    """1 where it says A last, 0 where B, ½ where neither."""
    found = _BETTER.findall(text)
    return _VALUE[found[-1].lower()] if found else None


def _shown(messages: Sequence[Message]) -> str:
    """A conversation as a text; a single message as it is."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _cells(columns: Mapping[str, list[Any]], row: int) -> dict[str, str]:
    return {name: str(cells[row]) for name, cells in columns.items()}


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with `{name}` replaced; other braces, and those within values, stay."""
    return _NAME.sub(lambda found: values.get(found[1], found[0]), template)
