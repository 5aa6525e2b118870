"""A shared cache that only its administrator may write to, as on clusters."""

import os
import shutil
import subprocess

import pytest
from pool import COMMAND, make_recipe, save

# Root may write everywhere, unless it gives these rights up.
RIGHTS = "--bounding-set=-dac_override,-dac_read_search,-fowner"


@pytest.fixture
def build(chat_model, tmp_path):
    root = os.getuid() == 0
    if root and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv")
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    recipe = save(tmp_path, make_recipe(tmp_path, chat_model))
    own = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def run(**variables):
        kept = {key: value for key, value in os.environ.items() if key != "PERSYN_JOURNAL"}
        command = [*COMMAND, "build", recipe, "--output", str(tmp_path / "out")]
        return subprocess.run(
            [*(["setpriv", RIGHTS] if root else []), *command],
            env=kept | own | variables,
            capture_output=True,
            text=True,
        )

    yield run
    home.chmod(0o755)


@pytest.mark.slow
def test_the_journal_goes_where_the_user_says(build, tmp_path):
    refused = build()
    assert refused.returncode != 0
    assert "PERSYN_JOURNAL" in refused.stderr and "Traceback" not in refused.stderr
    done = build(PERSYN_JOURNAL=str(tmp_path / "journal"))
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "out").rglob("README.md")]
