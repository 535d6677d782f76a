"""Compiled programs as XLA prints them (`jax.stages.Compiled.as_text`): instructions, what they compute and what they move."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import numpy as np

DTYPE_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "copy-done", "slice-done", "dynamic-slice-done", "add-dependency", "domain", "get-dimension-size",
}  # fmt: skip
FREE_CALLS = (
    "AllocateBuffer",
    "ConcatBitcast",
    "AssumeGatherIndicesInBound",
    "Sharding",
    "GatherScatterIndicesBitpacked",
)
RENAMES = ("bitcast", "reshape")  # (inside fusions)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


class Array(NamedTuple):
    """One array of a value: its type, dimensions, and the memory it lies in (0 is the device's main memory)."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Number of bytes, in whichever memory."""
        return self.size * _bits(self.dtype) / 8

    @property
    def main_bytes(self) -> float:
        """Number of bytes in main memory."""
        return 0.0 if self.space else self.bytes


class Instruction(NamedTuple):
    """One instruction: arrays are its result's, operands names in the same computation, attributes as printed."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    root: bool

    def called(self, key: str = "calls") -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        """The place in the traced function that the instruction comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """The target of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in DTYPE_BITS:
        return DTYPE_BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


class Computation(dict[str, Instruction]):
    """Instructions by name, in the order they are run."""

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.values() if i.root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read an instruction's result."""
        out: dict[str, list[Instruction]] = {name: [] for name in self}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in out:
                    out[operand].append(instruction)
        return out


class Module(NamedTuple):
    """A program: its computations by name, and the name of the one that starts."""

    computations: dict[str, Computation]
    entry: str

    def named(self, i: Instruction, key: str = "calls") -> Computation:
        """The computation that an attribute of an instruction names; KeyError without one."""
        return self.computations[i.called(key) or ""]


@functools.lru_cache(maxsize=2)  # programs are played twice: with the compiler's cycles, and without
def parse(text: str) -> Module:
    """Reads a compiled program."""
    computations, entry, current = {}, "", None
    for line in _lines(text):
        if current is None or not line.startswith("  "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
            if head:
                current = computations[head[2]] = Computation()
                entry = head[2] if head[1] else entry
            continue
        instruction = _instruction(line)
        if instruction:
            current[instruction.name] = instruction
    return Module(computations, entry)


def _lines(text: str):
    """Instructions and heads, each whole: strings in attributes may hold line breaks."""
    held = ""
    for line in text.splitlines():
        if re.match(r"\s+(ROOT )?%[\w.\-]+ = |(ENTRY )?%[\w.\-]+ \(|\}", line):
            yield held
            held = line
        else:
            held += " " + line.strip() if held else line
    yield held


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    begin = head.end()
    end = _closing(line, begin) if line[begin] == "(" else line.index(" ", begin)
    kind, rest = line[begin:end], line[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest, 0) - 1
    arguments, attributes = rest[: close - 1], rest[close:]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments)) if opcode != "constant" else ()
    return Instruction(head[2], opcode.strip(), arrays(kind), operands, attributes, arguments, bool(head[1]))


def _closing(text: str, begin: int) -> int:
    """Place after the bracket that closes the one at `begin`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


def arrays(kind: str) -> tuple[Array, ...]:
    """The arrays of a printed type, tuples flattened."""
    out = []
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", kind):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        out.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(out)


def flops(module: Module, where: Computation, i: Instruction) -> float:
    """FLOPs of matrix products and convolutions in an instruction, those inside a fusion or call included."""
    if i.opcode == "dot":
        contracted = _numbers(i.attributes, "lhs_contracting_dims")
        lhs = where[i.operands[0]].arrays[0].dims
        return 2.0 * i.arrays[0].size * math.prod(lhs[d] for d in contracted)
    if i.opcode == "convolution":
        return _convolution_flops(where, i)
    if i.opcode == "custom-call":
        return _kernel_flops(where, i)
    if i.opcode in ("fusion", "call", "async-start"):
        inside = module.computations.get(i.called() or i.called("to_apply") or "", Computation())
        return sum(flops(module, inside, each) for each in inside.values())
    return 0.0


def _numbers(text: str, key: str) -> list[int]:
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", text)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _convolution_flops(where: Computation, i: Instruction) -> float:
    """Two FLOPs per product that falls inside the input: dilation and padding, by which TPUs batch products, cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels is not None  # every convolution has them
    lhs_labels, rhs_labels, out_labels = labels.groups()
    lhs, rhs = (where[name].arrays[0].dims for name in i.operands[:2])
    out = i.arrays[0].dims
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")]
    for d, label in enumerate(sorted(set(out_labels) - {"b", "f"})):
        sizes = (lhs[lhs_labels.index(label)], rhs[rhs_labels.index(label)], out[out_labels.index(label)])
        stride, lhs_dilate, rhs_dilate = (
            int(settings[key].split("x")[d]) if key in settings else 1 for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        pad = int(settings["pad"].split("x")[d].split("_")[0]) if "pad" in settings else 0
        total *= _pairs_inside(*sizes, stride, lhs_dilate, rhs_dilate, pad)
    return total


@functools.cache
def _pairs_inside(lhs: int, kernel: int, out: int, stride: int, lhs_dilate: int, rhs_dilate: int, pad: int) -> int:
    """(output, kernel) positions along a dimension that meet an element of the input."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * rhs_dilate - pad
    return int(((place % lhs_dilate == 0) & (place >= 0) & (place <= (lhs - 1) * lhs_dilate)).sum())


def _kernel_flops(where: Computation, i: Instruction) -> float:
    """Splash attention by the blocks that its mask leaves, cuBLAS products by their dimensions; other kernels count 0."""
    operands = [where[name].arrays[0] for name in i.operands if name in where and where[name].arrays]
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.attributes)
    if contracted:
        lhs = operands[0].dims
        return 2.0 * i.arrays[0].size * math.prod(lhs[int(d)] for d in re.findall(r"\d+", contracted[1]))
    kind = next((kind for kind in _SPLASH_PRODUCTS if f"splash_mha_{kind}" in i.name + i.attributes), None)
    if kind is None:
        return 0.0
    query, key = [x for x in operands if x.dtype in ("bf16", "f16", "f32")][
        :2
    ]  # [B, N, T, H] and [B, K, S, H], B perhaps left out
    rows, columns = operands[0].dims[-2:]  # blocks of the mask: [heads, query blocks, key blocks]
    length, slots = query.dims[-2], key.dims[-2]
    causal = sum(x.dtype == "s32" for x in operands) > 2  # positions of queries, which full masks don't need
    seen = _causal_share(length, slots, rows, columns) if causal else 1.0
    return 2.0 * _SPLASH_PRODUCTS[kind] * query.size * slots * seen


_SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}  # scores and values; the backward kernels compute the scores anew


def _causal_share(length: int, slots: int, rows: int, columns: int) -> float:
    """Share of blocks not above the diagonal, where the last query sees the last slot."""
    last_query = (np.arange(rows) + 1) * (length // rows) - 1 + slots - length
    return float((np.arange(columns) * (slots // columns) <= last_query[:, None]).mean())


def traffic(module: Module, where: Computation, i: Instruction) -> float:
    """Bytes between main memory and the core: operands and results, of which slices count what they take or put."""
    if i.opcode in FREE or (i.opcode == "custom-call" and i.target in FREE_CALLS):
        return 0.0
    inside = module.named(i) if i.opcode == "fusion" else Computation()
    passed = _passed(i) if any(each.opcode in COLLECTIVES for each in inside.values()) else {}
    read = sum(_read(module, where, i, n) for n in range(len(i.operands)) if n not in passed.values())
    return read + _written(where, inside, i, tuple(passed))


def _passed(i: Instruction) -> dict[int, int]:
    """Maps results to operands that share memory: in fusions that a collective runs through, its buffers."""
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", i.attributes.partition("output_to_operand_aliasing")[2])
    return {int(result or 0): int(operand) for result, operand in pairs}


def _read(module: Module, where: Computation, i: Instruction, n: int) -> float:
    operand = where.get(i.operands[n])
    if operand is None or not operand.arrays or operand.arrays[0].space:
        return 0.0
    full = sum(array.main_bytes for array in operand.arrays)
    if i.opcode == "fusion":
        inside = module.named(i)
        parameter = next(p for p in inside.values() if p.opcode == "parameter" and p.arguments.strip() == str(n))
        return min(full, _taken(module, inside, parameter.name))
    return min(full, _slice_of(i, n, i.arrays, where))


def _slice_of(user: Instruction, n: int, result: tuple[Array, ...], where: Computation) -> float:
    """Bytes that an instruction takes of its operand n."""
    if n == 0 and user.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in result)
    if n == 0 and user.opcode == "dynamic-update-slice":
        return 0.0
    if n == 0 and user.opcode == "scatter":
        return where[user.operands[2]].arrays[0].bytes
    return math.inf


def _taken(module: Module, inside: Computation, name: str) -> float:
    """Bytes that a fusion takes of a parameter: only the slices where it is only sliced."""
    total = math.inf if inside[name].root else 0.0
    for user in inside.users[name]:
        for n in [n for n, operand in enumerate(user.operands) if operand == name]:
            if user.opcode in RENAMES or _renames(module, user):
                total += _taken(module, inside, user.name)
            elif user.opcode == "fusion":
                total += _read(module, inside, user, n)
            else:
                total += _slice_of(user, n, user.arrays, inside)
    return total


def _renames(module: Module, i: Instruction) -> bool:
    """Whether a fusion gives its operand another shape, and no more; or as TPUs do with int8 another tiling of the same bytes, a
    copy whose result is its operand's own memory."""
    inside = module.named(i).values() if i.opcode == "fusion" else ()
    names = (*RENAMES, "copy") if "output_to_operand_aliasing={{}: (0, {})}" in i.attributes else RENAMES
    return bool(inside) and all(each.opcode in (*names, "parameter") for each in inside)


def _written(where: Computation, inside: Computation, i: Instruction, passed: tuple[int, ...]) -> float:
    updates = {"dynamic-update-slice": 1, "scatter": 2}
    if i.opcode in updates:
        return 0.0 if i.arrays[0].space else where[i.operands[updates[i.opcode]]].arrays[0].bytes
    parts: list[Instruction | None] = [None] * len(i.arrays)
    if inside:
        root = inside.root
        results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        parts = [*results] if len(results) == len(parts) else parts
    return sum(
        0.0 if array.space else min(array.bytes, _put(inside, part))
        for n, (array, part) in enumerate(zip(i.arrays, parts, strict=True))
        if n not in passed
    )


def _put(inside: Computation, part: Instruction | None) -> float:
    """Bytes that a fusion writes of a result: only the update where it is an update in place."""
    while part is not None and part.opcode in RENAMES and part.operands[0] in inside:
        part = inside[part.operands[0]]
    if part is not None and part.opcode == "dynamic-update-slice":
        return inside[part.operands[1]].arrays[0].bytes
    return math.inf


def trip_count(module: Module, where: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs, from XLA's note or a counter compared with a constant; None where data decide."""
    known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = module.named(loop, "condition")
    compare = condition.root
    if compare.opcode == "fusion":
        condition = module.named(compare)
        compare = condition.root
    if compare.opcode != "compare" or len(compare.operands) != 2:
        return None
    direction = re.search(r"direction=(\w+)", compare.attributes)
    limit = _constant(condition, compare.operands[1])
    counter = condition[compare.operands[0]]
    index = re.search(r"index=(\d+)", counter.attributes)
    if limit is None or not direction or direction[1] not in ("LT", "LE", "NE"):
        return None
    if counter.opcode != "get-tuple-element" or not index:
        return None
    return -(-(limit + (direction[1] == "LE")) // _counter_step(module.named(loop, "body"), index[1]))


def _counter_step(body: Computation, index: str) -> int:
    """The number by which a trip advances the counter: more than 1 where XLA unrolled the loop."""
    step, name = 0, body.root.operands[int(index)]
    while name in body and body[name].opcode in ("add", "copy", "bitcast"):
        step += _constant(body, body[name].operands[1]) or 0 if body[name].opcode == "add" else 0
        name = body[name].operands[0]
    return step or 1


def _constant(where: Computation, name: str) -> int | None:
    found = where.get(name)
    while found is not None and found.opcode in ("bitcast", "copy", "convert") and found.operands:
        found = where.get(found.operands[0])
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.arguments.strip()):
        return None
    return int(found.arguments)
