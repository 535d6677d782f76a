"""Which fields of which classes a package reads, by its syntax trees and annotations. Nothing is imported or run.

A read counts where the type of the object is known: by an annotation, a constructor, `dataclasses.replace`, a function or
property with a return annotation, or an attribute that `__init__` sets from one of these. The same name on an object of
another or unknown type doesn't count, and neither does a class's own `__post_init__`, which only checks.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path

Types = tuple["Type", ...]  # the members of a union; empty where nothing is known


@dataclasses.dataclass(frozen=True)
class Type:
    """A class by its full name, with arguments: `list[X]` is list with X."""

    name: str
    args: tuple[Types, ...] = ()


@dataclasses.dataclass
class Module:
    """A module's tree, and the full name of each name that it defines or imports, in functions too."""

    name: str
    tree: ast.Module
    names: dict[str, str]
    values: dict[str, ast.expr]


@dataclasses.dataclass
class Class:
    """A class: where it stands, the annotations of its fields, its functions, and what `__init__` sets."""

    node: ast.ClassDef
    module: Module
    fields: dict[str, ast.expr]
    methods: dict[str, ast.FunctionDef]
    attributes: dict[str, Types] = dataclasses.field(default_factory=dict)

    @property
    def is_frozen_dataclass(self) -> bool:
        """Whether it is decorated with `dataclass(frozen=True)`."""
        return any(
            isinstance(d, ast.Call) and _last(d.func) == "dataclass" and "frozen=True" in map(ast.unparse, d.keywords)
            for d in self.node.decorator_list
        )


def _last(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


_WRAPPERS = {"Annotated", "Optional", "Final", "ClassVar", "Required"}
_ITEMS = {"list", "tuple", "set", "Sequence", "Iterable", "Iterator"}


class Package:
    """All modules of a package.

    Args:
        sources: the source of each module by its full name; a package's own is that of its `__init__`.
    """

    def __init__(self, sources: dict[str, str]):
        """Parses all, then notes the reads of all."""
        self.modules: dict[str, Module] = {}
        self.classes: dict[str, Class] = {}
        self.functions: dict[str, tuple[ast.FunctionDef, Module]] = {}
        self.reads: set[tuple[str, str]] = set()  # class that declares the field, field
        for name, source in sources.items():
            self._add(name, ast.parse(source))
        for name in self.classes:
            self._note_attributes(name)
        self.reads.clear()
        for module in self.modules.values():
            _Reader(self, module, {}).block(module.tree.body)

    @classmethod
    def of(cls, directory: Path) -> Package:
        """The package in a directory."""
        sources = {}
        for path in sorted(directory.rglob("*.py")):
            parts = path.relative_to(directory.parent).with_suffix("").parts
            sources[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
        return cls(sources)

    def _add(self, name: str, tree: ast.Module) -> None:
        module = self.modules[name] = Module(name, tree, {}, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                module.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                module.names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                module.names[node.name] = f"{name}.{node.name}"
            if isinstance(node, ast.ClassDef):
                fields = {n.target.id: n.annotation for n in node.body
                          if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                          and "ClassVar" not in ast.unparse(n.annotation)}  # fmt: skip
                methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
                self.classes[f"{name}.{node.name}"] = Class(node, module, fields, methods)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[f"{name}.{node.name}"] = node, module
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                module.names[node.targets[0].id] = f"{name}.{node.targets[0].id}"
                module.values[node.targets[0].id] = node.value

    def _note_attributes(self, name: str) -> None:
        """What the methods set `self.x` to."""
        cls = self.classes[name]
        for method in sorted(cls.methods.values(), key=lambda method: method.name != "__init__"):
            reader = _Reader(self, cls.module, {}, name)
            reader.function(method)

    def full_name(self, node: ast.expr, module: Module) -> str:
        """The full name that a dotted name stands for in a module."""
        if isinstance(node, ast.Attribute):
            return f"{self.full_name(node.value, module)}.{node.attr}"
        return module.names.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def types(self, node: ast.expr | None, module: Module) -> Types:
        """What an annotation says."""
        if isinstance(node, ast.Constant):
            return self.types(ast.parse(node.value, mode="eval").body, module) if isinstance(node.value, str) else ()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.types(node.left, module) + self.types(node.right, module)
        if isinstance(node, ast.Subscript):
            args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            name = self.full_name(node.value, module)
            if _last(node.value) in _WRAPPERS or name.startswith("tyro.conf."):
                return self.types(args[0], module)
            if _last(node.value) == "Literal":
                return ()
            if _last(node.value) == "Union":
                return tuple(one for arg in args for one in self.types(arg, module))
            return (Type(name.rpartition(".")[2], tuple(self.types(arg, module) for arg in args)),)
        name = self.full_name(node, module) if node is not None else ""
        return (Type(name),) if name else ()

    @functools.cache  # noqa: B019 - as long as the test
    def lineage(self, name: str) -> tuple[str, ...]:
        """A class and the classes that it inherits from, nearest first."""
        cls = self.classes.get(name)
        if cls is None:
            return ()
        bases = (self.full_name(base, cls.module) for base in cls.node.bases)
        return (name, *(one for base in bases for one in self.lineage(base)))

    def fields(self, name: str) -> set[tuple[str, str]]:
        """(class that first declares it, field) of all fields of a class, inherited ones too."""
        return {(self.declares(name, field), field) for one in self.lineage(name) for field in self.classes[one].fields}

    def declares(self, name: str, field: str) -> str:
        """The class of a lineage that declares a field first; a default that a subclass changes is the same field."""
        return next((one for one in reversed(self.lineage(name)) if field in self.classes[one].fields), "")


class _Reader:
    """Goes through a scope in order, with the types of its names, and notes reads."""

    def __init__(self, package: Package, module: Module, names: dict[str, Types], inside: str = ""):
        self.package, self.module, self.names, self.inside = package, module, dict(names), inside
        self.returns: Types = ()

    def block(self, statements: list[ast.stmt]) -> None:
        """Statements in order; functions that are defined within come last, when all names are known."""
        later = []
        for node in statements:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                later.append(node)
            else:
                self.statement(node)
        for node in later:
            _Reader(self.package, self.module, self.names).function(node)

    def function(self, node: ast.FunctionDef) -> None:
        """A function's body, or that of a method of `inside`."""
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for arg in args:
            self.names[arg.arg] = self.package.types(arg.annotation, self.module)
        decorators = {_last(d) for d in node.decorator_list}
        if self.inside and args and "staticmethod" not in decorators:
            self.names[args[0].arg] = () if "classmethod" in decorators else (Type(self.inside),)
        self.block(node.body)

    def statement(self, node: ast.stmt) -> None:
        """One statement, with the blocks inside it."""
        if isinstance(node, ast.ClassDef):
            name = f"{self.module.name}.{node.name}"
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            for method in methods:
                if not (method.name == "__post_init__" and self.package.lineage(name)):
                    _Reader(self.package, self.module, self.names, name).function(method)
            self.block([n for n in node.body if n not in methods])
        elif isinstance(node, ast.Assign):
            types = self.infer(node.value)
            for target in node.targets:
                self.assign(target, types)
        elif isinstance(node, ast.AnnAssign):
            given = self.infer(node.value) if node.value else ()
            self.assign(node.target, self.package.types(node.annotation, self.module) or given)
        elif isinstance(node, ast.For):
            self.assign(node.target, self.items(self.infer(node.iter)))
            self.block(node.body + node.orelse)
        elif isinstance(node, ast.With):
            for item in node.items:
                types = self.infer(item.context_expr)
                if item.optional_vars is not None:
                    self.assign(item.optional_vars, self.items(types) or types)  # of a generator what it yields
            self.block(node.body)
        else:
            for _, value in ast.iter_fields(node):
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, ast.expr):
                        self.infer(one)
                    elif isinstance(one, ast.ExceptHandler | ast.match_case):
                        self.block(one.body)
                    elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                        _Reader(self.package, self.module, self.names).function(one)
                    elif isinstance(one, ast.stmt):
                        self.statement(one)

    def assign(self, target: ast.expr, types: Types) -> None:
        """Gives a target the types of what is assigned; a tuple's members each their own."""
        if isinstance(target, ast.Name):
            self.names[target.id] = types
        elif isinstance(target, ast.Attribute):
            for owner in self.infer(target.value):
                if owner.name in self.package.classes and types:
                    self.package.classes[owner.name].attributes.setdefault(target.attr, types)
        elif isinstance(target, ast.Tuple | ast.List):
            for place, one in enumerate(target.elts):
                member = tuple(t for whole in types for t in self.member(whole, place))
                self.assign(one.value if isinstance(one, ast.Starred) else one, member)

    @staticmethod
    def member(whole: Type, place: int) -> Types:
        """The types of one member of a tuple."""
        return whole.args[place] if whole.name == "tuple" and place < len(whole.args) else ()

    @staticmethod
    def items(types: Types) -> Types:
        """What an iteration gives."""
        return tuple(one for whole in types if whole.name in _ITEMS for arg in whole.args for one in arg)

    def comprehension(self, node) -> Types:
        """Generators first, then what they feed."""
        inner = _Reader(self.package, self.module, self.names, self.inside)
        for generator in node.generators:
            inner.assign(generator.target, inner.items(inner.infer(generator.iter)))
            for test in generator.ifs:
                inner.infer(test)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return (Type("list", tuple(inner.infer(part) for part in parts)),)

    def infer(self, node: ast.expr) -> Types:
        """The types of an expression, as far as they are known; notes the reads inside."""
        match node:
            case ast.Name():
                return self.names[node.id] if node.id in self.names else self.constant(node)
            case ast.Attribute():
                owners = self.infer(node.value)
                return tuple(t for owner in owners for t in self.read(owner, node.attr)) or self.constant(node)
            case ast.Call():
                return self.call(node)
            case ast.NamedExpr():
                types = self.infer(node.value)
                self.assign(node.target, types)
                return types
            case ast.IfExp():
                self.infer(node.test)
                return self.infer(node.body) + self.infer(node.orelse)
            case ast.BoolOp():
                return tuple(t for value in node.values for t in self.infer(value))
            case ast.Tuple():
                return (Type("tuple", tuple(self.infer(one) for one in node.elts)),)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.infer(child)
        return ()

    def constant(self, node: ast.expr) -> Types:
        """The types of a module's constant."""
        where, _, last = self.package.full_name(node, self.module).rpartition(".")
        module = self.package.modules.get(where)
        if module is None or last not in module.values:
            return ()
        return _Reader(self.package, module, {}).infer(module.values[last])

    def read(self, owner: Type, attribute: str) -> Types:
        """Notes the read of a class's attribute and gives its types."""
        for name in self.package.lineage(owner.name):
            cls = self.package.classes[name]
            if attribute in cls.fields:
                self.package.reads.add((self.package.declares(name, attribute), attribute))
                return self.package.types(cls.fields[attribute], cls.module)
            if attribute in cls.attributes:
                return cls.attributes[attribute]
            method = cls.methods.get(attribute)
            if method is not None and {"property", "cached_property"} & {_last(d) for d in method.decorator_list}:
                return self.package.types(method.returns, cls.module)
        return ()

    def call(self, node: ast.Call) -> Types:
        """A constructor, `replace`, a method, or a function with a return annotation."""
        given = [self.infer(arg) for arg in node.args] + [self.infer(keyword.value) for keyword in node.keywords]
        name = self.package.full_name(node.func, self.module)
        local = isinstance(node.func, ast.Name) and node.func.id in self.names
        if name in ("dataclasses.replace", "copy.copy", "copy.deepcopy") and given:
            return given[0]
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            return tuple(t for owner in given[0] for t in self.read(owner, node.args[1].value))
        if name in self.package.classes and not local:
            return (Type(name),)
        if name in self.package.functions and not local:
            function, module = self.package.functions[name]
            return self.package.types(function.returns, module)
        if isinstance(node.func, ast.Attribute):
            owners = self.infer(node.func.value)
            return tuple(t for owner in owners for t in self.method(owner, node.func.attr))
        self.infer(node.func)
        return ()

    def method(self, owner: Type, called: str) -> Types:
        """What a method returns."""
        for name in self.package.lineage(owner.name):
            cls = self.package.classes[name]
            if called in cls.methods:
                returns = cls.methods[called].returns
                return (
                    (owner,)
                    if returns is not None and _last(returns) == "Self"
                    else self.package.types(returns, cls.module)
                )
            if called in cls.fields:
                self.read(owner, called)
        return ()
