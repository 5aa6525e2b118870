"""A router's config.json, as transformers 4 reads it, too.

transformers 5 writes all of RoPE into `rope_parameters`. Version 4.57 does not know that key, takes
its own defaults, and chooses other teachers without a word. So the keys that it reads stand beside
it; version 5 makes the same of them. Written again and again, as it drops them when it loads a
config.
"""

import json
from pathlib import Path
from typing import Any

# What version 4 keeps outside of `rope_scaling`.
_OUTSIDE = ("rope_theta", "partial_rotary_factor")
# Where it has RoPE's base for layers that see all tokens, and for those that see near ones.
_BASES = {
    "full_attention": ("rope_theta", "global_rope_theta"),
    "sliding_attention": ("rope_local_base_freq", "local_rope_theta"),
}


def save_config(config: Any, folder: str | Path) -> None:
    config.save_pretrained(folder)
    for_older_versions(folder)


def for_older_versions(folder: str | Path) -> None:
    """Add to a saved config what transformers 4 reads of RoPE."""
    path = Path(folder) / "config.json"
    values = json.loads(path.read_text())
    for part in (values, values.get("text_config") or {}):
        part.update(_older(part.get("rope_parameters") or {}))
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


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
