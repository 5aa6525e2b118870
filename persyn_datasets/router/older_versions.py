"""A router's files, as transformers 4 reads them, too.

transformers 5 writes all of RoPE into `rope_parameters`. Version 4.57 does not know that key, takes
its own defaults, and chooses other teachers without a word. So the keys that it reads stand beside
it; version 5 makes the same of them, and drops them: whoever saves a config, saves it by this
module. Of tokenizers 4.57 does not know version 5's class, nor its list of special tokens.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from persyn_datasets.store.files import router_files
from persyn_datasets.store.journal import replace_file
from persyn_datasets.store.models import readable

# What version 4 keeps outside of `rope_scaling`.
_OUTSIDE = ("rope_theta", "partial_rotary_factor")
# Where it has RoPE's base for layers that see all tokens, and for those that see near ones.
_BASES = {
    "full_attention": ("rope_theta", "global_rope_theta"),
    "sliding_attention": ("rope_local_base_freq", "local_rope_theta"),
}


# The file that is written last: with it, a router is whole; without it, nothing opens the folder.
LAST_FILE = "config.json"


def save_router(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Store a router, in place of the one that is there: whole, or with no `LAST_FILE`.

    Its files are written aside, since transformers writes its own last file in the middle, and
    since the weights may be mapped from the very files that are replaced.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place, prefix=".new-") as aside:
        _save_model(model, Path(aside))
        _save_tokenizer(tokenizer, Path(aside))
        (place / LAST_FILE).unlink(missing_ok=True)
        for old in router_files(place):
            old.unlink()
        for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == LAST_FILE):
            file.replace(place / file.name)


def save_config(config: Any, folder: str | Path) -> None:
    """Replace the config of a stored router."""
    with TemporaryDirectory() as aside:
        config.save_pretrained(aside)
        _add_rope(Path(aside))
        replace_file(Path(folder) / LAST_FILE, (Path(aside) / LAST_FILE).read_bytes())


def _save_model(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    _add_rope(folder)
    readable(folder)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    _write(path, values)


def _add_rope(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for part in (values, values.get("text_config") or {}):
        part.update(_older(part.get("rope_parameters") or {}))
    _write(path, values)


def _write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode())


def _older(rope: dict[str, Any]) -> dict[str, Any]:
    by_layer = {kind: rope[kind] for kind in _BASES if rope.get(kind)}
    if not by_layer:
        return _flat(rope)
    found: dict[str, Any] = {}
    for kind, of_kind in by_layer.items():
        flat = _flat(of_kind)
        if "rope_theta" in flat:
            found |= dict.fromkeys(_BASES[kind], flat["rope_theta"])
        # Of the near ones it knows no scaling.
        if kind == "full_attention" and "rope_scaling" in flat:
            found["rope_scaling"] = flat["rope_scaling"]
    return found


def _flat(rope: dict[str, Any]) -> dict[str, Any]:
    found = {key: rope[key] for key in _OUTSIDE if key in rope}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {k: v for k, v in rope.items() if k not in _OUTSIDE}
    return found
