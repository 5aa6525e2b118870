"""Route: the router's teacher for each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_datasets.errors import InputError
from persyn_datasets.models import use_device
from persyn_datasets.prompts import messages_of, prompt_id
from persyn_datasets.router import Router


@dataclass(frozen=True)
class Route:
    """A `datasets` map that adds `teacher`, the router's choice, and `router_scores`.

        prompts.map(Route(router), batched=True)
        prompts.map(Route(router, teachers=["a", "b"]), batched=True)  # only these are to be had

    `router_scores` is softmax(π(x)), one float per teacher in the order of `router.names`. These are
    Bradley–Terry strengths: the router expects B to beat A with probability p_B / (p_A + p_B). With `teachers`, the
    others get 0 and the rest is normalised again.

    Raises:
        InputError: no router there, or it does not know one of the `teachers`.
    """

    router: Router | str
    teachers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        router = Router.from_pretrained(self.router) if isinstance(self.router, str) else self.router
        object.__setattr__(self, "router", router)
        if self.teachers is not None:
            object.__setattr__(self, "teachers", tuple(self.teachers))
            unknown = [name for name in self.teachers if name not in router.names]
            if unknown or not self.teachers:
                raise InputError(
                    f"teachers: {repr(unknown[0]) if unknown else 'none'}; the router knows {', '.join(router.names)}."
                )

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        use_device(rank)
        assert isinstance(self.router, Router)
        messages = messages_of(batch)
        names = self.router.names
        o = self.router.scores(messages)
        if self.teachers is not None:
            o = np.where([name in self.teachers for name in names], o, -np.inf)
        p = np.exp(o - o.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return {
            "prompt_id": [prompt_id(m) for m in messages],
            "messages": messages,
            "teacher": [names[i] for i in o.argmax(-1)],
            "router_scores": p.tolist(),
        }
