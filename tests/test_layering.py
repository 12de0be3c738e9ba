"""The shape of the code: imports point one way, each file says its one job and fits on a walk."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "haq"
FILES = tuple(sorted(PACKAGE.rglob("*.py")))
NAMES = tuple(str(path.relative_to(PACKAGE)) for path in FILES)

LITERT = {"litert_torch", "litert_quantizer", "ai_edge_quantizer", "ai_edge_litert"}
JAX = {"jax", "flax", "qwix"}
EXPORT = {"onnx", "modelopt", "torchao", *LITERT, *JAX}
HEAVY = {"torch", "optuna", "matplotlib", "transformers", "plotly", "onnxruntime", *EXPORT}
MAY_IMPORT = {
    "nn": {"torch", "transformers"},
    "export": {"torch", "transformers", *EXPORT},
    "engine": {"optuna"},
    "report": {"matplotlib", "plotly"},
    "measure": {"onnx", "onnxruntime", "torch"},
    "verify": {"onnx", "onnxruntime", "torch"},
}
"""Which packages of HEAVY each folder may use; the core, everything else, none."""

GLUE = {
    "haq.api",
    "haq.problems",
    "haq.finetuning",
    "haq.exporting",
    "haq.tracecache",
    "haq.recovering",
    "haq.verifying",
    "haq.diagnosing",
    "haq.checking",
}
"""The glue between the parts imports the torch side inside its functions, so that importing it stays light."""

LAYERS = (
    {"errors", "resources"},
    {"precision", "workload", "scaling", "techniques", "quality", "racing", "accuracy"},
    {"constraints", "candidate", "deployments", "pareto", "expected", "surrogate", "sketch", "activations", "drift"},
    {"terms", "quiet", "linear", "allocate", "sweep"},
    {"grouping", "validation"},
    {
        "references",
        "space",
        "sensitivity",
        "additivity",
        "pooled",
        "spacefile",
        "spec",
        "hardware",
        "doctor",
        "diskcache",
        "textfile",
        "tomltext",
        "trust",
        "configschema",
    },
    {
        "engine",
        "nn",
        "diagnose",
        "measure",
        "history",
        "front",
        "configcheck",
        "configfile",
        "config",
        "rundir",
        "outputs",
    },
    {"report", "export", "problems", "tracecache", "pricing", "placing", "reasons", "explain", "regret", "deployed"},
    {"verify"},
    {"api", "finetuning", "exporting", "fitting", "resolving", "verifying", "diagnosing", "checking", "recovering"},
    {"profiletext"},
    {"cli"},
)
"""From the bottom to the top: a part imports its own layer and those below it, never one above."""


def module_name(path: Path) -> str:
    parts = ("haq", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    """Absolute names that the file imports; `from haq.nn import trace` is haq.nn.trace where that is a module."""
    tree = ast.parse(path.read_text())
    return imported_names(path, tree.body if top_level_only else list(ast.walk(tree)))


def loaded(path: Path) -> set[str]:
    """The imports that happen when the code runs: all but those for annotations only."""
    tree = ast.parse(path.read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for block in blocks for inner in ast.walk(block)}
    return imported_names(path, [node for node in ast.walk(tree) if id(node) not in skipped])


def imported_names(path: Path, nodes: list[ast.stmt] | list[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                assert alias.name != "*", f"{path}: star import"
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def part(module: str) -> str:
    """The second component: haq.nn.trace is of the part nn."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_opens_with_a_sentence_and_has_at_most_300_lines(path: Path) -> None:
    text = path.read_text()
    if path.name != "__init__.py" or text.strip():
        assert ast.get_docstring(ast.parse(text)), "the first statement is not a docstring"
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_packages_are_imported_only_in_their_folders(path: Path) -> None:
    found = {name.split(".")[0] for name in loaded(path)} & HEAVY
    assert found <= MAY_IMPORT.get(part(module_name(path)), set())


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_down_the_layers(path: Path) -> None:
    module = module_name(path)
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    if module == "haq":
        return  # the public names, each imported when asked for
    assert part(module) in rank, f"{module} belongs to no layer"
    for imported in imports(path, top_level_only=False):
        if imported.startswith("haq."):
            assert rank[part(imported)] <= rank[part(module)], f"{module} imports {imported}"


def test_the_search_does_not_know_torch_and_the_torch_side_does_not_know_the_search() -> None:
    for module, path in MODULES.items():
        found = {part(name) for name in imports(path, top_level_only=False) if name.startswith("haq.")}
        assert not (part(module) == "engine" and "nn" in found), module
        assert not (part(module) == "nn" and "engine" in found), module


def test_no_import_cycles() -> None:
    graph = {
        module: {name for name in imports(path, top_level_only=False) if name in MODULES and name != module}
        for module, path in MODULES.items()
        if module != "haq"
    }
    assert tuple(graphlib.TopologicalSorter(graph).static_order())


def test_glue_and_command_line_load_the_torch_side_only_when_it_is_used() -> None:
    for module, path in MODULES.items():
        if module in GLUE or part(module) == "cli":
            found = {part(name) for name in imports(path, top_level_only=True) if name.startswith("haq.")}
            assert not found & {"nn", "engine", "report", "measure", "export"}, module
