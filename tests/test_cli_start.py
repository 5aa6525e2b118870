import os
import subprocess
import sys
from pathlib import Path

import pytest
from pool import make_recipe, save

import persyn_datasets
from persyn_datasets.cli import main


@pytest.mark.parametrize("users", [None, "ACTIVE"])
def test_openmp_waits_without_spinning_unless_the_user_says_so(users):
    code = (
        "import os\nfrom persyn_datasets.cli import main\nmain(['build', 'no.yaml'])\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": users} if users else {}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert run.stdout.strip() == (users or "PASSIVE")


def test_the_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "persyn_datasets", "--version"], capture_output=True, text=True
    )
    assert run.stdout == f"persyn {persyn_datasets.__version__}\n"


@pytest.mark.parametrize("command", ["build", "route", "synthesize", None])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"] if command else ["--help"])
    printed = capsys.readouterr().out
    assert leave.value.code == 0
    expected = {"build": ["--set", "--dry-run", "--output"], None: ["build", "route", "synthesize"]}
    words = expected.get(command, ["--output", "--column", "prompts"])
    assert all(word in printed for word in words)


@pytest.mark.parametrize(
    "code",
    [
        "import persyn_datasets; dir(persyn_datasets)",
        "from persyn_datasets.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from persyn_datasets.cli import main\nassert main(['build', 'no.yaml']) == 1",
        "from persyn_datasets.cli import main\n"
        "assert main(['build', 'paper-math', '--set', 'reward.alhpa=1']) == 1",
        "from persyn_datasets.cli import main\n"
        "assert main(['compare', 'paper-math', '--strategies', 'persyn', '--set', 'x=1']) == 1",
        "from persyn_datasets import Recipe; Recipe.load('paper-math')",
    ],
)
def test_nothing_heavy_is_imported_too_early(code):
    heavy = ["torch", "datasets", "transformers", "numpy", "pyarrow"]
    check = f"import sys\n{code}\nprint('heavy:', sorted(set({heavy}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy: []"


def without_torch(code, *arguments):
    """Run code in a process of its own; whether it executed anything of torch."""
    check = (
        f"import sys\n{code}\nprint('torch', any(m.split('.')[0] == 'torch' for m in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", check, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1] == "torch False"


def test_engines_say_what_they_are_without_torch():
    assert without_torch(
        "from persyn_datasets import Teacher\n"
        "from persyn_datasets.engines import facts_of, names\n"
        "for name in names():\n"
        "    facts_of(Teacher('m', engine=name, base_url='http://h/v1'))"
    )


@pytest.mark.parametrize("quality", ["math-verify", "reward model"])
def test_a_plan_and_a_finished_build_need_no_torch(quality, chat_model, reward_model, tmp_path):
    quality = {"reward_model": reward_model} if quality == "reward model" else quality
    values = make_recipe(tmp_path, chat_model, sampling={"max_tokens": 4}, quality=quality)
    values["teachers"].append({"name": "local", "model": chat_model})
    recipe, output = save(tmp_path, values), str(tmp_path / "out")
    assert main(["build", recipe, "--output", output]) == 0
    command = "from persyn_datasets.cli import main\nassert main() == 0"
    assert without_torch(command, "build", recipe, "--output", output)
    if quality == "math-verify":  # a plan looks into a reward model
        assert without_torch(command, "build", recipe, "--output", output, "--dry-run")


def test_a_plan_in_a_process_that_goes_on_leaves_torch_to_it(chat_model, tmp_path):
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model))
    code = (
        "from persyn_datasets.cli import main\n"
        "assert main(['build', *sys.argv[1:], '--dry-run']) == 0\n"
        "from transformers import AutoModelForCausalLM\n"
        f"AutoModelForCausalLM.from_pretrained({chat_model!r})"
    )
    assert not without_torch(code, recipe)
