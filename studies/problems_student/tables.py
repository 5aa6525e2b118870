"""The results of a student that really gets better, in Markdown."""

from typing import Any

from persyn_datasets.report.tables import table
from studies.problems_student.measure import FEW, LONG, SIZES
from studies.problems_student.problems import FAMILIES, SHORT

KINDS = tuple(f.__name__ for f in FAMILIES)


def describe(results: dict[str, Any]) -> str:
    parts = [
        "# A student that really gets better: results",
        "## Students",
        _students(results["strategies"]),
        'Exact match on held-out problems, mean over seeds; "taught right" and "reward" are of the '
        "answers that the student was taught (seed 0).",
        _longer(results["untrained, more tokens"]),
        "## persyn against the others",
        compared(results["comparisons"]),
        "Differences in exact match, paired by problem and seed; 95% bootstrap over problems and "
        "seeds; p by sign flips over problems, Holm over this table.",
        *_beside(
            results["with references"],
            "With references at hand",
            f"Students of the target's {SIZES['target']} references and a strategy's answers "
            "together, for twice as many steps.",
        ),
        *_beside(
            results["few references"],
            f"With {FEW} references",
            f"{FEW} references take the place of the {SIZES['target']}: in the signal, for the "
            f"router, and as what is taught (alone: steps and rate "
            f"{results['setting of few references']}).",
        ),
        "## Shares of the teachers",
        _shares(results["strategies"]),
        "## Teachers, and the student of each alone",
        _teachers(results["tournament"]["teachers"]),
        "Signals and accuracy on the calibration problems; the student's exact match on the "
        "held-out ones (one seed).",
    ]
    if signals := results["tournament"]["signals"]:
        parts += ["## Tournament", _signals(signals)]
        parts += ["Over teachers; 95% bootstrap over problems and teachers."]
    parts += ["## The setting", _setting(results)]
    return "\n\n".join(parts) + "\n"


def _students(strategies: dict[str, Any]) -> str:
    rows = []
    for name, of in sorted(strategies.items(), key=lambda item: -item[1]["all"]):
        taught = of.get("taught")
        rows.append(
            [
                name,
                f"**{of['all']:.3f}**",
                *(f"{of[kind]:.2f}" for kind in KINDS),
                " ".join(f"{x:.3f}" for x in of["seeds"]),
                f"{taught['quality']:.2f}" if taught else "–",
                f"{taught['reward']:.2f}" if taught else "–",
            ]
        )
    return table(["student of", "right", *KINDS, "seeds", "taught right", "reward"], rows)


def _longer(of: dict[str, float] | None) -> str:
    if of is None:
        return f"The untrained student with {LONG} tokens in place of {SHORT.max_tokens}: not run."
    kinds = ", ".join(f"{kind} {of[kind]:.2f}" for kind in KINDS)
    return (
        f"The untrained student with {LONG} tokens in place of {SHORT.max_tokens}: "
        f"{of['all']:.3f} ({kinds})."
    )


def _beside(of: dict[str, Any], title: str, caption: str) -> list[str]:
    if not of["strategies"]:
        return []
    ours = max(of["strategies"], key=lambda name: name not in of["comparisons"])
    return [
        f"## {title}",
        _students(of["strategies"]),
        caption,
        compared(of["comparisons"], f"{ours}, minus"),
    ]


def compared(comparisons: dict[str, Any], ours: str = "persyn minus") -> str:
    rows = [
        [
            name,
            f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]",
            f"{of['p']:.4f}",
            f"{of['p_holm']:.4f}",
            str(of["seeds"]),
        ]
        for name, of in sorted(comparisons.items(), key=lambda item: item[1]["mean"])
    ]
    return table([ours, "difference", "p", "p (Holm)", "seeds"], rows)


def _shares(strategies: dict[str, Any]) -> str:
    shown = {name: of["shares"] for name, of in strategies.items() if "shares" in of}
    teachers = list(next(iter(shown.values())))
    rows = [[name, *(f"{of[t]:.0%}" for t in teachers)] for name, of in shown.items()]
    return table(["strategy", *teachers], rows)


def _teachers(teachers: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{of['right'][kind]:.2f}" for kind in ("all", *KINDS)),
            f"{of['target']:+.2f}",
            f"{of['log-probability']:.2f}",
            f"{of['student']['all']:.3f}" if "student" in of else "–",
        ]
        for name, of in teachers.items()
    ]
    return table(["teacher", "right", *KINDS, "r_t", "r_l", "its student"], rows)


def _signals(signals: dict[str, Any]) -> str:
    bare = "{:+.2f} [{:+.2f}, {:+.2f}]".format
    rows = [
        [
            name,
            bare(of["rho"], of["low"], of["high"]),
            bare(of["tau"], of["tau_low"], of["tau_high"]),
        ]
        for name, of in sorted(signals.items(), key=lambda item: -item[1]["rho"])
    ]
    return table(["signal", "Spearman ρ with the gain", "Kendall τ-b"], rows)


def _setting(results: dict[str, Any]) -> str:
    rows = [[name, f"{value:.3f}"] for name, value in results["development"].items()]
    steps, rate = results["setting"]
    chosen = f"{steps} steps at {rate:g}, chosen by students of random teachers on these."
    return table(["development problems", "right"], rows) + "\n\n" + chosen
