"""Quality by tests: 1 if the code of a response passes those of its prompt's column `tests`, else 0
(as HumanEval and MBPP grade; arXiv 2107.03374, §2).

Code and tests run together in a process of their own (`limits.py` in this room says what it may
not). A test is Python, e.g. `assert add(1, 2) == 3`; a cell holds one text, or a list of them.
"""

import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

from persyn_datasets.config.errors import InputError
from persyn_datasets.config.teacher import Message
from persyn_datasets.signals import Facts

FACTS = Facts(name="code-tests", columns=("tests",), cut=0.0)
RULES = 1  # raised whenever a verdict may change
CPU_SECONDS = 10
WALL_SECONDS = 60  # on a busy machine, of the same work
MEMORY_BYTES = 2**30
LIMITS = Path(__file__).parent / "limits.py"

_BLOCK = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*\1", re.M | re.S)
_PYTHON = ("python", "py", "python3")
_NETWORK = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"


def score(
    rows: Sequence[tuple[list[Message], str]], columns: Mapping[str, list[Any]]
) -> list[float | None]:
    """1 where all tests pass within the limits, else 0."""
    programs = [
        f"{code_of(text)}\n\n{_tests(cell)}"
        for (_, text), cell in zip(rows, columns["tests"], strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [float(passed) for passed in pool.map(passes, programs)]


def code_of(response: str) -> str:
    """The Python blocks of a response, one after the other; else its blocks without a language;
    else all of it.
    """
    blocks = [(found[2].lower(), found[3]) for found in _BLOCK.finditer(response)]
    for languages in (_PYTHON, ("",)):
        if code := [text for language, text in blocks if language in languages]:
            return "\n".join(code)
    return response


def passes(program: str) -> bool:
    """Whether a program runs to its end within the limits.

    Its last line writes a word that is new each time: a program that ends before, whatever its
    status, has not passed.
    """
    word = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="persyn-code-") as folder:
        file, reached = Path(folder, "program.py"), Path(folder, word)
        file.write_text(f"{program}\n\nopen({str(reached)!r}, 'w').close()\n", encoding="utf-8")
        limits = [str(CPU_SECONDS), str(MEMORY_BYTES)]
        running = subprocess.Popen(
            [sys.executable, "-I", str(LIMITS), str(file), *limits],
            cwd=folder,
            # Nothing of this process's, which may hold keys.
            env={"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            running.wait(WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, SIGKILL)
            running.wait()
        return running.returncode == 0 and reached.exists()


def check(spec: Mapping[str, Any], prompts: Any) -> None:
    """Every prompt has tests, and this machine can hold a program to its limits.

    Raises:
        InputError: with the row, or with what is not possible here.
    """
    if "tests" not in prompts.column_names:
        raise InputError(
            "quality: code-tests runs the column 'tests' of the prompts, and there is none; they "
            f"have {', '.join(prompts.column_names)}."
        )
    for row, cell in enumerate(prompts["tests"]):
        if not _tests(cell).strip():
            raise InputError(
                f"quality: code-tests: the 'tests' of row {row} are {cell!r}; expected Python, "
                "e.g. `assert add(1, 2) == 3`, or a list of such texts. Remove the row or fill it."
            )
    if sys.platform != "linux" or not passes(""):
        raise InputError(
            "quality: code-tests runs programs without a network, which needs Linux and the right "
            "to create namespaces (`unshare --user --net true` must work); this machine refuses."
        )
    if passes(_NETWORK):
        raise InputError("quality: code-tests: a program here reaches the network; not run.")


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict depends on beside code and tests: Python and the limits."""
    limits = {"cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES}
    return {"rules": RULES, "python": platform.python_version(), **limits}


def _tests(cell: Any) -> str:
    if isinstance(cell, str) or cell is None:
        return cell or ""
    return "\n".join(map(str, cell))
