"""Every check of a recipe that costs nothing."""

from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import Dataset

from persyn_datasets import signals
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import REASSIGNED
from persyn_datasets.config.teacher import Teacher, check_prices
from persyn_datasets.data.contamination import clean
from persyn_datasets.data.sources import check_apart, prompts_of
from persyn_datasets.data.tools import offered
from persyn_datasets.engines import check_keys, check_tools, engine_of
from persyn_datasets.signals import trained_calls, trained_text
from persyn_datasets.stages.generate import check_samples
from persyn_datasets.store.models import load_tokenizer, template_of
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
    if any(offered(prompts)):
        for teacher in teachers:
            check_tools(teacher)
    if strategies.calibration_size(recipe, len(prompts)):
        _check_calibration(recipe, prompts)
    for teacher in teachers:
        engine_of(teacher).check(teacher)
    return prompts


def contamination(recipe: Recipe) -> tuple[Dataset, dict[str, Any] | None]:
    """The recipe's prompts, without those that are to be dropped, and what `clean` tells of them if
    it is asked for.
    """
    prompts, how = prompts_of(recipe), recipe.prompts.decontaminate
    return clean(prompts, how) if how else (prompts, None)


def calibration(recipe: Recipe, prompts: Dataset) -> Dataset:
    """The prompts that every teacher answers: none for a strategy that needs no calibration, all
    for the oracle.
    """
    size = strategies.calibration_size(recipe, len(prompts))
    return prompts.shuffle(seed=recipe.calibration.seed).select(range(size)).flatten_indices()


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
    if judge := signals.asks(recipe.quality):
        check_prices([judge], recipe.max_cost)
    student = recipe.student
    _check_model("student.model", student.model, student.revision, student.trust_remote_code)
    thinking = recipe.keep_reasoning == "inline" and any(map(_thinks, recipe.teachers))
    trained_text.check(recipe.student, prompts["messages"], thinking)
    if any(offered(prompts)):
        signals.check_tools(recipe.quality)
        trained_calls.check(recipe.student, prompts, strategies.teachers_of(recipe))
    if recipe.target:
        check_apart(recipe.target, prompts)
    if routed:
        backbone = recipe.router.backbone
        config = _check_model("router.backbone", backbone, recipe.router.revision)
        _check_classifier(backbone, config)


def _thinks(teacher: Teacher) -> bool:
    """Whether a teacher's answers hold their reasoning, as far as that can be known before it is
    asked: by answers that are there, or by its own template.
    """
    if look := getattr(engine_of(teacher), "thinks", None):
        return bool(look(teacher))
    if teacher.engine not in ("transformers", "vllm"):
        return False
    if teacher.chat_template_kwargs.get("enable_thinking") is False:
        return False
    try:
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
    except OSError:  # the teacher's own check, which follows, names it
        return False
    return "</think>" in template_of(tokenizer)


def _check_model(
    key: str, model: str, revision: str | None, trust_remote_code: bool = False
) -> Any:
    """The model's config. Its weights are tried when a build begins: see `first_row`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key}: model {model!r} not found: {str(error).splitlines()[0]}"
        ) from error
    if Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        raise InputError(
            f"{key}: the folder {model!r} has no weights: expected *.safetensors. Fetch them, or "
            "save the model with save_pretrained, which writes them so."
        )
    return config


def _check_classifier(backbone: str, config: Any) -> None:
    """Whether its architecture has a sequence classifier: by the names in its package of
    transformers, which imports no model, and no torch, to list them.
    """
    package = import_module(type(config).__module__.rpartition(".")[0])
    if not any(name.endswith("ForSequenceClassification") for name in dir(package)):
        raise InputError(
            f"router.backbone: {backbone!r} is a {config.model_type}, of which transformers has no "
            "sequence classifier. Take another backbone."
        )
