"""The builder: the stages in their order, as a `datasets` builder whose config is a recipe.

<output>/dataset/       README.md, recipe.yaml, stats.json, figures/; the tables: data/ (train,
                        failed), calibration/, pairs/, routing/, second_opinions/
<output>/router/        opens with `AutoModelForSequenceClassification.from_pretrained`
A strategy without a router has no router/ and pairs/, and calibration/ only if it needs one.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, DownloadMode, Features, load_dataset
from huggingface_hub.constants import HF_HOME

from persyn_datasets import __version__, plan
from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.strategy import REASSIGNED
from persyn_datasets.config.student import Student
from persyn_datasets.data import schema
from persyn_datasets.data.conversations import conversations
from persyn_datasets.data.sources import load
from persyn_datasets.engines.account import Account
from persyn_datasets.hub import cards, licenses
from persyn_datasets.inputs import build_id, check_folder
from persyn_datasets.report import figures
from persyn_datasets.report import measure as report
from persyn_datasets.report.ablations import analyse, by_backbone
from persyn_datasets.report.luck import luck
from persyn_datasets.router import add_teacher as amend
from persyn_datasets.router.model import Router
from persyn_datasets.router.simple_routes import reassigned
from persyn_datasets.router.training import train_router
from persyn_datasets.runners.local import check, run
from persyn_datasets.signals.trained_text import ChatFormat
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.pairify import Pairify
from persyn_datasets.stages.rank import COLUMNS, Rank
from persyn_datasets.stages.route import Route
from persyn_datasets.stages.score import Score
from persyn_datasets.stages.synthesize import Synthesize
from persyn_datasets.store import files, own
from persyn_datasets.store.journal import replace_file
from persyn_datasets.store.progress import stages
from persyn_datasets.strategies import baselines as strategies
from persyn_datasets.strategies import budget, second_opinion


@dataclass
class PersynConfig(datasets.BuilderConfig):
    """A `BuilderConfig` that is a recipe."""

    recipe: Recipe | None = None


class PersynBuilder(datasets.ArrowBasedBuilder):
    """Builds the dataset and the router of a recipe.

        builder = PersynBuilder("quickstart", output="outputs/quickstart")
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")

    Args:
        recipe: a `Recipe`, or what `Recipe.load` takes.
        output: the folder described above. Default: one in the Hugging Face cache, named by the
            recipe.
        strategy: who answers: one of `strategies.STRATEGIES`. Default: the recipe's, which is
            `persyn` unless it says otherwise. Only `persyn` and its ablations make a router, and
            only what the strategy needs is generated.
        runner: where the stages run: `local`, or `ray` for a cluster; see `ray_runner`. The results
            are the same.

    Raises:
        InputError: the output folder holds something else.
    """

    BUILDER_CONFIG_CLASS = PersynConfig

    def __init__(
        self,
        recipe: Recipe | str,
        output: str | Path | None = None,
        strategy: str | None = None,
        runner: str = "local",
    ):
        check(runner)
        self.runner = runner
        self.recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
        self.recipe = replace(self.recipe, strategy=strategy or self.recipe.strategy)
        self.output = Path(output or Path(HF_HOME) / "persyn" / "builds" / self.recipe.title)
        self.folder = self.output / "dataset"
        check_folder(self.output, self.recipe)
        super().__init__(dataset_name="persyn", config_name=self.recipe.title, recipe=self.recipe)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Build, or go on where an interrupted build stopped, or do nothing if it is done.

        `download_mode="force_redownload"` builds again, from the journal, and asks again what had
        failed.

        Raises:
            InputError: before anything is spent.
            BuildError: the calibration gave nothing to learn from, or `max_failed` or `max_cost`
                is passed.
        """
        prompts = load(self.recipe.prompts)
        mode = DownloadMode(kwargs.get("download_mode") or DownloadMode.REUSE_DATASET_IF_EXISTS)
        own.remember(t.to_dict() for t in self.recipe.teachers)
        known = self.stats if mode == DownloadMode.REUSE_DATASET_IF_EXISTS else None
        whole = known and files.are_whole(known, self.output)
        if known and whole and known["build"] == build_id(self.recipe, prompts):
            self._write_recipe_anew()
            return
        self._prompts = plan.check(self.recipe)
        build = build_id(self.recipe, prompts)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "stats.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "second_opinions", ignore_errors=True)
        replace_file(self.folder / "recipe.yaml", cards.to_yaml(self.recipe.to_dict()).encode())
        _, overlap = plan.contamination(self.recipe)
        self._stats: dict[str, Any] = {
            "build": build,
            "version": __version__,
            "contamination": overlap,
            "second_opinions": None,
        }
        kwargs |= {"file_format": "parquet", "download_mode": DownloadMode.REUSE_CACHE_IF_EXISTS}
        with stages(strategies.stages_of(self.recipe)):
            super().download_and_prepare(str(self.folder / "data"), *args, **kwargs)
        for lock in self.folder.glob("*.lock"):
            lock.unlink()
        if build_id(self.recipe, load(self.recipe.prompts)) != build:
            raise BuildError(
                "Something that the recipe reads (a model, a table, a function) changed while this "
                "was built. All answers are kept: run the same command again."
            )
        self._write_card()
        self._stats |= files.written(self.output)
        # Last: its presence says that the build is whole.
        replace_file(self.folder / "stats.json", json.dumps(self._stats, indent=2).encode())

    def _write_recipe_anew(self) -> None:
        """Of a finished build: what the recipe now says of other things than the build, e.g. how
        students are trained, or where the very same files lie.
        """
        recipe, stats = cards.to_yaml(self.recipe.to_dict()), self.stats
        if not stats or (self.folder / "recipe.yaml").read_text() == recipe:
            return
        stats |= {"student": self.recipe.student.model} | self._sources()
        replace_file(self.folder / "recipe.yaml", recipe.encode())
        replace_file(self.folder / "stats.json", json.dumps(stats, indent=2).encode())
        cards.write(self.output, self.recipe, stats)

    def _sources(self) -> dict[str, Any]:
        recipe = self.recipe
        backbone = recipe.router.backbone if recipe.strategy in strategies.ROUTED else None
        teachers = strategies.teachers_of(recipe)
        target = recipe.target.path if recipe.target else None
        return licenses.sources(recipe.prompts, teachers, recipe.student.model, backbone, target)

    @property
    def stats(self) -> dict[str, Any] | None:
        """The numbers of the finished build in the output folder; None if there is none."""
        path = self.folder / "stats.json"
        return json.loads(path.read_text()) if path.exists() else None

    def as_dataset(self, split: Any = None, **kwargs: Any) -> Any:
        """The finished dataset: `load_dataset` on the output folder."""
        return load_dataset(str(self.folder), split=split, **kwargs)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        recipe, prompts = self.recipe, self._prompts
        account = Account(recipe.max_cost)
        ranked = (
            self._calibrate(account) if strategies.calibration_size(recipe, len(prompts)) else None
        )
        if recipe.strategy in strategies.ROUTED:
            assert ranked
            routed = self._route(ranked)
        else:
            teachers = strategies.assign(recipe, prompts["prompt_id"], ranked)
            routed = prompts.select_columns([c for c in prompts.column_names if c != "teacher"])
            routed = routed.add_column("teacher", pa.array(teachers, pa.string()))
            if ranked:
                _write(self.folder / "calibration", DatasetDict(train=ranked))
            self._stats |= {"router": None, "routing": None, "analysis": None, "tradeoff": None}

        synthesize = Synthesize(recipe.teachers, recipe.max_failed, account)
        answered = run(routed, synthesize, schema.SYNTHESIZED, self.runner, batch_size=None)
        if recipe.second_opinion and recipe.strategy in strategies.ROUTED:
            assert ranked
            answered = self._ask_twice(ranked, routed, answered, synthesize)
        self._stats |= plan.plan(recipe, len(prompts)) | {
            "estimate": plan.estimate(recipe, prompts)
        }
        self._stats |= report.measure(
            ranked, answered, [t.name for t in strategies.teachers_of(recipe)]
        )
        self._stats |= {"account": account.to_list(), "versions": report.versions()}
        self._stats["cost"] = report.cost(account.to_list(), len(prompts))
        self._stats |= {
            "name": recipe.title,
            "strategy": recipe.strategy,
            "student": recipe.student.model,
        }
        self._stats |= self._sources()
        routing = [c for c in ("prompt_id", "teacher", "router_scores") if c in routed.column_names]
        _write(self.folder / "routing", DatasetDict(train=routed.select_columns(routing)))
        answered = answered.remove_columns(
            schema.steering(answered.column_names)
            + [c for c in answered.column_names if c == "router_scores"]
        )
        chats = conversations(answered)
        _write(self.folder / "messages", DatasetDict(train=chats))
        known = strategies.calibration_size(recipe, len(prompts))  # else nobody looked for it
        self._stats["max_length"] = longest(recipe.student, chats) if known else None
        splits = {
            "train": answered.filter(lambda error: error == "", input_columns="error"),
            "failed": answered.filter(lambda error: error != "", input_columns="error"),
        }
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows})
            for name, rows in splits.items()
            if len(rows) or name == "train"
        ]

    def calibrate(self) -> Dataset:
        """The calibration alone; the journal keeps it for a build.

        Raises:
            InputError: before anything is spent.
            BuildError: `max_failed` or `max_cost` is passed.
        """
        self._prompts = plan.check(self.recipe)
        return self._calibrate(Account(self.recipe.max_cost))

    def _calibrate(self, account: Account) -> Dataset:
        """The calibration prompts, answered by all teachers, scored and ranked."""
        recipe = self.recipe
        generate = Generate(recipe.teachers, recipe.max_failed, account, recipe.calibration.samples)
        calibration = plan.calibration(recipe, self._prompts)
        return self._judge(
            run(calibration, generate, schema.GENERATED, self.runner, batch_size=None)
        )

    def _judge(self, generated: Dataset) -> Dataset:
        return self._ranked(generated, Rank(**asdict(self.recipe.effective_reward)))

    def _ranked(self, generated: Dataset, rank: Any) -> Dataset:
        recipe = self.recipe
        of = schema.with_target if recipe.target else dict
        scored = run(
            generated,
            Score(recipe.student, recipe.quality, recipe.target),
            of(schema.SCORED),
            self.runner,
            batch_size=None,
        )
        ranked = run(scored.with_format("arrow"), rank, of(schema.RANKED), batch_size=None)
        return ranked.with_format(None)

    def _ask_twice(
        self, ranked: Dataset, routed: Dataset, answered: Dataset, synthesize: Synthesize
    ) -> Dataset:
        """The answers, with the better one of two where the router is least sure."""
        recipe, router = self.recipe, Router.from_pretrained(str(self.output / "router"))
        room = None
        if recipe.budget:
            paid = set(ranked["prompt_id"])
            room = budget.room_for_more(routed, router, recipe.budget, recipe.teachers, paid)
        share = recipe.second_opinion
        rows, teachers = second_opinion.least_sure(routed, router.names, share, room)
        if not len(rows):
            return answered
        ask = partial(
            run, stage=synthesize, adds=schema.SYNTHESIZED, runner=self.runner, batch_size=None
        )
        reward = recipe.effective_reward
        column = COLUMNS[reward.learnability]
        rank = second_opinion.RankTwo(
            Rank(**asdict(replace(reward, normalize="none"))),
            column,
            reward.normalize,
            *second_opinion.signals_of(ranked, column),
        )
        answered, both, better = second_opinion.keep_better(
            routed, answered, rows, teachers, ask, partial(self._ranked, rank=rank)
        )
        _write(self.folder / "second_opinions", DatasetDict(train=both))
        self._stats["second_opinions"] = {"asked": len(rows), "better": better}
        return answered

    def _route(self, ranked: Dataset) -> Dataset:
        """All prompts with the teacher that a router picks, which learns from the ranked ones."""
        recipe = self.recipe
        calibration = hold_out(ranked, recipe.router.holdout, recipe.router.seed)
        pairs = (
            calibration["train"]
            .with_format("arrow")
            .map(
                Pairify(),
                batched=True,
                batch_size=100,
                remove_columns=ranked.column_names,
                features=Features(schema.PAIRS),
                load_from_cache_file=False,
            )
            .with_format(None)
        )
        if len(pairs) == 0:
            raise BuildError(
                f"No prompt has two responses of different reward: {report.errors(ranked)}."
            )
        if not any(
            r["reward"] is not None for row in calibration["test"]["responses"] for r in row
        ):
            raise BuildError(
                f"No held-out prompt has a response: {report.errors(calibration['test'])}."
            )
        _write(self.folder / "calibration", calibration)
        _write(self.folder / "pairs", DatasetDict(train=pairs))

        options = {
            k: v
            for k, v in asdict(recipe.router).items()
            if k not in ("holdout", "compare_backbones")
        }
        train = partial(train_router, pairs, teachers=recipe.teachers)
        router = train(output_dir=str(self.output / "router"), **options)
        router, temperature = amend.calibrate(router, calibration["test"], router.path)
        available = None
        if recipe.strategy == "no-long-answers":
            available = strategies.without_long_answers(calibration["train"], router.names)
        group = recipe.baselines.group
        metrics = router.evaluate(calibration["test"], calibration["train"], available, group)
        if recipe.router.freeze_backbone:  # heads are refitted in no time: all prompts may judge
            held_out, metrics = metrics, router.cross_fitted(ranked, available, group)
            metrics |= {"held_out": held_out}
            metrics |= {"ceiling": held_out["ceiling"]} if "ceiling" in held_out else {}
        router = router.record(
            student=asdict(recipe.student),
            reward=asdict(recipe.effective_reward),
            quality=recipe.quality,
            metrics=metrics,
            expected=budget.expectations(router, calibration["test"], ranked),
            # Of prompts that it was not trained on: of those it is too sure.
            typical=router.profile(calibration["test"]["messages"]),
        )
        route = Route(router, available)
        routed = run(
            self._prompts,
            route,
            schema.ROUTED,
            self.runner,
            batch_size=1000,
            load_from_cache_file=True,
        )
        self._stats |= {
            "router": metrics,
            "routing": report.measure_routing(calibration["test"], routed, router.names),
        }
        self._stats["routing"]["temperature"] = temperature
        self._stats["analysis"] = analyse(router, calibration, routed, recipe.effective_reward)
        self._stats["luck"] = luck(ranked, router.names, recipe.effective_reward)
        others = [
            train(**options | {"backbone": b, "revision": None})
            for b in recipe.router.compare_backbones
        ]
        sizes = by_backbone([router, *others], calibration, available) if others else []
        self._stats["analysis"]["by_backbone"] = sizes
        paid = set(ranked["prompt_id"])
        unit = (
            recipe.budget.unit
            if recipe.budget
            else "usd"
            if any(t.price for t in recipe.teachers)
            else "tokens"
        )
        self._stats["tradeoff"] = budget.tradeoff(
            router, routed, calibration["test"], recipe.teachers, unit, paid
        )
        if recipe.budget:
            routed, spend = budget.within_budget(
                routed, router, recipe.budget, recipe.teachers, paid
            )
            self._stats["tradeoff"]["budget"] = spend
        if recipe.strategy in REASSIGNED:
            seed = recipe.baselines.seed
            routed = reassigned(recipe.strategy, routed, router, ranked, group, seed)
        return routed

    def _generate_tables(self, rows: Dataset) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(rows.with_format("arrow").iter(batch_size=1000))

    def _write_card(self) -> None:
        figures.draw(self.recipe, self._stats, self.folder / "figures")
        cards.write(self.output, self.recipe, self._stats)


def longest(student: Student, chats: Dataset) -> int | None:
    """Tokens of the longest conversation as the student is trained on it; None: there is no row,
    or its template refuses one, which the student's user finds out.
    """
    rows = [(messages[:-1], messages[-1]["content"]) for messages in chats["messages"]]
    try:
        return max((len(row.ids) for row in ChatFormat(student).render(rows)), default=None)
    except InputError:
        return None


def hold_out(ranked: Dataset, share: float, seed: int) -> DatasetDict:
    """`train` and `test`, by a hash of the prompt: the same prompt is always on one side."""
    order = {
        key: hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in ranked.unique("prompt_id")
    }
    test = set(sorted(order, key=order.__getitem__)[: round(share * len(order))])
    sides: dict[bool, list[int]] = {True: [], False: []}
    for row, key in enumerate(ranked["prompt_id"]):
        sides[key in test].append(row)
    return DatasetDict(train=ranked.select(sides[False]), test=ranked.select(sides[True]))


def _write(folder: Path, splits: DatasetDict) -> None:
    for name, rows in splits.items():
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
