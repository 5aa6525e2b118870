"""The terms under which the dataset may be used, derived from the licences of the prompts and of
every teacher.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from persyn_datasets.config.prompts import Prompts
from persyn_datasets.config.teacher import Teacher
from persyn_datasets.data.build import License, Sources
from persyn_datasets.engines import facts_of

TIMEOUT = 10.0  # seconds for reading one card on the Hub


class Terms(NamedTuple):
    """`rank` orders licences by what they forbid: 0 nothing … 5 training other models on the
    outputs.
    """

    rank: int
    says: str
    on_hub: bool = True  # is the name one of the Hub's own licence ids?


_LLAMA = (
    "restricts some uses; display “Built with Llama”, and begin the name of a model trained "
    "on the answers with “Llama”"
)
_QWEN = (
    "display “Built with Qwen” or “Improved using Qwen” in the documentation of a model "
    "trained on the answers"
)
TERMS = {
    "cc0-1.0": Terms(0, "no conditions"),
    "unlicense": Terms(0, "no conditions"),
    "apache-2.0": Terms(1, "keep the notice"),
    "mit": Terms(1, "keep the notice"),
    "bsd-3-clause": Terms(1, "keep the notice"),
    "cc-by-3.0": Terms(1, "name the authors"),
    "cc-by-4.0": Terms(1, "name the authors"),
    "odc-by": Terms(1, "name the source"),
    "cdla-permissive-2.0": Terms(1, "keep the notice"),
    "cc-by-sa-3.0": Terms(2, "share alike"),
    "cc-by-sa-4.0": Terms(2, "share alike"),
    "odbl": Terms(2, "share alike"),
    "openrail": Terms(3, "restricts some uses; pass the restrictions on"),
    "bigscience-openrail-m": Terms(3, "restricts some uses; pass the restrictions on"),
    "gemma": Terms(
        3,
        "restricts some uses; pass the Gemma Terms of Use on with the data and with models "
        "trained on the answers",
    ),
    "llama3.1": Terms(3, _LLAMA),
    "llama3.2": Terms(3, _LLAMA),
    "llama3.3": Terms(3, _LLAMA),
    "llama4": Terms(3, _LLAMA),
    "qwen": Terms(3, f"restricts some uses; {_QWEN}", on_hub=False),
    "tongyi-qianwen": Terms(3, f"restricts some uses; {_QWEN}", on_hub=False),
    "cc-by-nc-4.0": Terms(4, "no commercial use"),
    "cc-by-nc-sa-4.0": Terms(4, "no commercial use; share alike"),
    "qwen-research": Terms(4, f"no commercial use; {_QWEN}", on_hub=False),
    "mrl": Terms(4, "no commercial use", on_hub=False),
    "cc-by-nd-4.0": Terms(5, "no changed copies"),
    "cc-by-nc-nd-4.0": Terms(5, "no commercial use; no changed copies"),
    "llama2": Terms(5, "forbids to improve other language models with the answers"),
    "llama3": Terms(
        5,
        "forbids to improve other language models with the answers; display “Built with Meta "
        "Llama 3”",
    ),
}
# By family, for a teacher whose licence is not known.
NAMING = {
    "llama": "“Built with Llama”",
    "gemma": "the Gemma Terms of Use",
    "qwen": "“Built with Qwen”",
}


def sources(
    prompts: Prompts,
    teachers: Sequence[Teacher],
    student: str | None = None,
    backbone: str | None = None,
    target: str | None = None,
) -> Sources:
    """What the recipe, else the Hub, says of the prompts, the teachers and the router's backbone,
    as JSON values.

    `licenses`: a list of {of, name, family, license}; `license` is None where nobody says.
        `language`: of the prompts.
    `models`: of the teachers. `local`: which of all these are not from the Hub.
    """
    hub = _Cards()
    card = hub.card(prompts.path, prompts.revision, "dataset")
    lines: list[License] = [
        {
            "of": "prompts",
            "name": prompts.path,
            "family": None,
            "license": prompts.license or _license(card),
        }
    ]
    for t in teachers:
        of_model = hub.card(t.model, t.revision, "model" if facts_of(t).journalled else "dataset")
        lines.append(
            {
                "of": "teacher",
                "name": t.name,
                "family": t.family,
                "license": t.license or _license(of_model),
            }
        )
    if backbone:
        own = next((t.license for t in teachers if t.model == backbone and t.license), None)
        found = own or _license(hub.card(backbone, None, "model"))
        lines.append({"of": "router", "name": backbone, "family": None, "license": found})
    language = prompts.language or card.get("language") or []
    models = {t.model: facts_of(t).journalled for t in teachers}
    names = {prompts.path, *models, *(name for name in (student, backbone, target) if name)}
    return {
        "licenses": lines,
        "language": [language] if isinstance(language, str) else list(language),
        "models": [name for name, asked in models.items() if asked],
        "local": sorted(name for name in names if not is_hub_id(name)),
    }


def is_hub_id(name: str) -> bool:
    """Whether this is a repository's name on the Hub, and not a local path."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not Path(name).exists()


class _Cards:
    """Reads cards on the Hub; stops asking once the Hub could not be reached."""

    def __init__(self) -> None:
        self.reachable = True

    def card(self, name: str, revision: str | None, kind: str) -> dict[str, Any]:
        if not self.reachable or not is_hub_id(name):
            return {}
        try:
            look = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
            card = look(name, revision=revision, timeout=TIMEOUT).card_data
        except (
            HfHubHTTPError
        ):  # missing or private: its licence stays unknown, and the card says so
            return {}
        except (httpx.HTTPError, OfflineModeIsEnabled):
            self.reachable = False
            return {}
        return card.to_dict() if card else {}


def _license(card: dict[str, Any]) -> str | None:
    found = card.get("license")
    found = found[0] if isinstance(found, list) and found else found
    found = card.get("license_name") if found == "other" else found
    return found if isinstance(found, str) and found != "unknown" else None


def worked_out(
    lines: list[License], of: tuple[str, ...] = ("prompts", "teacher")
) -> dict[str, Any]:
    """The strictest terms among the sources.

    Returns:
        `strictest`: licences; `unknown`: names without a licence that we know; `duties`: sentences;
        `metadata`: the entries `license`, and where needed `license_name`, of a card.
    """
    lines = [line for line in lines if line["of"] in of]
    known = {line["license"] for line in lines if line["license"] in TERMS}
    top = max((TERMS[x].rank for x in known), default=0)
    strictest = sorted(x for x in known if TERMS[x].rank == top)
    unknown = [line for line in lines if line["license"] not in TERMS]
    duties = {f"`{x}`: {TERMS[x].says}." for x in known if TERMS[x].rank > 1}
    for line in unknown:
        words = f"{line['family'] or ''} {line['name']}".lower()
        duties |= {
            f"{line['name']} may be of the {family} family, which asks for {duty}: look at its "
            "licence."
            for family, duty in NAMING.items()
            if family in words
        }
    return {
        "strictest": strictest,
        "unknown": [line["name"] for line in unknown],
        "duties": sorted(duties),
        "metadata": _metadata(strictest, bool(unknown)),
    }


def _metadata(strictest: list[str], unknown: bool) -> dict[str, Any]:
    if unknown or not strictest:
        return {"license": "unknown"}
    if all(TERMS[name].on_hub for name in strictest):
        return {"license": strictest[0] if len(strictest) == 1 else strictest}
    return {"license": "other", "license_name": "-and-".join(strictest)}
