"""Route: the router's teacher for each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from persyn_datasets.config.errors import InputError
from persyn_datasets.data.prompts import messages_of, prompt_id
from persyn_datasets.data.tools import tools_of
from persyn_datasets.router.model import Router
from persyn_datasets.store.models import use_device


@dataclass(frozen=True)
class Route:
    """A `datasets` map that adds `teacher`, the router's choice, and `router_scores`.

        prompts.map(Route(router), batched=True)
        prompts.map(Route(router, teachers=["a", "b"]), batched=True)  # only these are available
        # the same, at once
        routed.map(Route(router, teachers=["a", "b"], from_scores=True), batched=True)

    `router_scores` is softmax(π(x)), one float per teacher in the order of `router.names`. These
    are Bradley–Terry strengths: the router expects B to beat A with probability p_B / (p_A + p_B).
    With `teachers`, the others get 0 and the rest is normalised again. With `from_scores` the rows
    have the `router_scores` of this router already, and it is not run.

    Raises:
        InputError: no router there, or it does not know one of the `teachers`; the rows have no
            `router_scores`, or those of another router or of other teachers.
    """

    router: Router | str
    teachers: Sequence[str] | None = None
    from_scores: bool = False

    def __post_init__(self) -> None:
        router = (
            Router.from_pretrained(self.router) if isinstance(self.router, str) else self.router
        )
        object.__setattr__(self, "router", router)
        if self.teachers is not None:
            object.__setattr__(self, "teachers", tuple(self.teachers))
            unknown = [name for name in self.teachers if name not in router.names]
            if unknown or not self.teachers:
                raise InputError(
                    f"teachers: {repr(unknown[0]) if unknown else 'none'}; the router knows "
                    f"{', '.join(router.names)}."
                )

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], rank: int | None = None
    ) -> dict[str, list[Any]]:
        use_device(rank)
        assert isinstance(self.router, Router)
        messages = messages_of(batch)
        names = self.router.names
        o = _logarithms(batch, len(names)) if self.from_scores else self.router.scores(messages)
        if self.teachers is not None:
            o = np.where([name in self.teachers for name in names], o, -np.inf)
            if (o.max(-1) == -np.inf).any():
                raise InputError(
                    f"router_scores: a row has 0 for all of {', '.join(self.teachers)}; route it "
                    "again."
                )
        return {
            "prompt_id": list(map(prompt_id, messages, tools_of(batch))),
            "messages": messages,
            "teacher": [names[i] for i in o.argmax(-1)],
            "router_scores": softmax(o, -1).tolist(),
        }


def _logarithms(batch: Mapping[str, Sequence[Any]], teachers: int) -> np.ndarray:
    """log softmax(π(x)): as good as π(x), of which only the differences count."""
    stored = batch.get("router_scores")
    if stored is None or any(row is None or len(row) != teachers for row in stored):
        found = "no such column" if stored is None else "a row of another length"
        raise InputError(
            f"router_scores: found {found}; expected {teachers} numbers in every row, by "
            "Route(router)."
        )
    with np.errstate(divide="ignore"):
        return np.log(np.array(stored, dtype=np.float32))
