"""Publish the students of a comparison: for each strategy that of the first seed, as the model
ORG/NAME-STRATEGY.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from persyn_datasets.compare import report as comparison
from persyn_datasets.config.errors import InputError
from persyn_datasets.config.strategy import STRATEGIES
from persyn_datasets.data.build import Build, read
from persyn_datasets.hub import cards, licenses
from persyn_datasets.hub.repos import Repo, plainly, same
from persyn_datasets.report.text import templates


def publish_students(
    results: dict[str, Any], output: Path, repo_id: str, private: bool = False
) -> list[str]:
    """One commit for each; the same content makes none. Returns the models' ids.

    Raises:
        InputError: a repository holds something that persyn did not put there.
        BuildError: the Hub failed; the same call goes on.
    """
    published = [name for name, s in results["strategies"].items() if "students" in s]
    api = HfApi()
    for name in published:
        of = results["strategies"][name]["students"][0]
        files = {file.name: file for file in (output / of["folder"] / "model").iterdir()}
        stats = read(output / "datasets" / name / "dataset")
        assert stats  # its students were trained on it
        with plainly(student := f"{repo_id}-{name}"):
            api.create_repo(student, private=private, exist_ok=True)
            repo = Repo.look(api, student, "model")
            if set(repo.files) - {".gitattributes"} and cards.BEGIN not in repo.card:
                raise InputError(
                    f"{student} has files that persyn did not put there; give another name."
                )
            on_hub = (
                {"base_model": results["student"]} if licenses.is_hub_id(results["student"]) else {}
            )
            metadata = {"library_name": "transformers", "pipeline_tag": "text-generation", **on_hub}
            metadata |= {"tags": ["persyn", "sft", "trl", f"strategy:{name}"]}
            card = cards.merge(repo.card, metadata, _text(results, name, student, stats))
            changed = [
                p
                for path, p in files.items()
                if path not in repo.files or not same(repo.files[path], p)
            ]
            operations = [CommitOperationAdd(p.name, str(p)) for p in changed]
            operations += (
                [CommitOperationAdd("README.md", card.encode())] if card != repo.card else []
            )
            if operations:
                api.create_commit(
                    student,
                    operations,
                    parent_commit=repo.head,
                    commit_message=f"{name}, persyn compare",
                )
    return [f"{repo_id}-{name}" for name in published]


def _text(results: dict[str, Any], name: str, where: str, stats: Build) -> str:
    of = results["strategies"][name]["students"][0]
    return (
        templates()
        .get_template("student.md")
        .render(
            title=where.partition("/")[2],
            where=where,
            strategy=name,
            answered=STRATEGIES[name],
            of=of,
            student=results["student"],
            conclusion=comparison.conclusion(results),
            scores=comparison.scores(results),
            names={path: Path(path).name for path in stats["local"]},
            license=licenses.worked_out(stats["licenses"]),
            sources=[line for line in stats["licenses"] if line["of"] in ("prompts", "teacher")],
        )
    )
