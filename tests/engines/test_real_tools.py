"""Functions are offered to a real server, vLLM with a tool parser, and what it calls is read."""

import json
import sys
from importlib.util import find_spec

import pytest
from real_server import server
from thinker import save_speaker

from persyn_datasets import Generate, Sampling, Teacher

pytestmark = pytest.mark.skipif(
    not find_spec("vllm"), reason="vllm is not installed: `make test-vllm` brings its own"
)
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a city.", "parameters": PLACE},
    }
]
# Writes the tools, and then the messages as they come.
TEMPLATE = (
    "{{ bos_token }}{{ tools | tojson if tools }}{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
TAGS = ("<tool_call>", "</tool_call>")


def test_vllms_server(models_folder, tmp_path):
    says = [">", TAGS[0], CALL, TAGS[1], "</s>"]
    model = save_speaker(models_folder / "caller", TEMPLATE, says, [*TAGS, CALL])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"]
    parser = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with server(tmp_path / "log", *command, *parser) as base_url:
        sampling = Sampling(temperature=0, max_tokens=16)
        teacher = Teacher(model, engine="endpoint", base_url=base_url, sampling=sampling)
        batch = {"prompt": ["Is it warm in Rome?"] * 2, "tools": [TOOLS, None]}
        [called], [spoken] = Generate([teacher])(batch)["responses"]
    assert (called["text"], called["error"], called["finish_reason"]) == ("", "", "stop")
    assert json.loads(called["tool_calls"]) == [{"type": "function", "function": json.loads(CALL)}]
    assert (spoken["text"], spoken["tool_calls"]) == (f"{TAGS[0]}{CALL}{TAGS[1]}", "")
    assert called["prompt_tokens"] > spoken["prompt_tokens"] + 100  # it has seen them
