"""The words of a chat completion: the body that is sent, and what comes back in whatever shape."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from persyn_datasets.config.teacher import Teacher, fold_system
from persyn_datasets.data.tools import to_calls
from persyn_datasets.engines import OF_BODY, Request, Response, answered, ending, failed
from persyn_datasets.engines.server import Fault, message, short, storable

REFUSALS = re.compile(
    "unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|forbidden"
    "|deprecated|only the default|not available|not implemented|removed|cannot be (used|set|spec)"
    "|invalid (param|arg|field)|extra (input|field)|additional propert",
    re.IGNORECASE,
)
# Of chat templates, as servers pass it on: Gemma's, Mistral's.
NO_SYSTEM = re.compile(
    "system (role|message|prompt)s? (is |are )?(not|un)|(roles|messages) must alternate"
    "|only user(,| and) assistant",
    re.IGNORECASE,
)
OPTIONAL = ("temperature", "top_p", "seed", "stop")  # the server's defaults are then in force
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # of vLLM and others; of parts, types
RENAMED = {"max_tokens": "max_completion_tokens"}
# Of answers that another try may give: a provider's, vLLM's and SGLang's, DeepSeek's, GLM's words.
BROKEN_OFF = ("error", "abort", "insufficient_system_resource", "network_error")

logger = logging.getLogger(__name__)


class Refused:
    """The parameters that a teacher's servers do not take, as learnt from their own words."""

    def __init__(self) -> None:
        self.without: set[str] = set()
        self.folds = False  # system messages into the first user turn
        self.renamed: dict[str, str] = {}

    def learn(self, teacher: Teacher, body: dict[str, Any], fault: Fault) -> bool:
        """Whether the request may succeed without, or by another name for, a parameter.

        What is learnt is said once. `max_tokens` is never left out: it bounds the price.
        """
        if fault.status not in (400, 422):
            return False
        if body["messages"][0]["role"] == "system" and NO_SYSTEM.search(fault.words):
            if not self.folds:
                self.folds = True
                logger.warning(
                    "Teacher %r does not accept system messages, so they are put before the first "
                    "user message (%s).",
                    teacher.name,
                    fault,
                )
            return True
        for name, other in RENAMED.items():
            if name in body and other in fault.words:
                if name not in self.renamed:
                    self.renamed[name] = other
                    logger.info("Teacher %r expects %s instead of %s.", teacher.name, other, name)
                return True
        for name in _named(fault):
            # TGI refuses a top_p of 1 as out of its range; 1 is what it does without.
            if name in body and (REFUSALS.search(fault.words) or body[name] == 1):
                if name not in self.without:
                    self.without.add(name)
                    self._say(teacher, name, body[name], fault)
                return True
        return False

    def _say(self, teacher: Teacher, name: str, value: Any, fault: Fault) -> None:
        if (name, value) != ("top_p", 1.0):
            logger.warning(
                "Teacher %r does not take %s, so it is asked without it (%s).",
                teacher.name,
                name,
                fault,
            )


def _named(fault: Fault) -> list[str]:
    """The parameters that a refusal is about: in a field for that, else anywhere in its words."""
    found = [name for name in OPTIONAL if name in set(_fields(fault.body))]
    return found or [
        name for name in OPTIONAL if re.search(rf"(?<![\w.]){name}(?!\w)", fault.words)
    ]


def _fields(body: Any) -> Iterator[str]:
    """OpenAI's `param`, and the ends of pydantic's `loc`."""
    if isinstance(body, list):
        for part in body:
            yield from _fields(part)
    if isinstance(body, dict):
        param, loc = body.get("param"), body.get("loc")
        if isinstance(param, str):
            yield param
        if isinstance(loc, list) and loc:
            yield str(loc[-1])
        for part in body.values():
            yield from _fields(part)


def request_body(request: Request, refused: Refused) -> dict[str, Any]:
    sampling, messages = request.sampling, request.messages
    folds = refused.folds and messages[0]["role"] == "system"
    body = {
        "model": request.teacher.model,
        "messages": fold_system(messages) if folds else messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": request.seed,
        "stop": list(sampling.stop),
        "stream": False,
        **sampling.stated,
        **{key: value for key in OF_BODY if (value := getattr(request.teacher, key))},
        "tools": json.loads(request.tools or "[]"),
    }
    body |= body.pop("extra_body", {})
    return {
        refused.renamed.get(key, key): value
        for key, value in body.items()
        if key not in refused.without and value != []
    }


def read_response(request: Request, output: Any, key: str | None) -> Response:
    """What a server answered.

    A choice that cannot be read, or that a provider broke off, but was billed for, is a response:
    another try would be billed as well.

    Raises:
        Fault: it is no chat completion, and nothing was billed: another try may be one.
    """
    teacher, choice = request.teacher, _choice(output)
    prompt, completion = usage(output)
    reason = choice.get("finish_reason")
    reason = ending(reason) if isinstance(reason, str) else None
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    text, thought = text_of(said.get("content")), thought_of(said)
    if thought and not text and teacher.chat_template_kwargs.get("enable_thinking") is False:
        # vLLM's parser deepseek_r1 takes all for a thought that no tag ends, while the template has
        # ended it in the prompt.
        text, thought = thought, ""
    if reason in BROKEN_OFF or (choice.get("error") and not text):
        words = short(message(choice.get("error") or output), key) if choice.get("error") else ""
        why = f"the server broke off (finish_reason {reason}){': ' * bool(words)}{words}"
        return failed(teacher, why, prompt, completion)
    try:
        calls = _calls(request, said)
    except ValueError as error:
        why = f"a call that cannot be read: {short(str(error), key)}"
        return failed(teacher, why, prompt, completion) | {"finish_reason": reason or "stop"}
    if text is None or not said or not (text or thought or calls or reason):
        if completion:
            why = f"an answer in a shape that is not known: {_shown(choice, key)}"
            return failed(teacher, why, prompt, completion) | {"finish_reason": reason or "stop"}
        raise Fault(f"not a chat completion: {_shown(output, key)}")
    return answered(
        teacher,
        storable(text),
        reason or "stop",
        prompt,
        completion,
        stop=request.sampling.stop,
        why_empty=_why_empty(said, output),
        reasoning=storable(thought),
        reasoning_tokens=reasoning_tokens(output),
        tool_calls=calls,
    )


def _calls(request: Request, said: dict[str, Any]) -> str:
    """What it calls of what was offered. Raises ValueError: that cannot be read, or is too much."""
    calls = to_calls(said.get("tool_calls")) if request.tools else ""
    alone = request.teacher.extra_body.get("parallel_tool_calls") is False
    if calls and alone and len(json.loads(calls)) > 1:
        raise ValueError("it calls several functions, and parallel_tool_calls is false")
    return calls


def _choice(output: Any) -> dict[str, Any]:
    choices = output.get("choices") if isinstance(output, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def text_of(content: Any) -> str | None:
    """A message's text: as it is, or the text parts of a list, without those of thoughts; None if
    it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") in (None, "text", "output_text"):
            text = part.get("text")
            text = text.get("value") if isinstance(text, dict) else text
            if not isinstance(text, str):
                return None
            texts.append(text)
    return "".join(texts)


def thought_of(said: dict[str, Any]) -> str:
    """What a message says beside its content, in the fields that servers have for thoughts; else
    the parts of its content that are thoughts. Empty if there is none.
    """
    for key in THOUGHTS:
        if isinstance(said.get(key), str) and said[key].strip():
            return str(said[key])
    content = said.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(_thought(part) for part in parts if isinstance(part, dict))


def _thought(part: dict[str, Any]) -> str:
    """Anthropic's parts hold a text, Mistral's a list of text parts."""
    if part.get("type") not in THOUGHTS:
        return ""
    held = part.get("thinking") or part.get("reasoning") or part.get("text")
    return text_of(held) or ""


def reasoning_tokens(output: Any) -> int | None:
    """Tokens of the thought, where the server counts them."""
    counts = output.get("usage") if isinstance(output, dict) else None
    counts = counts if isinstance(counts, dict) else {}
    details = [counts.get(key) for key in ("completion_tokens_details", "output_tokens_details")]
    for place in [*details, counts]:
        found = _count(place.get("reasoning_tokens")) if isinstance(place, dict) else None
        if found is not None:
            return found
    return None


def usage(output: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the completion, where they are counted.

    Thoughts are billed: where a server counts them in the total only, they are the completion's.
    """
    counts = output.get("usage") if isinstance(output, dict) else None
    counts = counts if isinstance(counts, dict) else {}
    prompt, completion, total = (
        next((n for name in names if (n := _count(counts.get(name))) is not None), None)
        for names in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens",),
        )
    )
    if total and prompt is not None:
        completion = max(completion or 0, total - prompt)
    return prompt, completion


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return int(value) if value < 2**53 else None


def _why_empty(said: dict[str, Any], output: Any) -> str:
    """Where the words went, if anywhere."""
    for key in (*THOUGHTS, "refusal", "tool_calls"):
        if said.get(key):
            return f"all that it wrote is in the message's {key!r}"
    if reasoning_tokens(output):
        return "all that it wrote is a thought that the server does not show; raise max_tokens"
    return ""


def _shown(output: Any, key: str | None) -> str:
    if isinstance(output, dict):
        output = {k: v for k, v in output.items() if v is not None}
    return short(message(output) if output else json.dumps(output), key)
