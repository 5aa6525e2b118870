"""No key in what is published: addresses, and what a server or vLLM is handed as it stands."""

import pytest
from pool import make_recipe

from persyn_datasets import InputError, Recipe, Teacher
from persyn_datasets.config.evaluation import Evaluation

KEY = "sk-planted-123"
ADDRESSES = [
    f"https://me:{KEY}@host/v1",
    f"https://{KEY}@host/v1",
    f"https://h/v1?api_key={KEY}",
    f"https://h/v1?api-version=1&k={KEY}",
    f"https://h/v1?{KEY}",
    f"https://h/v1?sv=1&se=2&sp=r&sig={KEY}",
    f"https://h/v1?X-Amz-Algorithm=a&X-Amz-Signature={KEY}",
    f"https://h/v1?API%5FKEY={KEY}",
    f"https://h/v1#{KEY}",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_may_hold_a_key_is_refused(url):
    with pytest.raises(InputError, match=r"base_url.*api_key_env") as error:
        Teacher("m", engine="endpoint", base_url=["http://a/v1", url])
    assert KEY not in str(error.value)
    with pytest.raises(InputError, match=r"evaluation\.data\.persyn_math") as error:
        Evaluation(tasks=("persyn_math",), data={"persyn_math": url.replace("/v1", "/a.csv")})
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080/v1",
        "https://h/openai/deployments/m?api-version=2024-06-01",
        "http://[::1]:8000/v1/",
    ],
)
def test_an_address_without_a_key_stays(url):
    assert Teacher("m", engine="endpoint", base_url=url).base_urls == (url,)


@pytest.mark.parametrize("url", ["https://h/a.parquet?download=true", "data/part?.jsonl#1", "~/a"])
def test_data_without_a_key_stays(url):
    assert Evaluation(data={"persyn_math": url}).data == {"persyn_math": url}


SENT = [
    ({"api_key": KEY}, "api_key"),
    ({"apiKey": KEY}, "apiKey"),
    ({"extra_headers": {"X-Goog-Api-Key": KEY}}, "extra_headers.X-Goog-Api-Key"),
    ({"headers": {"Authorization": f"Bearer {KEY}"}}, "headers.Authorization"),
    ({"models": [{"aws_secret_access_key": KEY}]}, "models.0.aws_secret_access_key"),
    ({"password": KEY, "user": "me"}, "password"),
    ({"hf_token": KEY}, "hf_token"),
]


@pytest.mark.parametrize(("values", "named"), SENT)
@pytest.mark.parametrize("key", ["extra_body", "engine_args"])
def test_a_key_beside_the_address_is_refused(key, values, named):
    with pytest.raises(InputError, match=f"{key}.{named} .*environment") as error:
        Teacher("m", **{key: values})
    assert KEY not in str(error.value)


def test_what_is_only_called_so_stays():
    """Counts, schemas, and a name for requests that begin alike are no keys."""
    body = {
        "max_tokens_per_word": 3,
        "stop_token_ids": [1],
        "allowed_token": 7,
        "prompt_cache_key": "demo",
        "guided_json": {"properties": {"key": {"type": "string"}, "token": {"type": "string"}}},
    }
    assert Teacher("m", extra_body=body).extra_body == body
    assert Teacher("m", engine_args={"hf_token": True}).engine_args == {"hf_token": True}


@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}", f"${KEY}"])
def test_a_key_in_place_of_its_variable_is_refused(value):
    with pytest.raises(InputError, match="api_key_env") as error:
        Teacher("m", engine="endpoint", base_url="http://h/v1", api_key_env=value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("quality", "named"),
    [
        ({"reward_model": "org/r", "base_url": f"http://h/v1?k={KEY}"}, "quality.base_url"),
        ({"reward_model": "org/r", "base_url": "http://h", "api_key_env": KEY}, "api_key_env"),
        ({"judge": {"model": "m", "base_url": f"http://u:{KEY}@h/v1"}}, "judge.base_url"),
        ({"judge": {"model": "m", "extra_body": {"api_key": KEY}}}, "judge.extra_body.api_key"),
    ],
)
def test_a_quality_at_a_server_is_stated_without_its_key(tmp_path, quality, named):
    """Refused when the recipe is read: a build writes it into its folder."""
    with pytest.raises(InputError, match=named) as error:
        Recipe.from_dict(make_recipe(tmp_path, "org/student") | {"quality": quality})
    assert KEY not in str(error.value)
