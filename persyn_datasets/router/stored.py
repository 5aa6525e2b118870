"""A stored router's model, opened to be changed, and kept again."""

from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from persyn_datasets.router.model import Router
from persyn_datasets.router.older_versions import save_router


def opened(router: Router) -> Any:
    """The router's model in the very numbers that are stored."""
    return AutoModelForSequenceClassification.from_pretrained(
        router.path,
        revision=router.revision,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
    )


def keep(model: Any, router: Router, folder: str) -> Router:
    """The model as the router in this folder, with the tokenizer of the one it was opened from."""
    tokenizer = AutoTokenizer.from_pretrained(router.path, revision=router.revision)
    save_router(model, tokenizer, folder)
    return Router.from_pretrained(folder)
