"""Machines whose every figure is a test's choice, and what a network costs and is told on them."""

from nets import conv, uniform

from haq.explain import explain
from haq.hardware.cost import estimate
from haq.hardware.figures import Figure
from haq.hardware.legalize import legalize
from haq.hardware.machine import OP_CLASSES
from haq.hardware.profile import load_profile
from haq.precision import Assignment
from haq.pricing import Estimate
from haq.workload import Workload

GB_S = 100e9
"""The reference's memory; its rates are 1, 2 and 4 TOP/s for fp32, fp16 and int8, and nothing has a fixed cost."""


def figure(value, unit):
    return Figure(value=value, unit=unit, source="a test's choice", status="assumed")


def machine(*, kernel_us=0.0, tile=(1, 1, 1), units=None, convert="fused", **parts):
    """The reference with a fixed cost per kernel, blocks of (rows, columns, depth), and kernels that convert."""
    base = load_profile("reference")
    sides = dict(zip("mnk", (figure(side, "count") for side in tile), strict=True))
    sides["units"] = None if units is None else figure(units, "count")
    costs = dict.fromkeys(OP_CLASSES, figure(kernel_us, "us"))
    return base.model_copy(
        update={
            "tile": base.tile.model_copy(update=sides),
            "overhead": base.overhead.model_copy(update={"kernel": costs}),
            "fusion": base.fusion.model_copy(update={"convert": convert}),
            **parts,
        }
    )


def priced(net, profile, bits, batch=1):
    asked = bits if isinstance(bits, Assignment) else uniform(net, bits)
    legal = legalize(net, asked, profile)
    cost = estimate(net, legal.executed, profile, batch=batch)
    return Estimate(net, profile, legal.executed, legal.fallbacks, cost, cost)


def explained(net, profile, bits, batch=1):
    """Layer -> its explanation."""
    return {layer.layer: layer for layer in explain(priced(net, profile, bits, batch))}


def why(net, profile, bits, layer, batch=1):
    return "\n".join(explained(net, profile, bits, batch)[layer].why)


def one(layer):
    return Workload("one", (("x", layer.input_shapes[0]),), (layer,), (layer.name,))


def chain():
    """Three equal convolutions; the middle one's neighbours both have formats to convert."""
    nodes = (conv("a", "x", 64, 64, 8), conv("b", "a", 64, 64, 8), conv("c", "b", 64, 64, 8))
    return Workload("chain", (("x", (64, 8, 8)),), nodes, ("c",))
