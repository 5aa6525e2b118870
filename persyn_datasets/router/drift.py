"""Do new prompts look like those that a router was calibrated on?"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from persyn_datasets.config.teacher import Message

MEASURES = {
    "length": ("their length", "characters (geometric mean)"),
    "distance": (
        "what the router's backbone makes of them",
        "cosine distance from the middle of calibration",
    ),
    "entropy": ("how sure the router is", "nats of entropy of its scores"),
}


def profile(
    o: np.ndarray, features: np.ndarray, prompts: Sequence[list[Message]]
) -> dict[str, Any]:
    """What is typical of these prompts, as JSON values.

    Args:
        o: π(x), (prompts, teachers).
        features: what the router's last layer sees, (prompts, width).

    Returns:
        Of each of `MEASURES` its mean and standard deviation (the length's are of its logarithm);
        `centroid`, the mean direction of the features, as base64 of float16; and the number of
        prompts.
    """
    centroid = _unit(_unit(features).mean(0)).astype("<f2")
    measured = _measure(o, features, prompts, centroid)
    values = {
        name: {"mean": float(x.mean()), "std": float(x.std())} for name, x in measured.items()
    }
    return values | {
        "prompts": len(prompts),
        "centroid": base64.b64encode(centroid.tobytes()).decode(),
    }


def unlike(
    typical: dict[str, Any], o: np.ndarray, features: np.ndarray, prompts: Sequence[list[Message]]
) -> list[str]:
    """One sentence, with numbers, for each of `MEASURES` whose mean lies more than a standard
    deviation away.
    """
    centroid = np.frombuffer(base64.b64decode(typical["centroid"]), dtype="<f2")
    sentences = []
    for name, x in _measure(o, features, prompts, centroid).items():
        mean, std = typical[name]["mean"], typical[name]["std"]
        # The means of a few prompts stray further by themselves: three standard errors of their
        # difference.
        if (
            abs(x.mean() - mean)
            > max(1.0, 3 * np.sqrt(1 / len(x) + 1 / typical["prompts"])) * std + 1e-6
        ):
            what, unit = MEASURES[name]
            show = (lambda v: f"{np.exp(v):,.0f}") if name == "length" else (lambda v: f"{v:.3f}")
            sentences.append(
                f"These prompts look unlike the calibration prompts in {what}: {show(x.mean())} "
                f"{unit}; "
                f"calibration {show(mean)}, usually {show(mean - std)} to {show(mean + std)}."
            )
    return sentences


def _measure(
    o: np.ndarray, features: np.ndarray, prompts: Sequence[list[Message]], centroid: np.ndarray
) -> dict[str, np.ndarray]:
    p = softmax(o, -1)
    return {
        "length": np.log(
            [max(1, sum(len(m["content"]) for m in messages)) for messages in prompts]
        ),
        "distance": 1 - _unit(features) @ centroid.astype(np.float64),
        "entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(-1),
    }


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
