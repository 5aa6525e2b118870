"""What leaves the machine, without its local paths: each is shown by its last part."""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

# Keys of recipes, records and routers whose values may say where something lies.
PLACES = {
    "against",
    "backbone",
    "data",
    "include_path",
    "local",
    "model",
    "models",
    "name",
    "path",
    "prompts",
    "reward_model",
    "student",
}
TEXTS = {"errors", "warnings"}
# /a/b/c, ~/a/b, ../a/b or C:\\a\\b, but neither a URL nor a repository's id
LOCAL_PATH = re.compile(
    r"(?<![\w:/.~\\-])(?:~|\.{1,2})?/(?:[^\s/|`'\"()<>\]]+/)+([^\s/|`'\"()<>\],;:]+)"
    r"|(?<!\w)[A-Za-z]:\\(?:[^\s\\|`'\"]+\\)*([^\s\\|`'\",;]+)"
)


def text(written: str, local: Iterable[str] = ()) -> str:
    """A text with local paths, known ones and any that look so, by their last part."""
    for path in sorted(local, key=len, reverse=True):
        written = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w/-])", Path(path).name, written)
    return LOCAL_PATH.sub(lambda found: found[1] or found[2], written)


def values(stated: Any, local: Collection[str], key: str = "") -> Any:
    """JSON values, of a recipe, a record or a router's config, with places by their last part. All
    other strings stay, a system prompt that begins with a slash among them.

    Args:
        local: the places that are known not to be on the Hub.
        key: under which the values stand.
    """
    if isinstance(stated, dict):
        nested = key if key in (*PLACES, *TEXTS) else ""
        return {
            text(k, local) if key in TEXTS else k: values(v, local, nested or k)
            for k, v in stated.items()
        }
    if isinstance(stated, list | tuple):
        return [values(v, local, key) for v in stated]
    if not isinstance(stated, str):
        return stated
    if key in TEXTS:
        return text(stated, local)
    return Path(stated).name if key in PLACES and _is_local(stated, local) else stated


def _is_local(place: str, local: Collection[str]) -> bool:
    if "://" in place or "/" not in place:
        return False
    return place in local or place.startswith(("/", "~", ".")) or Path(place).exists()


def write(file: Path, local: Collection[str], to: Path) -> Path:
    """A JSON file without local paths, at `to`; the file itself where it names none."""
    stated = json.loads(file.read_text())
    shown = values(stated, local)
    if shown == stated:
        return file
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(shown, indent=2))
    return to
