"""A recipe: everything that makes one personalised dataset, as a YAML file."""

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from persyn_datasets.config.credentials import check_server
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.evaluation import Evaluation
from persyn_datasets.config.overrides import apply_overrides
from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.reasoning import KeepReasoning
from persyn_datasets.config.reward import Reward
from persyn_datasets.config.strategy import ALPHA, STRATEGIES, Baselines, Budget
from persyn_datasets.config.student import Student, Training
from persyn_datasets.config.target import Target
from persyn_datasets.config.teacher import (
    Sampling,
    Teacher,
    check_names,
    check_prices,
)

T = TypeVar("T")
_FORBID = {"extra": "forbid"}
_SAMPLING_OF_0_1_0 = {"temperature", "top_p", "max_tokens", "seed", "stop"}
NO_FOLDER_NAME = (
    '<>:/\\|?*"'  # the characters that `datasets` refuses in a config's name, and quotes
)


@dataclass(frozen=True)
class Calibration:
    """How many prompts all teachers answer (the paper's c = 2,500), drawn by `seed`, and how often
    each does.

    With 2 `samples` and more a build also says how much of the oracle's lead is luck (see
    `ceiling`).
    """

    __pydantic_config__ = _FORBID
    size: int = 2500
    seed: int = 0
    samples: int = 1


@dataclass(frozen=True)
class RouterTraining:
    """See `train_router`. `holdout` is the share of the calibration prompts that only measure the
    router.
    """

    __pydantic_config__ = _FORBID
    backbone: str = "Qwen/Qwen2.5-1.5B"
    revision: str | None = None
    freeze_backbone: bool = False
    epochs: float = 2
    learning_rate: float = 1e-5
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_length: int = 1024
    seed: int = 0
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout is {self.holdout}; expected a share in (0, 1), e.g. 0.1.")


def _check_keys(values: Any, path: Path) -> None:
    """Raises `InputError`: what a file holds is empty, or a list, a text, a number."""
    if isinstance(values, dict):
        return
    if values is None:
        bare = (f for f in fields(Recipe) if f.default is f.default_factory is MISSING)
        needed = ", ".join(f.name for f in bare)
        raise InputError(
            f"{path}: the file is empty; expected the keys of a recipe, at least {needed}. "
            "builders/ has recipes to start from."
        )
    found = "a list" if isinstance(values, list) else str(values)
    found = f"the text {values[:60]!r}" if isinstance(values, str) else found
    raise InputError(f"{path}: found {found}; expected the keys of a recipe.")


@dataclass(frozen=True)
class Recipe:
    """One published dataset. `sampling` holds for every teacher; a teacher's own keys override it.

    A build stops when more than the share `max_failed` of a stage's responses failed, and before it
    has spent more than `max_cost` USD. `strategy` says who answers: see `strategies.STRATEGIES`;
    `quality-only` and `learnability-only` set `reward.alpha`. Under a `budget`, in USD or as in
    `Budget`, a router's prompts go to the teachers that it allows. `second_opinion` is the share of
    the prompts, those of which the router is least sure, that two teachers answer: see
    `second_opinion`. `keep_reasoning` says where a teacher's thoughts go: see `Synthesize`; the
    student's signals are of what it is then trained on.
    """

    __pydantic_config__ = _FORBID
    name: str
    student: Student
    prompts: Prompts
    teachers: tuple[Teacher, ...]
    sampling: Sampling = field(default_factory=Sampling)
    calibration: Calibration = field(default_factory=Calibration)
    quality: str | dict[str, Any] = "math-verify"
    keep_reasoning: KeepReasoning = "inline"
    reward: Reward = field(default_factory=Reward)
    target: Target | None = None
    router: RouterTraining = field(default_factory=RouterTraining)
    strategy: str = "persyn"
    baselines: Baselines = field(default_factory=Baselines)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    max_failed: float = 0.05
    max_cost: float | None = None
    budget: Budget | None = None
    second_opinion: float = 0.0

    def __post_init__(self) -> None:
        if self.name.strip() in ("", ".", "..") or any(
            c in NO_FOLDER_NAME or not c.isprintable() for c in self.name
        ):
            raise InputError(
                f"name is {self.name!r}; expected a name that a folder can have, without any of "
                f"{' '.join(NO_FOLDER_NAME)}, e.g. my-math. An organisation belongs to "
                "--push-to-hub ORG/NAME."
            )
        if self.strategy not in STRATEGIES:
            raise InputError(
                f"strategy is {self.strategy!r}; expected one of {', '.join(STRATEGIES)}."
            )
        if not 0 <= self.max_failed <= 1:
            raise InputError(f"max_failed is {self.max_failed}; expected a share from 0 to 1.")
        if not 0 <= self.second_opinion <= 1:
            raise InputError(
                f"second_opinion is {self.second_opinion}; expected a share from 0 to 1."
            )
        if self.reward.learnability == "target" and not self.target:
            raise InputError(
                "reward.learnability is 'target', and there is no target; add reference answers of "
                "the kind the student should become good at: target: {path: …, response_column: …}."
            )
        check_prices(self.teachers, self.max_cost)
        _check_quality(self.quality)
        if self.budget:
            self.budget.check(self.teachers)
        if len(self.teachers) < 2:
            raise InputError(f"teachers: found {len(self.teachers)}; a choice needs at least two.")
        check_names(self.teachers)
        teachers = tuple(
            replace(t, sampling=(t.sampling or self.sampling.with_own()).under(self.sampling))
            for t in self.teachers
        )
        object.__setattr__(self, "teachers", teachers)

    @property
    def effective_reward(self) -> Reward:
        """The reward that the strategy goes by: `reward`, where the strategy does not set α."""
        return replace(self.reward, alpha=ALPHA.get(self.strategy, self.reward.alpha))

    @property
    def title(self) -> str:
        """The name of its dataset: that of the recipe, with the strategy if it is not PerSyn's."""
        return self.name if self.strategy == "persyn" else f"{self.name}-{self.strategy}"

    @classmethod
    def load(cls, recipe: str, overrides: Iterable[str] = ()) -> "Recipe":
        """Read a recipe file, one of `builders/` by its name, or that of a dataset on the Hub, with
        overrides.

        Overrides are `key=value`; keys may be paths (`teachers.0.sampling.temperature=0`), values
        are YAML. A recipe from the Hub is data: what would run code, name a server, or read a file
        or variable of this machine counts only as an override.

        Raises:
            InputError: with the key, what was found, what was expected and how to fix it.
        """
        path, foreign = find(recipe)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a YAML text: {error}") from error
        _check_keys(values, path)
        _share_sampling(values)
        apply_overrides(values, overrides, f"The recipe of {recipe} on the Hub" if foreign else "")
        return cls.from_dict(values, where=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "recipe") -> "Recipe":
        if "budget" in values:
            values = values | {"budget": _usd(values["budget"])}
        values, own = _merge_sampling(_without_backbones(values, where))
        recipe = _validated(cls, values, f"{where}: ")
        return replace(recipe, teachers=_remember(recipe, own))

    @classmethod
    def written(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe of a `recipe.yaml` that a build wrote, of version 0.1.0 too."""
        _share_sampling(values)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `Recipe.from_dict` takes them back.

        Of a teacher's sampling it states what is its own: the rest is in `sampling`.
        """
        teachers = [
            t.to_dict() | {"sampling": t.sampling.beside(self.sampling)}
            for t in self.teachers
            if t.sampling
        ]
        return asdict(self) | {"teachers": teachers}


def _check_quality(quality: str | dict[str, Any]) -> None:
    """Raises `InputError` if a server that scores answers is stated with its key."""
    if not isinstance(quality, dict):
        return
    check_server("quality.", quality)
    if isinstance(judge := quality.get("judge"), dict):
        check_server("quality.judge.", judge)


def _without_backbones(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Without a key of version 0.1.0 that its recipes write empty."""
    router = values.get("router")
    if not isinstance(router, dict) or "compare_backbones" not in router:
        return values
    if router["compare_backbones"]:
        raise InputError(
            f"{where}: router.compare_backbones was removed; leave it out, and build once with "
            "each router.backbone to compare their reports."
        )
    return values | {"router": {k: v for k, v in router.items() if k != "compare_backbones"}}


def _merge_sampling(values: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The values with the shared sampling in each teacher's, and what was each teacher's own."""
    shared, teachers = values.get("sampling") or {}, values.get("teachers")
    if not isinstance(shared, dict) or not isinstance(teachers, list):
        return values, []
    if not all(isinstance(t, dict) for t in teachers):
        return values, []
    own = [t.get("sampling") or {} for t in teachers]
    merged = [
        t | {"sampling": shared | o if isinstance(o, dict) else o}
        for t, o in zip(teachers, own, strict=True)
    ]
    return values | {"teachers": merged}, own


def _remember(recipe: Recipe, own: list[dict[str, Any]]) -> tuple[Teacher, ...]:
    """The teachers with the keys of their sampling that are their `own`."""
    return tuple(
        replace(t, sampling=recipe.sampling.with_own(**{k: getattr(t.sampling, k) for k in keys}))
        for t, keys in zip(recipe.teachers, own, strict=True)
    )


def _share_sampling(values: dict[str, Any]) -> None:
    """Take out of the teachers' sampling what version 0.1.0 wrote there, shared or not.

    It wrote every teacher's whole sampling: what equals the recipe's was not the teacher's own.
    """
    shared, teachers = values.get("sampling"), values.get("teachers")
    if not isinstance(shared, dict) or not isinstance(teachers, list):
        return
    for teacher in teachers:
        own = teacher.get("sampling") if isinstance(teacher, dict) else None
        if isinstance(own, dict) and set(own) == set(shared) == _SAMPLING_OF_0_1_0:
            teacher["sampling"] = {k: v for k, v in own.items() if v != shared[k]}


def find(recipe: str) -> tuple[Path, bool]:
    """The path of a recipe given as a file, as the name of one that comes with the package, or as a
    Hub dataset.

    True if it came from the Hub.
    """
    if Path(recipe).suffix in (".yaml", ".yml"):
        if Path(recipe).is_file():
            return Path(recipe), False
        raise InputError(f"{recipe}: no such file.")
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "builders", package.parent / "builders") if f.is_dir())
    names = sorted(f.stem for f in folder.glob("*.yaml"))
    if recipe in names:
        return folder / f"{recipe}.yaml", False
    if recipe.count("/") == 1 and not Path(recipe).exists():
        from huggingface_hub import hf_hub_download  # not needed for a recipe that is a file
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(hf_hub_download(recipe, "recipe.yaml", repo_type="dataset")), True
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise InputError(
                f"No recipe.yaml in the dataset {recipe!r} on the Hub: {error}"
            ) from error
    raise InputError(
        f"No recipe {recipe!r}: give a .yaml file, a Hub dataset, or one of {', '.join(names)}."
    )


def teachers_from(values: dict[str, Any], where: str) -> list[Teacher]:
    """The teachers of `values["teachers"]`, place → specification."""
    teachers = _validated(dict[str, Teacher], values["teachers"], f"{where}: ", "teachers")
    return list(teachers.values())


def judge_from(values: dict[str, Any]) -> Teacher:
    """The judge of `quality.judge`, which is stated as a teacher is."""
    return _validated(Teacher, values, "", "quality", "judge")


def budget_from(value: Any) -> Budget:
    """The value of `budget`: a number of USD, or the keys of `Budget`.

    Raises:
        InputError: it is neither.
    """
    return _validated(Budget, _usd(value), "", "budget")


def _validated(kind: type[T], value: Any, where: str, *key: str) -> T:
    """The value as this type; `key` is where it stands in a recipe."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        located = [{**e, "loc": (*key, *e["loc"])} for e in error.errors()]
        raise InputError("\n".join(f"{where}{_explain(e)}" for e in located)) from error


def _usd(budget: Any) -> Any:
    return {"usd": budget} if isinstance(budget, int | float) else budget


def _explain(error: Any) -> str:
    """One sentence for a person: the key, what was found, what was expected, how to fix it."""
    *above, key = error["loc"] or ("recipe",)
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        sections = _sections(Recipe) | {"judge": Teacher}
        section = next((sections[p] for p in reversed(above) if p in sections), Recipe)
        known = [f.name for f in fields(section)]
        nearest = get_close_matches(str(key), known, n=1, cutoff=0)[0]
        return f"unknown key {place!r}; did you mean {nearest!r}? Valid here: {', '.join(known)}."
    if error["type"] == "missing":
        return f"the key {place!r} is missing; add it."
    if error["type"] == "value_error":
        return (
            f"{place}: {error['ctx']['error']}"
            if above or key != "recipe"
            else str(error["ctx"]["error"])
        )
    return f"{place}: found {error['input']!r}; {error['msg']}."


def _sections(part: Any, name: str = "") -> dict[str, Any]:
    """The keys of a recipe that have keys of their own, at any depth, and what they hold."""
    if not is_dataclass(part):
        return {k: v for inner in get_args(part) for k, v in _sections(inner, name).items()}
    found = {name: part}
    for key, hint in get_type_hints(part).items():
        found |= _sections(hint, key)
    return found
