"""Imports point down only: the tree that CONTRIBUTING.md shows, read from the sources.

Every import statement counts, inside functions and under TYPE_CHECKING too: who names the types of
a layer above knows that layer. A module that is imported by a name in a variable is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "effv2_kernels"

#: The folders and files of the package from top to bottom. Those of one line may know each other.
LAYERS = (
    ("cli", "__main__"),
    ("measuring",),
    ("__init__",),
    ("patching",),
    ("adapters",),
    ("running",),
    ("blocks",),  # which adapters write and runners read, and no operator knows
    ("ops",),
    ("engines",),
    ("_native", "_torch", "activations"),
    ("launch",),
    ("triton_kernels",),
    ("version",),
)
#: Which files know python_ref, the only package beside this one that any may know.
KNOW_THE_REFERENCE = {
    "adapters/python_ref.py",  # its one foreign library, as others know timm
    "measuring/networks.py",  # builds networks, and what they are held against
    "cli/train.py",  # gives the recipe the kernels that it does not know
    "cli/tune.py",  # tunes for the networks of python_ref, by their names
}


def imported(source: str, package: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted name of everything that a file of ``package`` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = (node.module,) if node.module else ()
            yield from (".".join((*base, *module, alias.name)) for alias in node.names)


def of_folder(name: str) -> Iterator[tuple[str, str]]:
    """(file, dotted name that it imports) of all Python files below a folder of the repository."""
    folder = ROOT / name
    for path in sorted(folder.rglob("*.py")):
        package = path.relative_to(ROOT).parent.parts
        for dotted in imported(path.read_text(), package):
            yield path.relative_to(folder).as_posix(), dotted


def member(dotted: str) -> str:
    """The folder or file of the package that a dotted name is in; what is in none of them is the
    package's own."""
    name = (*dotted.split("."), "")[1]
    return name if name in members() else "__init__"


def members() -> set[str]:
    folder = ROOT / PACKAGE
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    return folders | {path.stem for path in folder.glob("*.py")}


def within_the_package() -> Iterator[tuple[str, str, str]]:
    """(file, the folder or file that it is in, the one that it imports from)."""
    for file, dotted in of_folder(PACKAGE):
        if dotted.split(".")[0] == PACKAGE:
            yield file, file.partition("/")[0].removesuffix(".py"), member(dotted)


def test_everything_is_in_one_layer() -> None:
    named = [name for layer in LAYERS for name in layer]
    assert sorted(named) == sorted(members())


def test_imports_point_down() -> None:
    height = {name: -depth for depth, layer in enumerate(LAYERS) for name in layer}
    found = {
        (file, there) for file, here, there in within_the_package() if height[there] > height[here]
    }
    assert not found


def test_who_knows_the_reference() -> None:
    ours = {"benchmarks", "csrc", "python_ref", "tests"}
    found = {(file, dotted.split(".")[0]) for file, dotted in of_folder(PACKAGE)}
    assert {(f, name) for f, name in found if name in ours} == {
        (file, "python_ref") for file in KNOW_THE_REFERENCE
    }


def test_adapters_know_descriptions_only() -> None:
    found = {there for _, here, there in within_the_package() if here == "adapters"}
    assert found <= {"adapters", "blocks", "activations"}


def test_the_reference_knows_no_kernels() -> None:
    found = {dotted.split(".")[0] for _, dotted in of_folder("python_ref")}
    assert "torch" in found and not found & {PACKAGE, "benchmarks", "tests", "triton"}


def test_benchmarks_need_no_command() -> None:
    known = [(f, d) for f, d in of_folder("benchmarks") if d.split(".")[0] == PACKAGE]
    assert known and not [(f, d) for f, d in known if member(d) == "cli"]


def test_every_kind_of_import_is_seen() -> None:
    source = """
import effv2_kernels.cli.demo as demo
from .. import ops
if TYPE_CHECKING:
    from ..cli import main
def later():
    from . import conv
    from ..launch.targets import Target, KNOWN
"""
    assert sorted(imported(source, (PACKAGE, "running"))) == [
        "effv2_kernels.cli.demo",
        "effv2_kernels.cli.main",
        "effv2_kernels.launch.targets.KNOWN",
        "effv2_kernels.launch.targets.Target",
        "effv2_kernels.ops",
        "effv2_kernels.running.conv",
    ]
    assert member("effv2_kernels.cli.main") == "cli"
    assert member("effv2_kernels.patching.patch") == "patching"
    assert member("effv2_kernels") == "__init__"
    assert member("effv2_kernels.__version__") == "__init__"
