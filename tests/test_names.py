"""Names of arrays end in letters of one legend, that of `zoomearth_jax/models/__init__.py`."""

import ast
import re
from pathlib import Path

import zoomearth_jax
import zoomearth_jax.models

PACKAGE = Path(zoomearth_jax.__file__).parent


def legend() -> list[str]:
    """The letters that the legend explains, each as often as it stands there."""
    lines = [line for line in zoomearth_jax.models.__doc__.splitlines() if line.startswith("    ")]
    return [entry[0] for line in lines for entry in re.split(r"\s{2,}", line.strip())]


def letters(source: str) -> set[str]:
    """The letters that the suffixes of names (x_BTD) and the einsum strings of a source use; lower-case ones too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch("[A-Z,]+->[A-Z]+", node.value)
        ):
            found |= set(node.value) - set(",->")
        names = [getattr(node, field, None) for field in ("id", "arg", "attr", "name")]
        for name in names:
            suffix = re.fullmatch(r"[a-z][a-z0-9_]*_([0-9]*[A-Z][A-Za-z0-9]*)", name) if isinstance(name, str) else None
            found |= {letter for letter in suffix[1] if letter.isalpha()} if suffix else set()
    return found


def test_suffixes_are_found():
    assert letters("x_BTD = f(y_3BT.mean_Wp, z_E=1)") == set("BTDWpE")
    assert letters("jnp.einsum('XY,YZ->XZ', a, b)") == set("XYZ")
    assert letters("MAX_BLOCK, x_b, qwen2_5_vl = 1, 2, 3") == set()


def test_the_legend_explains_every_letter_once():
    explained = legend()
    assert len(explained) == len(set(explained)) > 10
    used = {path: letters(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    unknown = {str(path.relative_to(PACKAGE)): found - set(explained) for path, found in used.items()}
    assert not {path: found for path, found in unknown.items() if found}
    assert set(explained) <= set().union(*used.values()) | {"G"}  # G stands in shapes only
