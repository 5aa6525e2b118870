"""The builder: the stages in their order, as a `datasets` builder whose config is a recipe.

<output>/dataset/       README.md, recipe.yaml, stats.json, figures/; the tables: data/ (train,
                        failed), calibration/, pairs/, preferences/, routing/, messages/,
                        second_opinions/
<output>/router/        opens with `AutoModelForSequenceClassification.from_pretrained`
A strategy without a router has no router/ and pairs/, and calibration/ only if it needs one.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DownloadMode, load_dataset
from huggingface_hub.constants import HF_HOME

from persyn_datasets import __version__, routing
from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.config.reasoning import as_trained
from persyn_datasets.config.recipe import Recipe
from persyn_datasets.config.student import Student
from persyn_datasets.data import schema
from persyn_datasets.data.build import STATS, Build, Learned, SecondOpinions, Sources, read
from persyn_datasets.data.conversations import conversations
from persyn_datasets.data.preferences import preferences
from persyn_datasets.data.sources import prompts_of
from persyn_datasets.data.tables import write_tables
from persyn_datasets.data.tools import offered, to_calls
from persyn_datasets.engines.account import Account
from persyn_datasets.hub import cards, licenses
from persyn_datasets.inputs import build_id, check_folder
from persyn_datasets.plan import checks, cost, first_row
from persyn_datasets.report import figures, measure
from persyn_datasets.report.question import order_left, without_question
from persyn_datasets.router.model import Router
from persyn_datasets.runners import check
from persyn_datasets.runners.local import run
from persyn_datasets.signals import facts_of
from persyn_datasets.signals.trained_text import ChatFormat, Row
from persyn_datasets.stages.generate import Generate
from persyn_datasets.stages.rank import COLUMNS, Rank
from persyn_datasets.stages.score import Score
from persyn_datasets.stages.synthesize import Synthesize
from persyn_datasets.store import files, meter, own
from persyn_datasets.store.journal import replace_file
from persyn_datasets.store.progress import stages, unseen
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

        Prompts that failed are asked again, and only they. `download_mode="force_redownload"`
        builds again, from the journal.

        Raises:
            InputError: before anything is spent.
            BuildError: the calibration gave nothing to learn from, or `max_failed` or `max_cost`
                is passed.
        """
        prompts = prompts_of(self.recipe)
        mode = DownloadMode(kwargs.get("download_mode") or DownloadMode.REUSE_DATASET_IF_EXISTS)
        own.remember(t.to_dict() for t in self.recipe.teachers)
        known = self.stats if mode == DownloadMode.REUSE_DATASET_IF_EXISTS else None
        whole = known and files.are_whole(known, self.output)
        done = known and whole and not known["failed"]
        if known and done and known["build"] == build_id(self.recipe, prompts):
            self._rewrite_recipe()
            return
        self._prompts = checks.check(self.recipe)
        build = build_id(self.recipe, prompts)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STATS).unlink(missing_ok=True)
        for optional in ("second_opinions", "preferences"):
            shutil.rmtree(self.folder / optional, ignore_errors=True)
        replace_file(self.folder / "recipe.yaml", cards.to_yaml(self.recipe.to_dict()).encode())
        kwargs |= {"file_format": "parquet", "download_mode": DownloadMode.REUSE_CACHE_IF_EXISTS}
        with stages(strategies.stages_of(self.recipe)), meter.build() as self._works:
            super().download_and_prepare(str(self.folder / "data"), *args, **kwargs)
        for lock in self.folder.glob("*.lock"):
            lock.unlink()
        if build_id(self.recipe, prompts_of(self.recipe)) != build:
            raise BuildError(
                "Something that the recipe reads (a model, a table, a function) changed while this "
                "was built. All answers are kept: run the same command again."
            )
        self._record["build"] = build
        figures.draw(self.recipe, self._record, self.folder / "figures")
        cards.write(self.output, self.recipe, self._record)
        # Written last: its presence marks the build as complete.
        self._write_record({**self._record, **files.written(self.output)})

    def _write_record(self, record: Build) -> None:
        replace_file(self.folder / STATS, json.dumps(record, indent=2).encode())

    def _rewrite_recipe(self) -> None:
        """Of a finished build: what the recipe now says of other things than the build, e.g. how
        students are trained, or where the very same files lie.
        """
        recipe, record = cards.to_yaml(self.recipe.to_dict()), self.stats
        if not record or (self.folder / "recipe.yaml").read_text() == recipe:
            return
        record = {**record, "student": self.recipe.student.model, **self._sources()}
        replace_file(self.folder / "recipe.yaml", recipe.encode())
        self._write_record(record)
        cards.write(self.output, self.recipe, record)

    def _sources(self) -> Sources:
        recipe = self.recipe
        backbone = recipe.router.backbone if recipe.strategy in strategies.ROUTED else None
        teachers = strategies.teachers_of(recipe)
        target = recipe.target.path if recipe.target else None
        return licenses.sources(recipe.prompts, teachers, recipe.student.model, backbone, target)

    @property
    def stats(self) -> Build | None:
        """The record of the finished build in the output folder; None if there is none."""
        return read(self.folder)

    def as_dataset(self, split: Any = None, **kwargs: Any) -> Any:
        """The finished dataset: `load_dataset` on the output folder."""
        return load_dataset(str(self.folder), split=split, **kwargs)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        """All stages, in their order."""
        account = Account(self.recipe.max_cost)
        ranked = self._calibrate(account) if self._calibration_size else None
        order = self._order_left(ranked) if ranked else None
        routed, learned = self._route(ranked)
        if "luck" in learned:
            learned["luck"]["without_question"] = order
        synthesize = Synthesize(
            self.recipe.teachers,
            self.recipe.max_failed,
            account,
            keep_reasoning=self.recipe.keep_reasoning,
        )
        answered = self._run(routed, synthesize, schema.synthesized(routed.column_names))
        second = None
        if self.recipe.second_opinion and learned["router"]:
            assert ranked
            answered, second = self._ask_twice(ranked, routed, answered, synthesize)
        routing = [c for c in ("prompt_id", "teacher", "router_scores") if c in routed.column_names]
        write_tables(self.folder / "routing", train=routed.select_columns(routing))
        gone = {*schema.steering(answered.column_names), "router_scores"}
        answered = answered.remove_columns([c for c in answered.column_names if c in gone])
        chats = conversations(answered)
        write_tables(self.folder / "messages", train=chats)
        if ranked and len(pairs := preferences(ranked, self.recipe.keep_reasoning)):
            write_tables(self.folder / "preferences", train=pairs)
        self._record = self._recorded(ranked, answered, chats, learned, account, second)
        splits = {
            "train": answered.filter(lambda error: error == "", input_columns="error"),
            "failed": answered.filter(lambda error: error != "", input_columns="error"),
        }
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows})
            for name, rows in splits.items()
            if len(rows) or name == "train"
        ]

    def _recorded(
        self,
        ranked: Dataset | None,
        answered: Dataset,
        chats: Dataset,
        learned: Learned,
        account: Account,
        second: SecondOpinions | None,
    ) -> Build:
        """What is known of the build, but for its id and its files."""
        recipe, prompts = self.recipe, self._prompts
        names = [t.name for t in strategies.teachers_of(recipe)]
        record: Build = {
            "build": "",
            "version": __version__,
            "name": recipe.title,
            "strategy": recipe.strategy,
            "student": recipe.student.model,
            "contamination": checks.contamination(recipe)[1],
            "second_opinions": second,
            "estimate": cost.estimate(recipe, prompts),
            "account": account.to_list(),
            "versions": measure.versions(),
            "cost": measure.cost(account.to_list(), len(prompts)),
            "compute": dict(self._works),
            # Without a calibration nothing has checked the student.
            "max_length": longest(recipe.student, chats) if self._calibration_size else None,
            **learned,
            **measure.measure(ranked, answered, names),
            "preferences": (self.folder / "preferences").exists(),
            **cost.plan(recipe, len(prompts)),
            **self._sources(),
        }
        if judged := account.notes.get("judge"):
            record["judge"] = judged
        return record

    @property
    def _calibration_size(self) -> int:
        return strategies.calibration_size(self.recipe, len(self._prompts))

    def calibrate(self) -> Dataset:
        """The calibration alone; the journal keeps it for a build.

        Raises:
            InputError: before anything is spent.
            BuildError: `max_failed` or `max_cost` is passed.
        """
        self._prompts = checks.check(self.recipe)
        return self._calibrate(Account(self.recipe.max_cost))

    def _calibrate(self, account: Account) -> Dataset:
        """The calibration prompts, answered by all teachers, scored and ranked."""
        recipe, prompts = self.recipe, checks.calibration(self.recipe, self._prompts)
        first_row.check(recipe, prompts, self.runner)
        samples = recipe.calibration.samples
        generate = Generate(recipe.teachers, recipe.max_failed, account, samples=samples)
        generated = self._run(prompts, generate, schema.GENERATED)
        return self._judge(generated, Rank(**asdict(recipe.effective_reward)), account)

    def _judge(self, generated: Dataset, rank: Any, account: Account) -> Dataset:
        recipe = self.recipe
        of = schema.with_target if recipe.target else dict
        reads = as_trained(recipe.keep_reasoning)
        score = Score(recipe.student, recipe.quality, recipe.target, reads, account)
        if facts_of(recipe.quality).asks:  # by the one process that keeps the account
            alone = replace(score, student=None, target=None)
            generated = run(generated, alone, schema.SCORED, batch_size=None)
            score = replace(score, quality=None)
        scored = self._run(generated, score, of(schema.SCORED)).with_format("arrow")
        return run(scored, rank, of(schema.RANKED), batch_size=None).with_format(None)

    def _order_left(self, ranked: Dataset) -> float | None:
        """Of learnability, when the student does not see the question; see `report.question`."""
        score = Score(self.recipe.student, None, reads=as_trained(self.recipe.keep_reasoning))
        with unseen():  # a few more of the rows that were scored in plain sight
            again = self._run(without_question(ranked), score, schema.SCORED)
        return order_left(ranked, again)

    def _run(self, rows: Dataset, stage: Any, adds: dict[str, Any]) -> Dataset:
        return run(rows, stage, adds, self.runner, batch_size=None)

    def _route(self, ranked: Dataset | None) -> tuple[Dataset, Learned]:
        """The prompts with their teacher, and what is known of the router that picked it."""
        recipe, prompts = self.recipe, self._prompts
        if recipe.strategy in strategies.ROUTED:
            assert ranked
            return routing.route(recipe, prompts, ranked, self.output, self.runner)
        if ranked:
            write_tables(self.folder / "calibration", train=ranked)
        teachers = strategies.assign(recipe, prompts["prompt_id"], ranked)
        routed = prompts.select_columns([c for c in prompts.column_names if c != "teacher"])
        routed = routed.add_column("teacher", pa.array(teachers, pa.string()))
        return routed, Learned(router=None, routing=None, analysis=None, tradeoff=None)

    def _ask_twice(
        self, ranked: Dataset, routed: Dataset, answered: Dataset, synthesize: Synthesize
    ) -> tuple[Dataset, SecondOpinions | None]:
        """The answers, with the better one of two where the router is least sure."""
        recipe, router = self.recipe, Router.from_pretrained(str(self.output / "router"))
        room = None
        if recipe.budget:
            paid = set(ranked["prompt_id"])
            room = budget.room_for_more(routed, router, recipe.budget, recipe.teachers, paid)
        share = recipe.second_opinion
        rows, teachers = second_opinion.least_sure(routed, router.names, share, room)
        if not len(rows):
            return answered, None
        ask = partial(self._run, stage=synthesize, adds=schema.synthesized(routed.column_names))
        reward = recipe.effective_reward
        column = COLUMNS[reward.learnability]
        rank = second_opinion.RankTwo(
            Rank(**asdict(replace(reward, normalize="none"))),
            column,
            reward.normalize,
            *second_opinion.signals_of(ranked, column),
        )
        judge = partial(self._judge, rank=rank, account=synthesize.account)
        answered, both, better = second_opinion.keep_better(
            routed, answered, rows, teachers, ask, judge
        )
        write_tables(self.folder / "second_opinions", train=both)
        return answered, {"asked": len(rows), "better": better}

    def _generate_tables(self, rows: Dataset) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(rows.with_format("arrow").iter(batch_size=1000))


def longest(student: Student, chats: Dataset) -> int | None:
    """Tokens of the longest conversation as the student is trained on it; None: there is no row,
    or its template refuses one, which the student's user finds out.
    """
    rows = [
        Row(messages[:-1], messages[-1]["content"], tools, to_calls(messages[-1].get("tool_calls")))
        for messages, tools in zip(chats["messages"], offered(chats), strict=True)
    ]
    try:
        return max((len(row.ids) for row in ChatFormat(student).render(rows)), default=None)
    except InputError:
        return None
