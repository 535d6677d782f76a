"""Files of questions as programs, editors and mistakes leave them: what is in questions.jsonl, and what becomes of it."""

import json

ROW = {"image": "a.png", "question": "Which roof?", "answer": "red", "level": "object", "box": [10, 20, 200, 150]}
PX = (500, 300)  # of a.png


def row(**changes) -> dict:
    return {**ROW, **changes}


def without(key: str) -> dict:
    return {k: v for k, v in ROW.items() if k != key}


def lines(*rows, end="\n", ascii=False) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=ascii)) + end for r in rows)


def good() -> dict[str, tuple[bytes, int]]:
    """Name -> bytes, and how many rows are taken."""
    two = lines(ROW, row(question="Où est le café? 屋根 \U0001f600"))
    inside = [f"a{c}b" for c in "\u2028\u2029\x85\x0b\x0c\x1c\x1e\ufeff\u200b"]
    cases = {
        "plain": (two.encode(), 2),
        "ascii escapes": (lines(row(question="屋根 \U0001f600 é"), ascii=True).encode(), 1),
        "no last line end": (two.rstrip().encode(), 2),
        "CRLF": (two.replace("\n", "\r\n").encode(), 2),
        "CR": (two.replace("\n", "\r").encode(), 2),
        "blank lines": (("\n\n  \t\n" + two.replace("\n", "\n \n\r\n")).encode(), 2),
        "blanks around": (two.replace("\n", "  \t\n ").encode(), 2),
        "BOM": (two.encode("utf-8-sig"), 2),
        "two files with BOMs, joined": (two.encode("utf-8-sig") * 2, 4),
        "separators inside texts": (lines(*[row(question=text, label=text) for text in inside]).encode(), len(inside)),
        "no box": (lines(without("box")).encode(), 1),
        "empty box": (lines(row(box=[])).encode(), 1),
        "nulls as pandas writes them": (
            lines(row(box=None, label=None, thoughts=None, category=None, choices=None)).encode(),
            1,
        ),
        "all fields": (
            lines(row(label="roof", thoughts=["a", "b"], category="Color", choices=["red", "blue"])).encode(),
            1,
        ),
        "a chain of looks": (
            lines(
                row(
                    box=None,
                    looks=[{"box": [0, 0, 250, 150]}, {"box": [10, 20, 30, 40], "label": "roof", "thought": "look"}],
                )
            ).encode(),
            1,
        ),
        "all boxes": (lines(row(boxes=[[0, 0, 10, 10], [490, 290, 501, 301]]), row(boxes=[])).encode(), 2),
        "no looks": (lines(row(looks=[])).encode(), 1),
        "box of real numbers": (lines(row(box=[0.25, 1e1, 99.5, 300.0])).encode(), 1),
        "box partly outside": (lines(row(box=[-5, 20, 501, 301])).encode(), 1),
        "box under a px": (lines(row(box=[10.1, 20.1, 10.2, 20.2])).encode(), 1),
        "box at the border": (lines(row(box=[499, 299, 500, 300])).encode(), 1),
        "long texts": (lines(row(thoughts=["x" * 100_000, "y" * 100_000])).encode(), 1),
        "image by its subfolder": (
            lines(row(image="images/a.png"), row(image="./a.png"), row(image="a.png/")).encode(),
            3,
        ),
        "markup in a question": (lines(row(question='<answer> {"bbox_2d": [1, 2, 3, 4]} <|im_end|>')).encode(), 1),
        "row of 1 MB less a little": (lines(row(label="x" * ((1 << 20) - 200))).encode(), 1),
        "answers that look like other things": (
            lines(*[row(answer=answer) for answer in ("3", "null", "NaN", "true", '"', "\\", "[1]")]).encode(),
            7,
        ),
    }
    for encoding in ("utf-16", "utf-32"):
        cases[f"{encoding} with its mark"] = (two.encode(encoding), 2)
    cases["utf-16-be with its mark"] = (("\ufeff" + two).encode("utf-16-be"), 2)
    return cases


def bad() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes, and a part of what is said."""
    text, cases = lines(ROW), {}
    for key in ("image", "question", "answer", "level"):
        cases[f"no {key}"] = (without(key), f"line 1: field '{key}' is missing; it must be a text")
        cases[f"null {key}"] = (row(**{key: None}), f"line 1: field '{key}' is null; it must be a text")
        for value in (3, 2.5, True, [], {}, ["red"]):
            cases[f"{key} {value}"] = (row(**{key: value}), f"field '{key}' must be a text, not {json.dumps(value)}")
        cases[f"empty {key}"] = (row(**{key: " "}), "line 1: ")
    cases["number"] = (row(answer=3), 'must be a text, not 3; put it in quotes: "3"')
    for key, meant in {
        "bbox": "box",
        "Box": "box",
        "img": "image",
        "image_name": "image",
        "Answer": "answer",
        "ground_truth": "answer",
        "type": "level",
        "lable": "label",
        "choice": "choices",
        "catagory": "category",
    }.items():
        cases[f"unknown {key}"] = (row(**{key: None}), f"unknown field \"{key}\"; did you mean '{meant}'?")
    cases["unknown xyz"] = (row(xyz=1), 'unknown field "xyz"; known: image, question, answer')
    for value in (
        "1,2,3,4",
        True,
        3,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        ["1", "2", "3", "4"],
        [1, 2, 3, None],
        [1, 2, 3, True],
    ):
        cases[f"box {value}"] = (row(box=value), "field 'box' must be four finite numbers or an empty list, not")
    cases["box as an object"] = (row(box={"x1": 1, "y1": 2, "x2": 3, "y2": 4}), "field 'box' must be four")
    for box, fault in {
        (200, 20, 10, 150): "degenerate",
        (10, 20, 10, 150): "degenerate",
        (0, 0, 0, 0): "degenerate",
        (500, 20, 600, 150): "outside the image",
        (-9, -9, -1, -1): "outside the image",
        (10**250, 0, 10**260, 9): "outside the image",
        (0.1, 0.2, 0.3, 0.4): "normalised; corners are in px",
        (0, 0, 1, 1): "normalised; corners are in px",
    }.items():
        cases[f"box {box}"[:60]] = (row(box=list(box)), f"line 1: box is {fault}")
    for value in ("ab", ["a"], ["a", "b", "c"], ["a", None], [1, 2], {"a": 1, "b": 2}):
        cases[f"thoughts {value}"] = (row(thoughts=value), "field 'thoughts' must be a list of two texts")
    look = {"box": [10, 20, 200, 150], "label": "roof", "thought": "look"}
    cases["thought without looks"] = (row(thought="see"), "field 'thought' goes with 'looks'; did you mean 'thoughts'?")
    cases["looks and a box"] = (row(looks=[look], box=[1, 2, 3, 4]), "field 'looks' doesn't go with 'box', 'geometry'")
    cases["looks and thoughts"] = (
        row(box=None, looks=[look], thoughts=["a", "b"]),
        "field 'looks' doesn't go with 'box'",
    )
    for value in ("look", {"box": [1, 2, 3, 4]}, [[1, 2, 3, 4]], [None]):
        cases[f"looks {value}"] = (row(box=None, looks=value), "field 'looks' must be a list of objects")
    for change, fault in (
        ({"box": None}, "look 2: field 'box' is null"),
        ({"box": []}, "look 2: field 'box' must not be empty"),
        ({"bbox": [1, 2, 3, 4]}, "look 2: unknown field \"bbox\"; did you mean 'box'?"),
        ({"thought": 3}, "look 2: field 'thought' must be a text, not 3"),
        ({"box": [600, 20, 700, 150]}, "box is outside the image"),
        ({"label": "{roof}"}, "hold marks of the reply"),
    ):
        cases[f"a second look with {change}"] = (row(box=None, looks=[look, look | change]), fault)
    for value in ("red", [1, 2], [None]):
        cases[f"choices {value}"] = (row(choices=value), "field 'choices' must be a list of texts")
    for value in ([1, 2, 3, 4], [[1, 2, 3]], [[]], [[1, 2, 3, "4"]], "x"):
        cases[f"boxes {value}"] = (row(boxes=value), "field 'boxes' must be a list of boxes, four finite numbers each")
    cases["boxes outside"] = (row(boxes=[[1, 2, 3, 4], [600, 0, 700, 9]]), "line 1: box is outside the image")
    cases["label 3"] = (row(label=3), "field 'label' must be a text, not 3")
    cases["level Object"] = (
        row(level="Object"),
        "level 'Object' is none of global, region, object; did you mean 'object'?",
    )
    cases["level city"] = (row(level="city"), "level 'city' is none of global, region, object")
    for name in (
        "b.png",
        "x" * 300,
        "x/" * 3000,
        "images",
        ".",
        "a\\b.png",
        "\u2028.png",
        "a\nb",
        "questions.jsonl/x",
    ):
        cases[f"image {name[:20]!r}"] = (row(image=name), "line 1: image ")
    for name in ("../a.png", "/etc/passwd", "x/../../a.png"):
        cases[f"image {name}"] = (row(image=name), "is not inside the folder")
    cases["image is the file itself"] = (row(image="questions.jsonl"), "image can't be read")
    for marks in ("</think>", "<answer>red</answer>", "x<think>"):
        cases[f"thoughts {marks}"] = (row(thoughts=[marks, ""]), "hold marks of the reply")
        cases[f"answer {marks}"] = (row(answer=marks), "hold marks of the reply")
    cases["label with braces"] = (row(label="a {b}"), "hold marks of the reply")
    for broken, said in {
        text[:-2]: "line 1: not JSON (Expecting ',' delimiter",
        text.replace("}", ",}"): "line 1: not JSON (",
        text.replace("\n", ",\n"): "write one JSON object a line",
        text.replace('"red"', "NaN"): "line 1: NaN is not JSON",
        text.replace("200", "Infinity"): "line 1: Infinity is not JSON",
        text.replace("200", "-Infinity"): "line 1: -Infinity is not JSON",
        text.replace("200", "1e999"): "line 1: the number 1e999 is too large",
        text.replace("200", "9" * 5000): "line 1: a number of 5,000 digits",
        text.replace("200", "[" * 100_000): "line 1: not a row: lists or objects nested too deeply",
        text.replace("200", "[" * 500 + "]" * 500): "line 1: ",
        text.replace("red", r"\ud800"): "line 1: half of a surrogate pair",
        text.replace("red", r"\udc00\ud800"): "line 1: half of a surrogate pair",
        text.replace("red", r"a\u0000b"): "line 1: a zero character",
        text.replace("red", "a\tb"): "line 1: not JSON (Invalid control character",
        text.replace("red", "a\x0bb"): "line 1: not JSON (Invalid control character",
        text.replace("red", "a\nb"): "line 1: not JSON",
        text.replace('"', "'"): "line 1: not JSON",
        text.replace("{", '{"image": "b.png", '): "line 1: key 'image' is there twice",
        json.dumps([ROW, ROW]): "begins with a list; write one JSON object a line (pandas:",
        json.dumps([ROW, ROW], indent=1): "begins with a list",
        json.dumps(ROW, indent=1): "line 1: not JSON",
        "image,question,answer,level\na.png,q,a,object\n": "line 1: not JSON",
        "3\n": "line 1: not an object in braces",
        "null\n": "line 1: not an object in braces",
        '"a"\n': "line 1: not an object in braces",
        "": "no questions",
        "\n \r\n\ufeff\n": "no questions",
        lines(row(label="x" * (1 << 20)), "{"): "2 faults: questions.jsonl line 1: over 1,048,576 characters",
        "x" * 5_000_000: "line 1: over 1,048,576 characters",
        lines(ROW, "{", ROW, row(box=[1]), *["{"] * 5): "7 faults: questions.jsonl line 2: ",
    }.items():
        cases[f"{said}: {broken[:30]!r} {len(broken)}"] = (broken, said)
    cases = {name: ((lines(r) if isinstance(r, dict) else r).encode(), said) for name, (r, said) in cases.items()}
    accents = lines(row(question="Où?"))
    return cases | {
        "latin-1": (accents.encode("latin-1"), "line 1: byte 0xf9 at column"),
        "cp1252 in line 2": ((text + lines(row(question="“Où?”"))).encode("cp1252"), "line 2: byte 0x93 at column"),
        "utf-16 without its mark": (accents.encode("utf-16-le"), "not UTF-8 text"),
        "utf-16-be without its mark": (accents.encode("utf-16-be"), "not UTF-8 text"),
        "utf-32 without its mark": (accents.encode("utf-32-le"), "not UTF-8 text"),
        "utf-16, cut": (accents.encode("utf-16")[:-1], "broken text"),
        "surrogates in UTF-8": (text.replace("red", "\ud800").encode("utf-8", "surrogatepass"), "line 1: byte 0xed"),
        "zero bytes": (b"\0" * 100, "not UTF-8 text"),
        "a gzip file": (b"\x1f\x8b\x08\x00" + bytes(range(256)), "not UTF-8 text"),
        "a zero byte inside": (text.encode() + b'{"image": "a\0b"}\n', "line 2: not JSON (Invalid control character"),
    }
