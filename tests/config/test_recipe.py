import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pool import make_recipe, save

from persyn_datasets import InputError, Recipe, Sampling, Teacher
from persyn_datasets.config.recipe import find
from persyn_datasets.hub.cards import to_yaml


@pytest.fixture
def values(tmp_path):
    return make_recipe(tmp_path, "org/student") | {
        "sampling": {"temperature": 0.5, "max_tokens": 64}
    }


def test_a_teachers_own_sampling_overrides_the_recipes(values):
    values["teachers"][1]["sampling"] = {"max_tokens": 8, "stop": ["#"]}
    recipe = Recipe.from_dict(values)
    assert recipe.teachers[0].sampling == Sampling(temperature=0.5, max_tokens=64)
    assert recipe.teachers[1].sampling == Sampling(temperature=0.5, max_tokens=8, stop=("#",))


def test_a_recipe_made_in_python_shares_its_sampling_too(values):
    read = Recipe.from_dict(values)
    teachers = (Teacher("a"), Teacher("b", sampling=Sampling(seed=4)))
    made = Recipe("x", read.student, read.prompts, teachers, sampling=Sampling(max_tokens=8))
    assert [t.sampling for t in made.teachers] == [Sampling(max_tokens=8), Sampling(seed=4)]


def test_it_goes_to_json_and_back(values, tmp_path):
    recipe = Recipe.load(save(tmp_path, values))
    assert (
        Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
        == recipe
        == Recipe.from_dict(values)
    )


def test_defaults_are_the_papers(values):
    for key in ("calibration", "router"):
        del values[key]
    recipe = Recipe.from_dict(values)
    assert (recipe.calibration.size, recipe.reward.alpha, recipe.quality) == (
        2500,
        0.4,
        "math-verify",
    )
    assert recipe.router.backbone == "Qwen/Qwen2.5-1.5B"


def test_set_overrides_anything(values, tmp_path):
    sets = [
        "reward.alpha=0.1",
        "teachers.1.sampling.temperature=0",
        "prompts.split=test",
        "router.learning_rate=1e-4",
    ]
    recipe = Recipe.load(
        save(tmp_path, values),
        [
            *sets,
            "quality={reward_model: org/rm}",
            "reward.normalize=rank",
            "reward.learnability=rsr",
        ],
    )
    assert (recipe.reward.alpha, recipe.reward.normalize, recipe.prompts.split) == (
        0.1,
        "rank",
        "test",
    )
    assert recipe.reward.learnability == "rsr"
    assert [t.sampling.temperature for t in recipe.teachers] == [0.5, 0, 0.5]
    assert (recipe.quality, recipe.router.learning_rate) == ({"reward_model": "org/rm"}, 1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.alpha", "--set reward.alpha: expected key=value"),
        ("teachers.7.name=x", "no '7' in a list of 3"),
        ("teachers.first.name=x", "no 'first' in a list of 3"),
        ("name.x=1", "no 'x' in 'tiny'"),
        ("reward.alhpa=1", "unknown key 'reward.alhpa'; did you mean 'alpha'"),
        ("reward.alpha={", "--set reward.alpha={"),
        ("teachers.0.sampling=hot", "teachers.0.sampling"),
        ("sampling=hot", "sampling"),
        ("student=gpt", "student"),
        ("teachers=gpt", "teachers"),
        ("calibration.size=many", "calibration.size: found 'many'"),
        ("calibration.size=2.5", "calibration.size: found 2.5"),
        ("teachers.0.engine=[magic]", "teachers.0.engine: found"),
        ("teachers.0.sampling.top_p=0", "top_p is 0"),
        ("teachers.0.sampling.max_token=9", "did you mean 'max_tokens'"),
        ("teachers.0.price={input: 1}", "teachers.0.price.output' is missing"),
        ("router.holdout=1", "holdout is 1"),
        ("reward.normalize=max", "reward.normalize: found 'max'"),
        ("student.chat_template_kwargs={tokenize: true}", "chat_template_kwargs has 'tokenize'"),
        ("reward=null", "reward"),
        ("teachers.0=null", "teachers.0"),
    ],
)
def test_wrong_values_are_refused_with_their_place(values, tmp_path, override, message):
    with pytest.raises(InputError) as error:
        Recipe.load(save(tmp_path, values), [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "key", ["name", "student", "prompts", "teachers", "prompts.path", "student.model"]
)
def test_a_missing_key_is_named(values, key):
    section, _, last = key.rpartition(".")
    del (values[section] if section else values)[last]
    with pytest.raises(InputError, match=f"'{key}'"):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "found a list; expected the keys of a recipe"),
        (b"", r"r\.yaml: the file is empty.*name, student, prompts, teachers"),
        (b"# name: x\n---\n", r"r\.yaml: the file is empty.*name, student, prompts, teachers"),
        (b"name", "found the text 'name'; expected the keys of a recipe"),
        (b"3", "found 3; expected the keys of a recipe"),
        (b"name: {", "not a YAML text"),
        (b"name: caf\xe9", "not a YAML text"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Recipe.load(str(tmp_path / "r.yaml"))


def test_every_recipe_that_ships_loads_by_its_name():
    files = sorted((Path(__file__).parents[2] / "builders").glob("*.yaml"))
    assert "quickstart" in [f.stem for f in files]
    for file in files:
        path, from_the_hub = find(file.stem)
        assert path.samefile(file) and not from_the_hub
        assert Recipe.load(file.stem).name == yaml.safe_load(file.read_text())["name"]
    with pytest.raises(InputError, match="'quickstrat'.*quickstart"):
        Recipe.load("quickstrat")


def on_the_hub(hub, **changes):
    """A recipe as somebody else has published it."""
    teachers = [{"model": "org/a"}, {"model": "org/b"}]
    values = {
        "name": "x",
        "student": {"model": "org/s"},
        "prompts": {"path": "org/p"},
        "teachers": teachers,
    } | changes
    hub.put("org/theirs", {"recipe.yaml": yaml.safe_dump(values)})
    return "org/theirs"


def test_a_recipe_from_the_hub_is_read(hub):
    assert [t.model for t in Recipe.load(on_the_hub(hub), ["reward.alpha=0.2"]).teachers] == [
        "org/a",
        "org/b",
    ]
    with pytest.raises(InputError, match=r"recipe\.yaml.*'org/nothing'"):
        Recipe.load("org/nothing")


SERVED = {"model": "m", "engine": "endpoint", "base_url": "http://them/v1"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"quality": "os.system"}, "quality"),
        ({"student": {"model": "org/s", "trust_remote_code": True}}, "student.trust_remote_code"),
        (
            {"quality": {"reward_model": "org/r", "trust_remote_code": True}},
            "quality.trust_remote_code",
        ),
        ({"prompts": {"path": str(Path(__file__))}}, "prompts.path"),
        ({"teachers": [{"model": "org/a"}, SERVED]}, "teachers.1.base_url"),
        (
            {"teachers": [{"model": "org/a"}, SERVED | {"base_url": ["http://them/v1"]}]},
            "teachers.1.base_url.0",
        ),
        ({"router": {"backbone": str(Path(__file__).parent)}}, "router.backbone"),
    ],
)
def test_a_recipe_from_the_hub_touches_nothing_that_the_user_did_not_name(hub, changes, key):
    recipe = on_the_hub(hub, **changes)
    with pytest.raises(InputError, match=f"{key}.*--set {key}="):
        Recipe.load(recipe)
    overrides = {
        "quality": "math-verify",
        "student.trust_remote_code": "false",
        "quality.trust_remote_code": "false",
    }
    assert Recipe.load(
        recipe, [f"{key}={overrides.get(key, 'http://mine/v1' if 'url' in key else 'org/mine')}"]
    )


def test_a_recipe_from_the_hub_cannot_have_a_variable_sent(hub):
    recipe = on_the_hub(
        hub, teachers=[{"model": "org/a"}, SERVED | {"api_key_env": "AWS_SECRET_ACCESS_KEY"}]
    )
    with pytest.raises(InputError, match=r"teachers\.1\.api_key_env to 'AWS_SECRET_ACCESS_KEY'"):
        Recipe.load(recipe, ["teachers.1.base_url=http://mine/v1"])


def test_a_strategys_alpha_is_derived_and_the_users_is_kept(values):
    values["reward"] = {"alpha": 0.3, "normalize": "rank"}
    recipe = Recipe.from_dict(values | {"strategy": "quality-only"})
    assert (recipe.effective_reward.alpha, recipe.effective_reward.normalize) == (0.0, "rank")
    again = replace(recipe, strategy="persyn")
    assert again == Recipe.from_dict(values) and again.effective_reward.alpha == 0.3
    assert replace(recipe, strategy="learnability-only").effective_reward.alpha == 1.0
    assert recipe.to_dict()["reward"]["alpha"] == 0.3


def test_another_shared_sampling_counts_where_a_teacher_has_no_own(values):
    values["teachers"][1]["sampling"] = {"max_tokens": 8, "seed": 0}
    recipe = replace(Recipe.from_dict(values), sampling=Sampling(seed=7, temperature=1.0))
    assert [t.sampling for t in recipe.teachers] == [
        Sampling(seed=7, temperature=1.0),
        Sampling(seed=0, temperature=1.0, max_tokens=8),
        Sampling(seed=7, temperature=1.0),
    ]
    teachers = (Teacher("a"), Teacher("b", sampling=Sampling(seed=4)))
    made = replace(recipe, teachers=teachers, sampling=Sampling(max_tokens=9))
    assert [t.sampling for t in made.teachers] == [Sampling(max_tokens=9), Sampling(seed=4)]


def written(folder, recipe):
    """What a build writes down."""
    path = folder / "written.yaml"
    path.write_text(to_yaml(recipe.to_dict()))
    return str(path)


def test_a_written_recipe_is_overridden_like_the_one_it_came_from(values, tmp_path):
    values["teachers"][1]["sampling"] = {"max_tokens": 8}
    recipe = Recipe.from_dict(values)
    path = written(tmp_path, recipe)
    assert Recipe.load(path) == recipe
    found = Recipe.load(path, ["sampling.seed=7", "sampling.max_tokens=5"])
    assert [(t.sampling.seed, t.sampling.max_tokens) for t in found.teachers] == [
        (7, 5),
        (7, 8),
        (7, 5),
    ]
    found = Recipe.load(path, ["teachers.0.sampling.temperature=0"])
    assert [t.sampling.temperature for t in found.teachers] == [0, 0.5, 0.5]


def test_what_is_empty_in_a_written_recipe_can_be_set(values, tmp_path):
    path = written(tmp_path, Recipe.from_dict(values))
    prices = [f"teachers.{i}.price.{key}=1" for i in range(3) for key in ("input", "output")]
    found = Recipe.load(path, [*prices, "budget.usd=5", "training.lora.r=4"])
    assert (found.budget.usd, found.training.lora.r) == (5, 4)
    assert found.teachers[2].price.output == 1


def test_a_recipe_that_version_0_1_0_wrote_out_shares_its_sampling(values, tmp_path):
    """It wrote every teacher's whole sampling; what equals the shared one was not its own."""
    recipe = Recipe.from_dict(values)
    keys = ("temperature", "top_p", "max_tokens", "seed")  # and stop
    sampling = {k: getattr(recipe.sampling, k) for k in keys} | {"stop": []}
    old = recipe.to_dict() | {"sampling": sampling}
    for i, teacher in enumerate(old["teachers"]):
        teacher["sampling"] = sampling | ({"temperature": 0.0} if i == 1 else {})
    (tmp_path / "old.yaml").write_text(to_yaml(old))
    found = Recipe.load(str(tmp_path / "old.yaml"), ["sampling.seed=7"])
    assert [(t.sampling.seed, t.sampling.temperature) for t in found.teachers] == [
        (7, 0.5),
        (7, 0.0),
        (7, 0.5),
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "my-org/math", "math: hard?", "a\\b", "a\nb", " "])
def test_a_name_that_is_no_folders_name_is_refused(values, name):
    with pytest.raises(InputError, match="name is"):
        Recipe.from_dict(values | {"name": name})


@pytest.mark.parametrize("name", ["math", "math (v2)", "数学", "größer 1.5B", ".hidden", "a-b_c.d"])
def test_other_names_are_fine(values, name):
    assert Recipe.from_dict(values | {"name": name}).title == name


def test_a_key_that_was_removed_loads_empty_and_else_says_what_to_do(tmp_path, chat_model):
    values = make_recipe(tmp_path, chat_model)
    values["router"]["compare_backbones"] = []
    assert Recipe.from_dict(values) == Recipe.from_dict(make_recipe(tmp_path, chat_model))
    values["router"]["compare_backbones"] = [chat_model]
    with pytest.raises(InputError, match=r"router\.compare_backbones"):
        Recipe.from_dict(values)
