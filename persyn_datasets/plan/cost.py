"""The plan of a build: what it will ask, and what that will cost."""

from collections.abc import Sequence

from datasets import Dataset

from persyn_datasets import signals
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.shares import part_of
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import Estimate, Line, Planned, Use
from persyn_datasets.data.contamination import in_words
from persyn_datasets.data.sources import load
from persyn_datasets.data.tools import offered
from persyn_datasets.engines import facts_of, price_of
from persyn_datasets.engines.account import wall
from persyn_datasets.engines.bound import TEMPLATE_TOKENS, beside, by_bytes, tokens_counted
from persyn_datasets.plan.checks import calibration, contamination
from persyn_datasets.report.tables import Table, table
from persyn_datasets.report.text import fill
from persyn_datasets.store.progress import usd
from persyn_datasets.strategies import baselines as strategies

# So many prompts are counted by the tokenizer of a teacher with a price, a millisecond each; of
# more, and of teachers that cost nothing, a sample.
COUNTED = 256
SAMPLED = 64


def plan(recipe: Recipe, prompts: int) -> Planned:
    """Generations: k·c·|M| + (N − c), against N·|M| of generate-then-select (paper §2, where k =
    1).

    Second opinions come on top; those on calibration prompts are there already, so that these are
    at most so many.
    """
    n, m, c = prompts, len(recipe.teachers), strategies.calibration_size(recipe, prompts)
    k = recipe.calibration.samples
    twice = part_of(recipe.second_opinion, n) if recipe.strategy in strategies.ROUTED else 0
    return {
        "prompts": n,
        "teachers": m,
        "calibration": c,
        "samples": k,
        "asked_twice": twice,
        "generations": k * c * m + n - c + twice,
        "generate_then_select": n * m,
    }


def estimate(recipe: Recipe, prompts: Dataset, account: Sequence[Line] = ()) -> Estimate:
    """What a build will use at most: if each answer has `max_tokens`, and each prompt as many
    tokens as `engines.bound` says.

    No bound: the router may send more prompts to dear teachers than an even spread does. `max_cost`
    is one.

    Args:
        account: of an earlier build: what it measured counts instead of the teachers'
            `tokens_per_second`.
    """
    p, teachers = plan(recipe, len(prompts)), strategies.teachers_of(recipe)
    answer = _answers(recipe, prompts, account)
    c, every = p["calibration"], p["calibration"] * p["samples"]
    rest = p["prompts"] - c + p["asked_twice"]
    seconds = wall(teachers, {name: of["seconds"] for name, of in answer.items()})
    whole = Use(
        prompt_tokens=sum(of["prompt_tokens"] for of in answer.values()),
        prompt_tokens_at_most=sum(of["prompt_tokens_at_most"] for of in answer.values()),
        completion_tokens=sum(of["completion_tokens"] for of in answer.values()),
        usd=sum(of["usd"] for of in answer.values()),
        seconds=seconds,
    )
    dearest = max(answer, key=lambda name: answer[name]["usd"])
    return {
        "answer": answer,
        "Generate": _times(every, whole),
        "Synthesize": _times(rest / len(teachers), whole),
        "generate_then_select": p["prompts"] * whole["usd"],
        "dearest": {"name": dearest, "usd": p["prompts"] * answer[dearest]["usd"]},
    }


def _answers(recipe: Recipe, prompts: Dataset, account: Sequence[Line]) -> dict[str, Use]:
    """By teacher, what one answer of it uses."""
    size = strategies.calibration_size(recipe, len(prompts))
    drawn = calibration(recipe, prompts)["prompt_id"] if 0 < size <= len(prompts) else []
    bounds = [by_bytes(m, t) for m, t in zip(prompts["messages"], offered(prompts), strict=True)]
    by_server = _longest_mean(prompts, drawn, bounds)
    answer: dict[str, Use] = {}
    for t in strategies.teachers_of(recipe):
        expected, most = _prompt_tokens(recipe, prompts, drawn, t, by_server)
        written = (t.sampling or recipe.sampling).max_tokens
        answer[t.name] = {
            "prompt_tokens": expected,
            "prompt_tokens_at_most": most,
            "completion_tokens": written,
            "usd": price.of(most, written) if (price := price_of(t)) else 0.0,
            "seconds": _seconds(t, written, account),
        }
    return answer


def _times(n: float, one: Use) -> Use:
    """What n of them use."""
    return {
        "prompt_tokens": n * one["prompt_tokens"],
        "prompt_tokens_at_most": n * one["prompt_tokens_at_most"],
        "completion_tokens": n * one["completion_tokens"],
        "usd": n * one["usd"],
        "seconds": None if one["seconds"] is None else n * one["seconds"],
    }


def _prompt_tokens(
    recipe: Recipe, prompts: Dataset, drawn: Sequence[str], teacher: Teacher, by_server: float
) -> tuple[float, float]:
    """Tokens of a prompt as this teacher reads it: expected, and at most.

    Args:
        by_server: at most, without the teacher's own system prompt, examples and keys.
    """
    own = by_bytes(teacher.conversation([{"role": "user", "content": ""}])) - TEMPLATE_TOKENS
    own += beside(teacher)
    most, all_counted = by_server + own, teacher.price and len(prompts) <= COUNTED
    sample = prompts if all_counted else _sample(recipe, prompts)
    counted: list[int] = []
    for messages, tools in zip(sample["messages"], offered(sample), strict=True):
        tokens = tokens_counted(teacher, teacher.conversation(messages), tools)
        if tokens is None:
            return most, most
        counted.append(tokens)
    if not all_counted:
        return sum(counted) / len(counted), most
    expected = _longest_mean(prompts, drawn, counted)
    return expected, expected if facts_of(teacher).renders else most


def _sample(recipe: Recipe, prompts: Dataset) -> Dataset:
    """Some of the calibration prompts, or of all where there is no calibration."""
    size = strategies.calibration_size(recipe, len(prompts))
    rows = calibration(recipe, prompts) if 0 < size <= len(prompts) else prompts
    return rows.select(range(min(SAMPLED, len(rows))))


def _longest_mean(prompts: Dataset, drawn: Sequence[str], tokens: Sequence[int]) -> float:
    """The mean over the calibration or over the rest, whichever is larger, so that neither is
    underestimated.
    """
    n, c = len(prompts), len(drawn)
    of_prompt = dict(zip(prompts["prompt_id"], tokens, strict=True))
    of_drawn = sum(of_prompt[key] for key in drawn)
    parts = [(of_drawn, c), (sum(tokens) - of_drawn, n - c)]
    return max(total / rows for total, rows in parts if rows)


def _seconds(teacher: Teacher, tokens: float, account: Sequence[Line]) -> float | None:
    """Of so many tokens, one answer among many."""
    if not facts_of(teacher).journalled:
        return 0.0
    lines = [line for line in account if line["teacher"] == teacher.name and line["new_tokens"]]
    if lines:
        return (
            tokens
            * sum(line["seconds"] for line in lines)
            / sum(line["new_tokens"] for line in lines)
        )
    return tokens / teacher.tokens_per_second if teacher.tokens_per_second else None


def describe(recipe: Recipe, prompts: Dataset, account: Sequence[Line] = ()) -> str:
    """The plan in words and a table; see `estimate`."""
    p, e = plan(recipe, len(prompts)), estimate(recipe, prompts, account)
    rest = p["prompts"] - p["calibration"] + p["asked_twice"]
    saved = p["generate_then_select"] / p["generations"]
    most = rest * e["dearest"]["usd"] / p["prompts"]
    words = [
        f"{recipe.title}: {p['prompts']:,} prompts, {p['teachers']} teachers, student "
        f"{recipe.student.model}\n",
        f"{_teachers_table(recipe, p, e).plain()}\n",
        f"then {rest:,} responses, each from {STRATEGIES[recipe.strategy]}"
        + (f" (at most {usd(most)})" if most else ""),
        f"{p['generations']:,} generations in all; generate-then-select needs "
        f"{p['generate_then_select']:,} ({saved:.1f} times as many)",
    ]
    if e["dearest"]["usd"] and p["calibration"]:
        words.append(_cost_words(e))
    words += _time_words(e)
    if recipe.target and p["calibration"]:
        words.append(
            f"Target: {len(load(recipe.target)):,} reference answers; the student takes "
            f"{recipe.target.steps} steps on them, and the calibration's responses are scored twice"
        )
    if p["calibration"] and (judge := signals.asks(recipe.quality)):
        words.append(_judge_words(recipe, p, prompts, judge))
    if recipe.prompts.decontaminate and (found := contamination(recipe)[1]):
        words.append(in_words(found))
    return "\n".join(fill(line) if "  " not in line else line for line in words)


def _teachers_table(recipe: Recipe, p: Planned, e: Estimate) -> Table:
    """What each teacher answers in the calibration."""
    c, rows = p["calibration"] * p["samples"], []
    of_priced = [e["answer"][t.name] for t in strategies.teachers_of(recipe) if t.price]
    known = all(of["prompt_tokens"] == of["prompt_tokens_at_most"] for of in of_priced)
    for t in strategies.teachers_of(recipe):
        of = e["answer"][t.name]
        bounded = of["prompt_tokens"] == of["prompt_tokens_at_most"] and not facts_of(t).renders
        tokens = [f"{'≤ ' * bounded}{c * of['prompt_tokens']:,.0f}"]
        tokens += [] if known else [f"{c * of['prompt_tokens_at_most']:,.0f}"]
        tokens.append(f"{c * of['completion_tokens']:,.0f}")
        cost = usd(c * of["usd"]) if t.price else "not priced"
        rows.append([t.name, t.engine, f"{c:,}", *tokens, cost])
    head = ["teacher", "engine", "calibration responses", "prompt tokens"]
    head += [] if known else ["at most"]
    return table([*head, "response tokens, at most", "cost, at most"], rows)


def _cost_words(e: Estimate) -> str:
    calibration, rest = e["Generate"]["usd"], e["Synthesize"]["usd"]
    return (
        f"If answers are as long as they may be: calibration {usd(calibration)}, the rest "
        f"{usd(rest)} if spread evenly, together {usd(calibration + rest)}; generate-then-select "
        f"{usd(e['generate_then_select'])}; all prompts to {e['dearest']['name']} "
        f"{usd(e['dearest']['usd'])}"
    )


def _judge_words(recipe: Recipe, p: Planned, prompts: Dataset, judge: Teacher) -> str:
    """How often the judge is asked, and about what that costs if answers are as long as they may
    be: it counts the teachers' answers in tokens of its own.
    """
    signal, spec = signals.signal_of(recipe.quality)
    asked = p["calibration"] * signal.requests_of_prompt(spec, p["teachers"] * p["samples"])
    words = f"The judge {judge.model} is asked {asked:,} times"
    if not judge.price:
        return f"{words} (not priced)"
    answers = [(t.sampling or recipe.sampling).max_tokens for t in recipe.teachers]
    shown = (2 if spec.get("pairwise") else 1) * sum(answers) / len(answers)
    shown += sum(map(by_bytes, prompts["messages"])) / len(prompts)
    shown += by_bytes(judge.conversation([{"role": "user", "content": signal.template(spec)}]))
    shown += beside(judge)
    written = (judge.sampling or recipe.sampling).max_tokens
    return f"{words}, for about {usd(asked * judge.price.of(shown, written))}"


def _time_words(e: Estimate) -> list[str]:
    unknown = [name for name, of in e["answer"].items() if of["seconds"] is None]
    if unknown:
        return [
            f"No time is estimated: state the tokens_per_second of {', '.join(unknown)}, or build "
            "with few prompts first: the account measures it"
        ]
    calibration = (e["Generate"]["seconds"] or 0.0) / 3600
    rest = (e["Synthesize"]["seconds"] or 0.0) / 3600
    if not calibration and not rest:
        return []
    return [
        f"Time for answers as long as they may be: {calibration:,.1f} hours for the calibration, "
        f"{rest:,.1f} for the rest if spread evenly"
    ]
