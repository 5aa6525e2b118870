"""The plan of a build: every check that costs nothing, and what the build will cost."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import AutoConfig

from persyn_datasets import signals
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import REASSIGNED, STRATEGIES
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import Line, Planned
from persyn_datasets.data.contamination import clean, in_words
from persyn_datasets.data.sources import check_apart, load
from persyn_datasets.engines import check_keys, engine_of, facts_of
from persyn_datasets.engines.account import wall
from persyn_datasets.engines.bound import TEMPLATE_TOKENS, tokens_of_messages
from persyn_datasets.report.tables import Table, table
from persyn_datasets.report.text import fill
from persyn_datasets.signals import trained_text
from persyn_datasets.stages.generate import check_samples
from persyn_datasets.store.models import load_tokenizer, template_of
from persyn_datasets.store.progress import usd
from persyn_datasets.strategies import baselines as strategies


def check(recipe: Recipe) -> Dataset:
    """Check everything that can be checked before anything is spent; returns the prompts.

    Raises:
        InputError: at the first thing that would not work, with its place and what to do.
    """
    teachers = strategies.teachers_of(recipe)
    for teacher in teachers:
        check_keys(teacher)
    prompts, _ = contamination(recipe)
    if strategies.calibration_size(recipe, len(prompts)):
        _check_calibration(recipe, prompts)
    for teacher in teachers:
        engine_of(teacher).check(teacher)
    return prompts


def contamination(recipe: Recipe) -> tuple[Dataset, dict[str, Any] | None]:
    """The recipe's prompts, without those that are to be dropped, and what `clean` tells of them if
    it is asked for.
    """
    prompts, how = load(recipe.prompts), recipe.prompts.decontaminate
    return clean(prompts, how) if how else (prompts, None)


def _check_calibration(recipe: Recipe, prompts: Dataset) -> None:
    check_samples(recipe.teachers, recipe.calibration.samples)
    size = strategies.calibration_size(recipe, len(prompts))
    if not 2 <= size <= len(prompts):
        raise InputError(
            f"calibration.size is {size}, and there are {len(prompts)} prompts; expected 2 to "
            f"{len(prompts)}. "
            "Lower it, e.g. with --set calibration.size=…"
        )
    if recipe.strategy in REASSIGNED and (recipe.budget or recipe.second_opinion):
        key = "budget" if recipe.budget else "second_opinion"
        raise InputError(
            f"strategy {recipe.strategy} assigns without its router, and {key} goes by the "
            f"router's scores; leave {key} out."
        )
    group = recipe.baselines.group
    if group and group not in prompts.column_names:
        raise InputError(
            f"baselines.group is {group!r}, and the prompts have no such column; they have "
            f"{', '.join(prompts.column_names)}."
        )
    routed = recipe.strategy in strategies.ROUTED
    if routed and not 1 <= round(recipe.router.holdout * size) < size:
        raise InputError(
            f"router.holdout {recipe.router.holdout} of {size} calibration prompts leaves none; "
            "change it."
        )
    signals.check(
        recipe.quality,
        prompts if routed and recipe.second_opinion else calibration(recipe, prompts),
    )
    _check_model("student.model", recipe.student.model, recipe.student.revision)
    thinking = recipe.keep_reasoning == "inline" and any(map(_thinks, recipe.teachers))
    trained_text.check(recipe.student, prompts["messages"], thinking)
    if recipe.target:
        check_apart(recipe.target, prompts)
    if routed:
        _check_model("router.backbone", recipe.router.backbone, recipe.router.revision)


def _thinks(teacher: Teacher) -> bool:
    """Whether a teacher's answers hold their reasoning, as far as its own template says so."""
    if teacher.engine not in ("transformers", "vllm"):
        return False
    if teacher.chat_template_kwargs.get("enable_thinking") is False:
        return False
    try:
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
    except OSError:  # the teacher's own check, which follows, names it
        return False
    return "</think>" in template_of(tokenizer)


def calibration(recipe: Recipe, prompts: Dataset) -> Dataset:
    """The prompts that every teacher answers: none for a strategy that needs no calibration, all
    for the oracle.
    """
    size = strategies.calibration_size(recipe, len(prompts))
    return prompts.shuffle(seed=recipe.calibration.seed).select(range(size)).flatten_indices()


def _check_model(key: str, model: str, revision: str | None) -> None:
    try:
        AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key}: model {model!r} not found: {str(error).splitlines()[0]}"
        ) from error


def plan(recipe: Recipe, prompts: int) -> Planned:
    """Generations: k·c·|M| + (N − c), against N·|M| of generate-then-select (paper §2, where k =
    1).

    Second opinions come on top; those on calibration prompts are there already, so that these are
    at most so many.
    """
    n, m, c = prompts, len(recipe.teachers), strategies.calibration_size(recipe, prompts)
    k = recipe.calibration.samples
    twice = int(recipe.second_opinion * n) if recipe.strategy in strategies.ROUTED else 0
    return {
        "prompts": n,
        "teachers": m,
        "calibration": c,
        "samples": k,
        "asked_twice": twice,
        "generations": k * c * m + n - c + twice,
        "generate_then_select": n * m,
    }


def estimate(recipe: Recipe, prompts: Dataset, account: Sequence[Line] = ()) -> dict[str, Any]:
    """What a build will use at most: if each answer has `max_tokens`, and each byte of a prompt is
    a token; see `engines.bound`.

    No bound: the router may send more prompts to dear teachers than an even spread does. `max_cost`
    is one.

    Args:
        account: of an earlier build: what it measured counts instead of the teachers'
            `tokens_per_second`.

    Returns:
        `answer`: by teacher the `prompt_tokens`, `completion_tokens`, `usd` and `seconds` of one
        answer (None: the teacher's speed is not known); by stage (`Generate`, `Synthesize`) the
        sums of these, where a synthesis spreads its prompts evenly over the teachers, with the
        seconds by `wall`; and the USD of `generate_then_select`, and of the `dearest` teacher for
        all prompts.
        `break_even`: from how many prompts on calibration and routing cost less than that teacher;
            None: never.
    """
    p, teachers = plan(recipe, len(prompts)), strategies.teachers_of(recipe)
    longest = _longest_mean(recipe, prompts)
    answer: dict[str, dict[str, Any]] = {}
    for t in teachers:
        used = {
            "prompt_tokens": longest + _beside(t),
            "completion_tokens": (t.sampling or recipe.sampling).max_tokens,
        }
        usd = t.price.of(*used.values()) if t.price else 0.0
        answer[t.name] = used | {
            "usd": usd,
            "seconds": _seconds(t, used["completion_tokens"], account),
        }
    whole = {
        key: sum(of[key] for of in answer.values())
        for key in ("prompt_tokens", "completion_tokens", "usd")
    }
    mean = {key: value / len(teachers) for key, value in whole.items()}
    c, every = p["calibration"], p["calibration"] * p["samples"]
    rest = p["prompts"] - c + p["asked_twice"]
    seconds = wall(teachers, {name: of["seconds"] for name, of in answer.items()})
    dearest = max(answer, key=lambda name: answer[name]["usd"])
    saved = answer[dearest]["usd"] - mean["usd"]
    return {
        "answer": answer,
        "Generate": {key: every * value for key, value in whole.items()}
        | {"seconds": seconds and every * seconds},
        "Synthesize": {key: rest * value for key, value in mean.items()}
        | {"seconds": seconds and rest * seconds / len(teachers)},
        "generate_then_select": p["prompts"] * whole["usd"],
        "dearest": {"name": dearest, "usd": p["prompts"] * answer[dearest]["usd"]},
        "break_even": (every * whole["usd"] - c * mean["usd"]) / saved if saved > 0 else None,
    }


def _longest_mean(recipe: Recipe, prompts: Dataset) -> float:
    """Tokens of a prompt's messages, at most: the mean over the calibration or over the rest,
    whichever is larger, so that neither is underestimated.
    """
    size = strategies.calibration_size(recipe, len(prompts))
    parts = [prompts, *([calibration(recipe, prompts)] if 0 < size <= len(prompts) else [])]
    sums = [sum(map(tokens_of_messages, part["messages"])) for part in parts]
    means = [total / len(part) for total, part in zip(sums, parts, strict=True)]
    if len(parts) > 1 and size < len(prompts):
        means.append((sums[0] - sums[1]) / (len(prompts) - size))
    return max(means)


def _beside(teacher: Teacher) -> float:
    """Tokens beside the prompt's, at most: of the template, the system prompt, the examples."""
    own = tokens_of_messages(teacher.conversation([{"role": "user", "content": ""}]))
    return float(TEMPLATE_TOKENS + own)


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
    if found := contamination(recipe)[1]:
        words.append(in_words(found))
    return "\n".join(fill(line) if "  " not in line else line for line in words)


def _teachers_table(recipe: Recipe, p: Planned, e: dict[str, Any]) -> Table:
    """What each teacher answers in the calibration, at most."""
    c, rows = p["calibration"] * p["samples"], []
    for t in strategies.teachers_of(recipe):
        of = e["answer"][t.name]
        cost = f"{usd(c * of['usd'])}" if t.price else "not priced"
        tokens = [f"{c * of[key]:,.0f}" for key in ("prompt_tokens", "completion_tokens")]
        rows.append([t.name, t.engine, f"{c:,}", *tokens, cost])
    head = [
        "teacher",
        "engine",
        "calibration responses",
        "prompt tokens",
        "response tokens, at most",
        "cost, at most",
    ]
    return table(head, rows)


def _cost_words(e: dict[str, Any]) -> str:
    calibration, rest = e["Generate"]["usd"], e["Synthesize"]["usd"]
    words = (
        f"If answers are as long as they may be: calibration {usd(calibration)}, the rest "
        f"{usd(rest)} if spread evenly, together {usd(calibration + rest)}; generate-then-select "
        f"{usd(e['generate_then_select'])}; all prompts to {e['dearest']['name']} "
        f"{usd(e['dearest']['usd'])}"
    )
    if e["break_even"] is not None:
        words += f", which costs more from {e['break_even']:,.0f} prompts on"
    return words


def _time_words(e: dict[str, Any]) -> list[str]:
    unknown = [name for name, of in e["answer"].items() if of["seconds"] is None]
    if unknown:
        return [
            f"No time is estimated: state the tokens_per_second of {', '.join(unknown)}, or build "
            "with few prompts first: the account measures it"
        ]
    calibration, rest = (e[stage]["seconds"] / 3600 for stage in ("Generate", "Synthesize"))
    if not calibration and not rest:
        return []
    return [
        f"Time for answers as long as they may be: {calibration:,.1f} hours for the calibration, "
        f"{rest:,.1f} for the rest if spread evenly"
    ]
