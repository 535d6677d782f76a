"""Imports flow one way, from the first part of ORDER to the last; models and data_pipeline are strangers."""

import ast
from pathlib import Path

import pytest

import zoomearth_jax

PACKAGE = Path(zoomearth_jax.__file__).parent
ORDER = (
    "errors",
    "files",
    "terminal",
    "configs",
    "models",
    "data_pipeline",
    "tools",
    "rl",
    "hardware",
    "runs",
    "reports",
    "plan",
    "evaluation",
    "serving",
    "verbs",
    "bench",
    "cli",
)
STRANGERS = {"models": {"data_pipeline"}, "data_pipeline": {"models"}}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, by whatever form of import, `TYPE_CHECKING` and functions included."""
    inside, found = path.relative_to(PACKAGE.parent).with_suffix("").parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return {names[1] for names in found if names[0] == "zoomearth_jax" and len(names) > 1} & set(ORDER)


def test_every_part_has_its_place():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_imports_flow_one_way(part):
    may = set(ORDER[: ORDER.index(part) + 1]) - STRANGERS.get(part, set())
    alone = PACKAGE / f"{part}.py"
    files = [alone] if alone.exists() else list((PACKAGE / part).rglob("*.py"))
    assert files
    for file in files:
        if part == "cli":  # the verbs are found by it, and imported late
            may |= {"verbs"}
        assert imported(file) <= may, (str(file), imported(file) - may)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("import zoomearth_jax.verbs.sft", "verbs"),
        ("import zoomearth_jax.verbs as v", "verbs"),
        ("from zoomearth_jax import verbs", "verbs"),
        ("from zoomearth_jax.verbs import sft", "verbs"),
        ("from zoomearth_jax.verbs.sft import SFTConfig", "verbs"),
        ("from ..verbs import sft", "verbs"),
        ("from .. import verbs", "verbs"),
        ("def f():\n    from zoomearth_jax import verbs as v", "verbs"),
    ],
)
def test_every_form_of_import_is_seen(line, part, tmp_path, monkeypatch):
    file = tmp_path / "zoomearth_jax" / "rl" / "one.py"
    file.parent.mkdir(parents=True)
    file.write_text(line)
    monkeypatch.setattr("tests.test_imports.PACKAGE", tmp_path / "zoomearth_jax")
    assert imported(file) == {part}


def test_top_level_links_lead_into_the_package():
    root = PACKAGE.parent
    if not (root / "setup.py").exists():
        pytest.skip("an installed package has no links")
    for part in ("configs", "models", "data_pipeline", "rl"):
        assert (root / part).is_symlink()
        assert (root / part).resolve() == PACKAGE / part
