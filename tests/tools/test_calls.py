"""Tool calls: what Hermes-style texts ask for, whatever a model writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jsonschema", reason="needs the extra `tools`")

from zoomearth_jax.tools.calls import BadCall, Call, mismatch, offer, parse_calls, schema
from zoomearth_jax.tools.image_tool import ImageTool, ToolResult

SIGMA = {"type": "number", "minimum": 0, "maximum": 100}


def nothing(region, context):
    return ToolResult(region)


DENOISE = ImageTool("denoise", "Reduces noise.", nothing, {"sigma": SIGMA, "times": {"type": "integer"}})
ANY = ImageTool("any", "Takes whatever it is given.", nothing, None, "thousandths")
TOOLS = {"denoise": DENOISE, "any": ANY}


def call(arguments, name="denoise"):
    return json.dumps({"name": name, "arguments": arguments})


def parsed(text):
    return parse_calls(text, TOOLS)


GOOD = Call("denoise", (1.0, 2.5, 30.0, 40.0), "", {"sigma": 12.5})
BODY = call({"bbox_2d": [1, 2.5, 30.0, 40], "sigma": 12.5})


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{BODY}\n</tool_call>",
        f"<think>it is noisy</think><tool_call>{BODY}",
        f"<tool_call>{BODY}</tool_call> and so on",
        f"<tool_call>```json\n{BODY}\n```</tool_call>",
        f"<TOOL_CALL >{BODY}</Tool_Call>",
        f"<tool_call>here: {BODY} done",
        f"<tool_call>[{BODY}]</tool_call>",
        f"<think><tool_call>{call({})}</tool_call></think><tool_call>{BODY}</tool_call>",
        "<tool_call>" + json.dumps({"name": "denoise", "parameters": {"bbox_2d": [1, 2.5, 30, 40], "sigma": 12.5}}),
        "<tool_call>" + call(json.dumps({"bbox_2d": [1, 2.5, 30, 40], "sigma": 12.5})),
    ],
)
def test_one_call_in_every_form(text):
    assert parsed(text) == [GOOD]


def test_several_calls_in_one_tag_in_several_and_too_many():
    other = call({"bbox_2d": [0, 0, 1000, 1000], "label": "roof", "mode": {"x": 1}}, "any")
    both = [GOOD, Call("any", (0, 0, 1000, 1000), "roof", {"mode": {"x": 1}})]
    assert parsed(f"<tool_call>{BODY}<tool_call>{other}") == both
    assert parsed(f"<tool_call>{BODY}</tool_call>text<tool_call>{other}</tool_call>") == both
    assert parsed(f"<tool_call>{BODY}\n{other}</tool_call>") == both
    many = parsed(f"<tool_call>{BODY}</tool_call>" * 9)
    assert many[:4] == [GOOD] * 4
    assert many[4:] == [BadCall("", "only 4 calls are made in a turn")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>denoise(1, 2)</tool_call>", "no JSON object"),
        ("<tool_call>", "no JSON object"),
        ('<tool_call>{"name": "denoise", "arguments": {"bbox_2d": [1, 2', "the call is no JSON"),
        ('<tool_call>{"arguments": {}}', 'an object with "name"'),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3, 4]}, "denoize"), "there is denoise, any"),
        ("<tool_call>" + call({}), "'bbox_2d' is a required property"),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3]}), "bbox_2d: [1, 2, 3] is too short"),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3, "4"]}), "bbox_2d.3: '4' is not of type 'number'"),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3, 4], "sigma": 101}), "sigma: 101 is greater than"),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3, 4], "times": 1.5}), "times: 1.5 is not of type 'integer'"),
        ("<tool_call>" + call({"bbox_2d": [1, 2, 3, 4], "path": "/etc"}), "'path' was unexpected"),
        ("<tool_call>" + call("[1"), "the arguments are no JSON object"),
        ("<tool_call>" + call([1]), "is not of type 'object'"),
        ('<tool_call>{"name": "denoise", "arguments": {"bbox_2d": [1, 2, 3, NaN]}}', "no finite number"),
        ('<tool_call>{"name": "any", "arguments": {"bbox_2d": [1, 2, 3, 4], "x": 1e999}}', "no finite number"),
        ('<tool_call>{"name": "any", "arguments": {"bbox_2d": [1, 2, 3, 1' + "0" * 400 + "]}}", "too large"),
        ("<tool_call>" + "[" * 100_000, "the call is no JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, reason):
    (bad,) = parsed(text)
    assert isinstance(bad, BadCall)
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert len(bad.reason) <= 200


def test_texts_without_a_call():
    for text in ("", "no call", f"<think><tool_call>{BODY}</tool_call></think>", '[{"bbox_2d": [1, 2, 3, 4]}]'):
        assert parsed(text) == []


@given(st.text(alphabet=st.sampled_from('<tool_call>/{}[]":,.0129eE-+naN denoise\\bbox_2d\ud800é'), max_size=80))
def test_no_text_is_an_exception(text):
    for start in ("", "<tool_call>", '<tool_call>{"name": "any", "arguments": '):
        for one in parsed(start + text):
            assert isinstance(one, Call | BadCall)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox_2d", "sigma", "label", "x"]), inner)
    ),
    max_leaves=12,
)


@given(values, st.sampled_from(["denoise", "any", "none"]))
def test_no_arguments_are_an_exception(arguments, name):
    (one,) = parsed("<tool_call>" + call(arguments, name) + "</tool_call>")
    if isinstance(one, Call):
        assert one.corners == tuple(map(float, arguments["bbox_2d"]))
        assert mismatch(TOOLS[name], arguments) == ""


def test_tools_are_offered_by_their_schemas_in_the_user_s_words_too():
    text = offer([DENOISE, ANY])
    assert "{tools}" not in text
    lines = text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in lines] == [schema(DENOISE), schema(ANY)]
    function = json.loads(lines[0])["function"]
    assert function["parameters"]["properties"]["sigma"] == SIGMA
    assert function["parameters"]["required"] == ["bbox_2d"]
    assert "thousandths" in lines[1]
    assert offer([ANY], "Use {tools} well.") == f"Use {json.dumps(schema(ANY))} well."
    assert offer([ANY], "Tools:") == f"Tools:\n{json.dumps(schema(ANY))}"
