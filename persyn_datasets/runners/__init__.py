"""Where a stage runs: on this machine or on a Ray cluster."""

from importlib.util import find_spec

from persyn_datasets.config.errors import InputError

RUNNERS = ("local", "ray")


def check(runner: str) -> None:
    """Raises `InputError` if there is no such runner."""
    if runner not in RUNNERS:
        raise InputError(f"runner is {runner!r}; expected one of {', '.join(RUNNERS)}.")
    if runner == "ray" and not find_spec("ray"):
        raise InputError(
            "runner is 'ray', and Ray is not installed; `pip install \"persyn-datasets[ray]\"`."
        )
