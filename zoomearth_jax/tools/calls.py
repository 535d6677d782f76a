"""Tool calls as Qwen and Hermes models write them: offering tools by JSON schemas, and reading `<tool_call>` out of a text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jsonschema
from jsonschema.exceptions import best_match

from zoomearth_jax.data_pipeline.text.protocol import without_thoughts
from zoomearth_jax.tools.image_tool import ImageTool

BOX = "bbox_2d"
MOST_CALLS = 4  # of one turn
PLACE = "{tools}"  # of the schemas in a user's instruction
_CALL = re.compile(r"<tool_call\s*>(.*?)(?=</tool_call\s*>|<tool_call\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-z]*", re.IGNORECASE)
_FRAMES = {
    "overview": "px of the picture that you see first",
    "original": "px of the original image",
    "thousandths": "thousandths of the image's width and height",
}
_WORDS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""  # as Qwen2.5's own chat template has it, which its models were trained with


class Call(NamedTuple):
    """A call that fits its tool's schema.

    Attributes:
        tool: its name.
        corners: of the box, finite, in the tool's frame; nothing else is known of them.
        label: what the place is called.
        parameters: those of the tool.
    """

    tool: str
    corners: tuple[float, float, float, float]
    label: str
    parameters: dict[str, Any]


class BadCall(NamedTuple):
    """A call that can't be made: the tool's name as far as it is known, and why."""

    tool: str
    reason: str


def schema(tool: ImageTool) -> dict[str, Any]:
    """A tool as a function in OpenAI's form, with its box."""
    box = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": f"x1, y1, x2, y2 in {_FRAMES[tool.frame]}",
    }
    properties = {BOX: box, "label": {"type": "string", "description": "what is there"}, **(tool.parameters or {})}
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": [BOX]}
    if tool.parameters is not None:
        parameters["additionalProperties"] = False
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def offer(tools: Iterable[ImageTool], words: str = "") -> str:
    """The text that offers tools to a policy.

    Args:
        words: the user's own, with {tools} where the schemas go, at the end without it; by default those of Qwen2.5.
    """
    schemas = "\n".join(json.dumps(schema(tool), ensure_ascii=False) for tool in tools)
    words = words or _WORDS
    return words.replace(PLACE, schemas) if PLACE in words else f"{words}\n{schemas}"


def parse_calls(text: str, tools: dict[str, ImageTool]) -> list[Call | BadCall]:
    """The calls of a text, outside of its thoughts, in order; empty where it makes none. It never raises.

    Tags may be left open, and a tag may hold several objects, in a list or one after the other, within a code fence or not.
    """
    calls: list[Call | BadCall] = []
    for found in _CALL.finditer(without_thoughts(text)):
        calls += [_call(value, tools) for value in _objects(found[1])]
    if len(calls) > MOST_CALLS:
        calls = [*calls[:MOST_CALLS], BadCall("", f"only {MOST_CALLS} calls are made in a turn")]
    return calls


def _objects(body: str) -> list[Any]:
    """The JSON objects of a tag's text; what can't be read is an exception among them."""
    body = _FENCE.sub("", body).strip()
    values: list[Any] = []
    while (begin := min((i for i in map(body.find, "{[") if i >= 0), default=-1)) >= 0 and len(values) <= MOST_CALLS:
        try:
            value, end = _DECODER.raw_decode(body, begin)
        except (ValueError, RecursionError) as error:
            return [*values, error]
        values += value if isinstance(value, list) else [value]
        body = body[end:]
    return values or [ValueError("no JSON object")]


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.20} is no finite number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


def _call(value: Any, tools: dict[str, ImageTool]) -> Call | BadCall:
    if isinstance(value, Exception):
        return BadCall("", f"the call is no JSON ({value!s:.80})")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return BadCall("", 'a call is an object with "name" and "arguments"')
    name = value["name"]
    given: Any = value.get("arguments", value.get("parameters", {}))
    if name not in tools:
        return BadCall(name[:64], f"there is no tool of that name; there is {', '.join(tools)}")
    try:
        given = _DECODER.decode(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return BadCall(name, "the arguments are no JSON object")
    reason = mismatch(tools[name], given)
    if reason:
        return BadCall(name, reason)
    rest = {key: part for key, part in given.items() if key not in (BOX, "label")}
    return Call(name, tuple(map(float, given[BOX])), str(given.get("label", ""))[:200], rest)  # type: ignore[arg-type]


def mismatch(tool: ImageTool, given: Any, boxed: bool = True) -> str:
    """What doesn't fit a tool's schema; empty if all does.

    Args:
        boxed: whether the box is among the arguments.
    """
    expected = schema(tool)["function"]["parameters"] | ({} if boxed else {"required": []})
    try:
        error = best_match(jsonschema.Draft202012Validator(expected).iter_errors(given))
        _ = [float(part) for part in given.get(BOX, ())] if error is None else []
    except (OverflowError, RecursionError):
        return "a number is too large, or the arguments are too deep"
    except Exception as broken:  # of many kinds, by a schema that is none
        return f"the tool's own schema is broken ({type(broken).__name__})"
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return (f"{place}: {error.message}" if place else error.message)[:200]
