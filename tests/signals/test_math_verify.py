"""The signal around the verdicts: columns, references that are refused, runaways, identity."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import Dataset

from persyn_datasets import InputError
from persyn_datasets.signals import expressions, identity, math_verify

PROMPT = [{"role": "user", "content": "How many?"}]
ANSWERED = [("42", r"\boxed{42}", 1.0), (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1.0), ("4", "5", 0.0)]


def scores(answers, texts):
    return math_verify.score([(PROMPT, text) for text in texts], {"answer": answers})


def test_one_verdict_a_row_also_in_threads():
    answers, texts, right = zip(*ANSWERED, strict=True)
    assert scores(answers, texts) == list(right)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scores(answers, texts), range(4)))
    assert found == [list(right)] * 4


def test_expressions_that_never_end_cost_seconds_and_no_other_row(monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS_PER_PAIR", 2.0)
    runaways = [
        r"\boxed{(10^{9})!}",
        r"\boxed{" + "(" * 1500 + "5" + ")" * 1500 + "}",
        r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n^n}}",
        "(" * 100_000,
        "$" * 100_001,
        r"\boxed{" * 20_000,
        "a " * 100_000 + "= 5",
        "1 " * 100_000,
    ]
    began = time.monotonic()
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(scores([r"5\pi"] * len(runaways), runaways))
    )
    thread.start()
    thread.join(60)
    assert found == [0.0] * len(runaways)
    assert time.monotonic() - began < 40
    assert scores([r"\sqrt{8}"], [r"\boxed{2\sqrt{2}}"]) == [1.0]


def prompts(*answers):
    return Dataset.from_dict({"messages": [PROMPT] * len(answers), "answer": list(answers)})


def test_references_of_all_kinds_pass():
    math_verify.check(
        {},
        prompts(
            "42", "1,000", r"\frac{1}{2}", r"\text{Evelyn}", "52_8", "(C)", "3:30", "3, 5, 7",
            "She sells 9 eggs at $2.\n#### 18", r"x \in [-2,7]", "35%", "24 apples", "y = 2x + 3",
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "is empty"),
        (" ", "is empty"),
        (r"\frac{1}{2", "has a brace without its partner"),
        ("the set of all even integers that are prime", "more than 6 words"),
        ("3 apples and then 4 pears", "is not understood"),
    ],
)
def test_a_reference_that_nothing_can_match_is_refused_with_its_row(answer, reason):
    with pytest.raises(InputError, match=rf"'How many\?'.*row 1.*{reason}"):
        math_verify.check({}, prompts("42", answer))


def test_prompts_without_answers_are_refused():
    with pytest.raises(InputError, match=r"prompts\.answer_column"):
        math_verify.check({}, prompts("42").remove_columns("answer"))
    with pytest.raises(InputError, match="'answer'"):
        math_verify.score([(PROMPT, "42")], {})
    with pytest.raises(InputError, match=r"'How many\?'"):
        scores([""], ["42"])


def test_a_verdict_knows_its_rules_and_the_versions_of_its_parsers(monkeypatch):
    before = identity("math-verify")
    assert set(before) == {"signal", "rules", "math-verify", "latex2sympy2-extended", "sympy"}
    monkeypatch.setattr(math_verify, "version", lambda package: "99")
    after = identity("math-verify")
    assert after["sympy"] == after["math-verify"] == "99" and before["sympy"] != "99"
    assert json.loads(json.dumps(after)) == after


# A number, a power, a root: what is left of a reference when a reader stops early.
FRAGMENTS = {
    r"5\sqrt{7}": "5",
    r"2 - 9i": "9",
    r"\left( 4, \frac{\pi}{3} \right)": "4",
    r"(-\infty, 6]": "6",
    r"\frac 47": "47",
    r"y = 4x + 7": "7",
    r"\begin{pmatrix} 8 \\ -3 \end{pmatrix}": "-3",
    r"7 \pm \sqrt{5}": "7",
    r"9k+4": "9",
    r"2\frac{3}{4}": r"\frac{3}{4}",
    r"6!": "6",
    r"10^{-4}": "10",
    r"\frac{7}{3}": "7",
    r"\sqrt{11}": "11",
    r"\{1\pm\sqrt{5},-2\}": "-2",
    r"(0,9) \cup (9,36)": "(9,36)",
    r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]": r"\frac{\pi^2}{8}",
    r"864 \mbox{ inches}^2": "2",
    r"\text{(E)}": r"\text{(B)}",
    r"\cot x": "x",
    r"-\frac{24}{25}": r"\frac{24}{25}",
    r"3R^2": "3",
}


@pytest.mark.parametrize("reference", FRAGMENTS)
def test_a_reference_is_right_against_itself_and_its_fragment_is_wrong(reference):
    for text in (rf"So it is $\boxed{{{reference}}}$.", f"The answer is ${reference}$."):
        assert math_verify.right(reference, text), text
    assert not math_verify.right(reference, rf"So it is $\boxed{{{FRAGMENTS[reference]}}}$.")


def test_the_child_is_started_without_the_users_script(tmp_path):
    """A user's script without a `__main__` guard is not run again."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from threading import Thread\n"
        "from persyn_datasets.signals.math_verify import right\n"
        "t = Thread(target=lambda: print(right(r'\\sqrt{8}', r'\\boxed{2\\sqrt{2}}')))\n"
        "t.start(); t.join()\n"
    )
    root = str(Path(math_verify.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "PYTHONPATH": root},
    )
    assert done.stdout.split() == ["once", "True"], done.stderr
