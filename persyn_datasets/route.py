"""Route: the router's teacher for each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_datasets.prompts import messages_of, prompt_id
from persyn_datasets.router import Router


@dataclass(frozen=True)
class Route:
    """A `datasets` map that adds `teacher`, the router's choice, and `router_scores`.

        prompts.map(Route(router), batched=True)

    `router_scores` is softmax(π(x)), one float per teacher in the order of `router.names`. These are
    Bradley–Terry strengths: the router expects B to beat A with probability p_B / (p_A + p_B).
    """

    router: Router | str

    def __post_init__(self) -> None:
        if isinstance(self.router, str):
            object.__setattr__(self, "router", Router.from_pretrained(self.router))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        assert isinstance(self.router, Router)
        messages = messages_of(batch)
        o = self.router.scores(messages)
        p = np.exp(o - o.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        names = self.router.names
        return {
            "prompt_id": [prompt_id(m) for m in messages],
            "messages": messages,
            "teacher": [names[i] for i in o.argmax(-1)],
            "router_scores": p.tolist(),
        }
