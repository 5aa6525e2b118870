"""The results of GSM8K with a student, in Markdown."""

from typing import Any

from persyn_datasets.report.tables import table

ROUTING = (
    "reward",
    "router",
    "routed",
    "its shares",
    "best single",
    "random",
    "oracle",
    "routed − shares",
    "p (Holm)",
    "routed − best single",
    "shuffled",
    "final − shares",
)

SIGNALS = (
    "signal",
    "Spearman ρ with the gain",
    "Kendall τ-b",
    "ρ with length within a question",
    "given length",
)


def describe(results: dict[str, Any]) -> str:
    parts = [
        "# GSM8K with a student: results",
        *_tournament(results["tournament"]),
        *_routing(results["routing"]),
        *(_students(results["students"]) if results["students"] else ()),
    ]
    return "\n\n".join(parts) + "\n"


def _tournament(played: dict[str, Any]) -> list[str]:
    teachers = sorted(played["teachers"].items(), key=lambda item: -item[1]["target"])
    rows = [
        [
            t,
            "–" if of["gain"] is None else _difference(of["gain"]),
            *(f"{of[key]:+.3f}" for key in ("target", "log-probability", "rsr", "lark")),
            f"{of['quality']:.2f}",
            f"{of['length']:.0f}",
        ]
        for t, of in teachers
    ]
    head = ["teacher", "gain", "target", "log-probability", "rsr", "lark", "right", "tokens"]
    parts = [
        f"## Tournament: {len(played['probed'])} of {len(teachers)} teachers probed",
        table(head, rows),
        f"Signals on {played['questions']} questions, gain on {played['texts']} references.",
    ]
    if not played["signals"]:
        return [*parts, "Too few teachers were probed for a correlation over them."]
    return [*parts, _correlations(played), _few(played["target by number of questions"])]


def _correlations(played: dict[str, Any]) -> str:
    bare = "{:+.2f} [{:+.2f}, {:+.2f}]".format
    rows = [
        [
            name,
            bare(of["rho"], of["low"], of["high"]),
            bare(of["tau"], of["tau_low"], of["tau_high"]),
            f"{played['with_length'][name]:+.2f}" if name in played["with_length"] else "–",
            f"{played['given length'][name]:+.2f}" if name in played["given length"] else "–",
        ]
        for name, of in sorted(played["signals"].items(), key=lambda item: -item[1]["rho"])
    ]
    return (
        table(SIGNALS, rows)
        + "\n\n95% bootstrap intervals over questions, references and teachers; RSR has a minus. "
        "*Given length*: partial ρ over teachers, their mean length held fixed; added after the "
        "numbers had been seen."
    )


def _few(result: dict[str, Any]) -> str:
    return "ρ of the target signal by the number of questions it is measured on: " + "; ".join(
        f"{n}: {of['rho']:+.2f} ± {of['sd']:.2f}" for n, of in result.items()
    )


def _routing(read: dict[str, Any]) -> list[str]:
    shares = read["variance of r_t"]
    return [
        f"## Can a router read it from the question? {read['questions']} questions, "
        f"{len(read['pool'])} teachers",
        table(ROUTING, [_routing_row(line) for line in read["lines"]]),
        f"Variance of r_t: {shares['teachers']:.0%} teachers, {shares['questions']:.0%} questions, "
        f"{shares['rest']:.0%} the rest, which alone a router has to read.",
    ]


def _routing_row(line: dict[str, Any]) -> list[str]:
    p = line["against shares"].get("p_holm")
    return [
        line["reward"],
        line["router"],
        *(f"{line[key]:.4f}" for key in ("routed", "shares", "single", "random", "oracle")),
        _difference(line["against shares"]),
        "–" if p is None else f"{p:.3f}",
        _difference(line["against single"]),
        f"{line['shuffled']:+.4f}",
        _difference(line["final"]["against shares"]) if "final" in line else "–",
    ]


def _students(taught: dict[str, Any]) -> list[str]:
    judges = list(next(iter(taught["strategies"].values())))
    gains = [
        [name, *(_difference(of[judge]) for judge in judges)]
        for name, of in sorted(
            taught["strategies"].items(), key=lambda item: -item[1][judges[0]]["mean"]
        )
    ]
    against = [
        [
            c["ours"],
            c["other"],
            c["judge"],
            _difference(c),
            f"{c['p']:.4f}",
            f"{c['p_holm']:.4f}" if "p_holm" in c else "–",
        ]
        for c in taught["comparisons"]
    ]
    return [
        "## Students",
        table(["student of", *(f"gain, {judge}" for judge in judges)], gains),
        "Mean log-probability per token against the untrained student's, in nats.",
        table(["student of", "minus", "judge", "difference", "p", "p (Holm)"], against),
        "Paired by text and seed; 95% bootstrap over texts and seeds; p by sign flips over texts.",
    ]


def _difference(of: dict[str, float]) -> str:
    return f"{of['mean']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"
