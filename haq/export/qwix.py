"""Writes a config for TPUs: qwix's rules as JSON and as Python, and haq's codes and scales as Flax parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from haq.errors import InputError
from haq.export.qwix_params import SCHEMA, params, rules_json, uncarried
from haq.export.qwix_rules import Plan, Rule, checked, module_path, plan
from haq.export.report import ExportReport, LayerWritten
from haq.nn.exportable import Exportable
from haq.nn.tensorfile import write_tensors
from haq.textfile import write_file

NOTES = (
    "module paths are torch's names with slashes for dots: a Flax model of your own needs the same names",
    "rules alone let qwix choose codes and scales anew, to nearest; the .safetensors file has those that haq measured",
    "a layer without a rule stays float: DTYPES has the format of its operands, its sums and float32 layers need "
    "preferred_element_type=float32 and Precision.HIGHEST",
)


def export(what: Exportable, where: Path, options: Mapping[str, str]) -> ExportReport:
    """The parameters at `where`, a .safetensors file, and beside it the rules: NAME.rules.json and NAME.py.

    Needs neither jax nor qwix. Raises InputError on another ending, and on a rule that does not fit exactly one module.
    """
    if where.suffix != ".safetensors":
        raise InputError(
            "not where Flax parameters can go", where="--out", got=str(where), expected="a .safetensors file"
        )
    made = plan(what.workload, what.executed)
    checked(made.rules, paths(what))
    tensors, about = params(what, made)
    rules, code = where.with_suffix(".rules.json"), where.with_suffix(".py")
    write_tensors(where, tensors, about)
    write_file(rules, json.dumps({"schema": SCHEMA, **rules_json(made)}, indent=2) + "\n", "rules")
    write_file(code, snippet(made), "snippet")
    lines = tuple(
        LayerWritten(name, what.executed.precision(name), made.written[name], made.notes.get(name, ""))
        for name in what.workload.layer_names
    )
    lost = uncarried(what)
    notes = (*NOTES, *([f"not carried over: {', '.join(lost)}"] if lost else []))
    return ExportReport("qwix", (where, rules, code), lines, notes)


def paths(what: Exportable) -> tuple[str, ...]:
    """The paths of all modules of the network, attention products included."""
    modules = {name.replace(".", "/") for name, _ in what.model.named_modules()}
    return tuple(sorted(modules | {module_path(layer) for layer in what.workload.layers}))


def snippet(made: Plan) -> str:
    """The source of the provider, and below it the rules: a module that needs only jax, flax, qwix and safetensors."""
    spec = find_spec("haq.export.qwix_provider")
    assert spec is not None, "the provider lies beside this file"
    assert spec.origin is not None, "it has a source"
    provider = Path(spec.origin).read_text(encoding="utf-8")
    dtypes = "".join(f"    {path!r}: {dtype!r},\n" for path, dtype in made.dtypes.items())
    return f"{provider}\n\nRULES = (\n{_calls(made.rules)})\n\nDTYPES = {{\n{dtypes}}}\n"


def _calls(rules: Iterable[Rule]) -> str:
    """One line of Python for each rule."""
    arguments = (", ".join(f"{key}={value!r}" for key, value in rule.to_json().items()) for rule in rules)
    return "".join(f"    qwix.QuantizationRule({line}),\n" for line in arguments)
