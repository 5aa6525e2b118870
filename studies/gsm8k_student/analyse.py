"""GSM8K with a student: the tables and the figure from what `measure` wrote.

python -m studies.gsm8k_student.analyse DATA STUDENT OUTPUT

Writes `results.json`, `results.md` and `tournament.png` beside this file.
"""

import json
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata, spearmanr

from persyn_datasets.compare.tournament import LEAST_TEACHERS, correlations, with_length
from persyn_datasets.signals.math_verify import verdicts
from persyn_datasets.stages.rank import normalized
from persyn_datasets.store.statistics import holm, interval
from studies.gsm8k_student import common, measure, routing, tables
from studies.gsm8k_student.common import Data
from studies.seeds import difference

HERE = Path(__file__).parent
PREFIX = 64  # tokens
SUBSETS = (4, 8, 16, 32)
COMPARED = ("persyn", "target signal alone")  # a family of comparisons each
ORDER = (
    "target",
    "target, sum",
    "target, first 64 tokens",
    "log p under θ⁺",
    "log-probability",
    "rsr",
    "lark",
    "quality",
    "length",
    "size",
)


def responses(output: Path, teachers: int) -> dict[str, Any]:
    """What `measure` kept of so many teachers' answers: `questions`, `tokens` (questions,
    teachers), and per token `log_prob`, `after`, `rank`, `collision`: [question][teacher] arrays.
    """
    found: dict[str, Any] = {"questions": [], "tokens": []}
    for file in sorted(output.glob(f"scores-{teachers}-*.npz")):
        part = np.load(file)
        ends = part["tokens"].ravel().cumsum()[:-1]
        found["questions"] += part["questions"].tolist()
        found["tokens"] += part["tokens"].tolist()
        for key in (*common.KEYS, "after"):
            flat = np.split(part[key], ends)
            rows = [flat[i : i + teachers] for i in range(0, len(flat), teachers)]
            found.setdefault(key, []).extend(rows)
    return found


def signals(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every signal of the student's, larger is better, (questions, teachers)."""

    def each(of: Any) -> np.ndarray:
        keys = (*common.KEYS, "after")
        rows = zip(*(found[key] for key in keys), strict=True)
        return np.array(
            [
                [
                    of(**dict(zip(keys, cell, strict=True))) if len(cell[0]) else np.nan
                    for cell in zip(*row, strict=True)
                ]
                for row in rows
            ]
        )

    table = {
        "target": each(lambda log_prob, after, **_: (after - log_prob).mean()),
        "target, sum": each(lambda log_prob, after, **_: (after - log_prob).sum()),
        f"target, first {PREFIX} tokens": each(
            lambda log_prob, after, **_: (after - log_prob)[:PREFIX].mean()
        ),
        "log p under θ⁺": each(lambda after, **_: after.mean()),
        "log-probability": each(lambda log_prob, **_: log_prob.mean()),
        "rsr": each(lambda log_prob, rank, **_: np.minimum(rank, 100).sum() / log_prob.sum()),
        "length": each(lambda log_prob, **_: float(len(log_prob))),
    }
    loss = -table["log-probability"]
    spread = each(lambda log_prob, collision, **_: (1 - 2 * np.exp(log_prob) + collision).mean())
    ratio, share = spread / loss, loss / np.nansum(loss, -1, keepdims=True)
    table["lark"] = share * (2 * ratio - np.nansum(ratio * share, -1, keepdims=True))
    return table


def right(data: Data, teachers: list[str], questions: list[int]) -> np.ndarray:
    """1 where Math-Verify finds the answer right, (questions, teachers)."""
    pairs = [
        (str(data.answers[t][q]["answer"]), data.answers[t][q]["response"])
        for q in questions
        for t in teachers
    ]
    return np.array(verdicts(pairs)).reshape(len(questions), -1)


def gains(output: Path, teachers: list[str]) -> tuple[list[str], np.ndarray]:
    """The teachers that were probed, and their students' gain, (texts, teachers)."""
    before = np.load(output / "untrained.npz")["GSM8K references"]
    files = {t: output / f"probe-{t}-0.npz" for t in teachers}
    probed = [t for t in teachers if files[t].exists()]
    after = [np.load(files[t])["GSM8K references"] for t in probed]
    return probed, np.stack(after, axis=-1) - before[:, None]


def tournament(data: Data, output: Path) -> dict[str, Any]:
    """Signals of all teachers; correlations over those that were probed, if they are enough."""
    found = responses(output, len(data.teachers))
    of = signals(found)
    of["quality"] = right(data, data.teachers, found["questions"])
    of["size"] = np.array([data.facts[t]["params_b"] for t in data.teachers])
    of = {name: of[name] for name in ORDER}
    for name in ("target", "log-probability"):
        of[f".6·right + .4·{name}"] = 0.6 * of["quality"] + 0.4 * normalized(of[name], "prompt")
    probed, gain = gains(output, data.teachers)
    result: dict[str, Any] = {
        "questions": len(found["questions"]),
        "texts": len(gain),
        "probed": probed,
        "teachers": {
            t: {name: float(np.nanmean(v[..., i])) for name, v in of.items()}
            | {"gain": interval(gain[:, probed.index(t)]) if t in probed else None}
            for i, t in enumerate(data.teachers)
        },
        "with_length": {
            name: with_length(v, of["length"])
            for name, v in of.items()
            if v.ndim == 2 and name != "length"
        },
        "variance of the target signal": variance(of["target"]),
        "signals": {},
    }
    if len(probed) >= LEAST_TEACHERS:
        places = [data.teachers.index(t) for t in probed]
        of = {name: v[..., places] for name, v in of.items()}
        result["signals"] = correlations(of, gain)
        result["target by number of questions"] = few(of["target"], gain)
        result["given length"] = given(of["length"], of, gain)
    return result


def given(length: np.ndarray, table: dict[str, np.ndarray], gain: np.ndarray) -> dict[str, Any]:
    """Partial ρ of each signal with the gain, the mean length of the answers held fixed."""
    of_length = correlate(length, gain)

    def partial(values: np.ndarray) -> float:
        ranks = [rankdata(v if v.ndim == 1 else np.nanmean(v, 0)) for v in (values, length)]
        shared = float(np.corrcoef(*ranks)[0, 1])
        rest = (1 - of_length**2) * (1 - shared**2)
        return (correlate(values, gain) - of_length * shared) / float(np.sqrt(rest))

    return {name: partial(values) for name, values in table.items() if name != "length"}


def few(values: np.ndarray, gain: np.ndarray) -> dict[str, dict[str, float]]:
    """ρ of a signal that is measured on so many questions, 200 draws."""
    draw, result = np.random.default_rng(0), {}
    for n in SUBSETS:
        drawn = [draw.choice(len(values), n, replace=False) for _ in range(200)]
        rhos = [correlate(values[rows], gain) for rows in drawn]
        result[str(n)] = {"rho": float(np.mean(rhos)), "sd": float(np.std(rhos))}
    return result


def correlate(values: np.ndarray, gain: np.ndarray) -> float:
    means = values if values.ndim == 1 else np.nanmean(values, 0)
    return float(spearmanr(means, gain.mean(0)).statistic)


def variance(values: np.ndarray) -> dict[str, float]:
    """Shares of teachers, of questions, and of the rest."""
    total = np.nanvar(values)
    teacher, question = (np.nanvar(np.nanmean(values, axis)) / total for axis in (0, 1))
    return {
        "teachers": float(teacher),
        "questions": float(question),
        "rest": float(1 - teacher - question),
    }


@dataclass(frozen=True)
class Pool:
    """The routers' pool; arrays are (questions, teachers), the question's least where none is."""

    teachers: list[str]
    questions: list[int]
    r_t: np.ndarray
    r_l: np.ndarray
    quality: np.ndarray

    @classmethod
    def read(cls, data: Data, output: Path) -> "Pool":
        names = measure.pool(data)
        wide, narrow = responses(output, len(data.teachers)), responses(output, len(names))
        places = [data.teachers.index(t) for t in names]
        of_wide, of_narrow = signals(wide), signals(narrow)

        def both(signal: str) -> np.ndarray:
            values = np.concatenate([of_wide[signal][:, places], of_narrow[signal]])
            return np.where(np.isnan(values), np.nanmin(values, -1, keepdims=True), values)

        questions = wide["questions"] + narrow["questions"]
        quality = right(data, names, questions)
        return cls(names, questions, both("target"), both("log-probability"), quality)


def readable(data: Data, output: Path) -> dict[str, Any]:
    """Can a router read the signal from the question?"""
    pool = Pool.read(data, output)
    names, questions, r_t, r_l, quality = astuple(pool)
    rewards = {
        "r_t, nats per token": r_t,
        ".6·right + .4·r_t, min–max per question": 0.6 * quality + 0.4 * normalized(r_t, "prompt"),
        ".6·right + .4·r_t / its sd": 0.6 * quality + 0.4 * r_t / r_t.std(),
        "the paper's: .6·right + .4·r_l, min–max": 0.6 * quality + 0.4 * normalized(r_l, "prompt"),
    }
    features = routing.features([data.answers[names[0]][q]["prompt"] for q in questions])
    final = np.array([q in common.FINAL for q in questions])
    result: dict[str, Any] = {"questions": len(questions), "final": int(final.sum()), "pool": names}
    lines = []
    for reward, values in rewards.items():
        for router in routing.ROUTERS:
            line = routing.judged(router, features, values)
            line["shuffled"] = routing.shuffled(router, features, values)
            if final.any() and not final.all():
                line["final"] = routing.held_out(router, features, values, final)
            lines.append({"reward": reward, "router": router, **line})
    first = [line for line in lines if not line["reward"].startswith("the paper's")]
    corrected = holm([line["against shares"]["p"] for line in first])
    for line, p in zip(first, corrected, strict=True):
        line["against shares"]["p_holm"] = p
    return result | {"lines": lines, "variance of r_t": variance(r_t)}


def students(output: Path) -> dict[str, Any] | None:
    """`COMPARED` students against those of each other strategy, by three judges."""
    before = np.load(output / "untrained.npz")
    runs: dict[str, list[Any]] = {}
    for file in sorted(output.glob("student-*-*.npz")):
        runs.setdefault(file.stem.split("-", 1)[1].rsplit("-", 1)[0], []).append(np.load(file))
    if "persyn" not in runs:
        return None
    result: dict[str, Any] = {"strategies": {}, "comparisons": []}
    for judge in before.files:
        gain = {
            name: np.stack([run[judge] for run in of]) - before[judge] for name, of in runs.items()
        }
        for name, values in gain.items():
            line = interval(values.mean(0)) | {"seeds": values.mean(-1).tolist()}
            result["strategies"].setdefault(name, {})[judge] = line
        first = judge == before.files[0]
        result["comparisons"] += [line for ours in COMPARED for line in _against(gain, ours, first)]
        for line in result["comparisons"]:
            line.setdefault("judge", judge)
    return result


def _against(gain: dict[str, np.ndarray], ours: str, corrected: bool) -> list[dict[str, Any]]:
    """`ours` minus each other, (seeds, texts); one Holm family. Each family leaves out the students
    of the families that were added after it.
    """
    if ours not in gain:
        return []
    later = COMPARED[COMPARED.index(ours) + 1 :]
    others = gain | {"untrained": np.zeros_like(gain[ours])}
    lines: list[dict[str, Any]] = [
        {"ours": ours, "other": name, **difference(gain[ours], values)}
        for name, values in others.items()
        if name not in (ours, *later)
    ]
    if corrected:
        for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
            line["p_holm"] = p
    return lines


def draw(played: dict[str, Any], path: Path) -> None:
    """Gain against four signals, a point per teacher."""
    names = ("target", "log-probability", "rsr", "quality")
    figure = Figure(figsize=(11, 3), layout="constrained")
    teachers = [played["teachers"][t] for t in played["probed"]]
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        of = played["signals"][name]
        axes.scatter(
            [t[name] for t in teachers],
            [t["gain"]["mean"] for t in teachers],
            color="#1f5fa8",
            s=16,
        )
        axes.set_title(f"ρ = {of['rho']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]", fontsize=9)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("gain in nats per token")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(folder: str, student: str, output: str) -> None:
    data, place = Data(Path(folder), Path(student)), Path(output)
    results = {
        "tournament": tournament(data, place),
        "routing": readable(data, place),
        "students": students(place),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    (HERE / "results.md").write_text(tables.describe(results))
    if results["tournament"]["signals"]:
        draw(results["tournament"], HERE / "tournament.png")
    print(tables.describe(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
