"""`haq targets`, `haq spaces`, `haq techniques`, `haq doctor` and `haq cache`: what is there."""

from __future__ import annotations

import click

from haq import diskcache
from haq.cli.show import echo, echo_json, json_option, megabytes, table
from haq.doctor import check_up
from haq.hardware.profile import list_profiles
from haq.spacefile import list_spaces
from haq.techniques import DEFAULT, EXCLUSIVE, TECHNIQUES
from haq.trust import Trust


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the hardware targets that can be named; a path to your own TOML works wherever a name does."""
    profiles = list_profiles()
    if as_json:
        echo_json([{"name": p.name, "title": p.title, **Trust.of(p).to_json()} for p in profiles])
        return
    rows = [(p.name, p.title, p.confidence, Trust.of(p).error) for p in profiles]
    table("", ("target", "device", "latency is", "error to expect"), rows, left=3)


@click.command()
@json_option
def spaces(as_json: bool) -> None:
    """List the search spaces that can be named; a path to your own TOML works wherever a name does."""
    found = [(space, space.data.task is not None) for space in list_spaces()]
    if as_json:
        echo_json([{"name": s.name, "title": s.title, "extras": list(s.extras), "measured": own} for s, own in found])
        return
    rows = [(s.name, s.title, "built in" if own else "your --data", ", ".join(s.extras) or "none") for s, own in found]
    table("", ("space", "network", "data", "extras"), rows, left=4)


@click.command()
@json_option
def techniques(as_json: bool) -> None:
    """List the post-training quantization techniques that --ptq combines, in the order in which they are applied."""
    if as_json:
        echo_json([
            {"name": name, "family": t.family, "title": t.title, "default": name in DEFAULT}
            for name, t in TECHNIQUES.items()
        ])  # fmt: skip
        return
    rows = [
        (name, t.title, f"one of {t.family}" if t.family in EXCLUSIVE else t.family, "yes" if name in DEFAULT else "")
        for name, t in TECHNIQUES.items()
    ]
    table("", ("technique", "what it does", "family", "default"), rows, left=4)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Print what this machine and installation offer: CPU features, threads, packages, extras, cache."""
    found = check_up()
    if as_json:
        echo_json(found.to_json())
        return
    features = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found.cpu_features)
    threads = ", ".join(f"{key}={value}" for key, value in found.threads_from_environment)
    rows = [
        ("python", found.python),
        ("system", found.system),
        ("cpu", found.cpu),
        ("cpu features", features or "not told by this system"),
        ("cores usable", f"{found.cores_usable}" + (f" ({threads})" if threads else "")),
        *((f"package {package}", version) for package, version in found.packages),
        *(
            (f"extra {extra.name}", f"missing {', '.join(extra.missing)}" if extra.missing else "installed")
            for extra in found.extras
        ),
        ("cache", _cache_line(found.cache)),
    ]
    table("", ("what", "found"), rows, left=2)


@click.command()
@click.option("--clear", is_flag=True, help="Delete everything in it; all of it can be computed again.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Print what the cache holds (traces, trained weights, quantized layers, sensitivities), or clear it."""
    held = diskcache.clear() if clear else diskcache.usage()
    if as_json:
        echo_json({**held.to_json(), "cleared": clear})
    elif clear:
        echo(f"cleared {megabytes(held.size_bytes)} MB in {held.files} files from {held.folder}")
    else:
        echo(_cache_line(held))
        for kind, size in held.kinds:
            echo(f"  {kind}: {megabytes(size)} MB")


def _cache_line(held: diskcache.CacheUsage) -> str:
    return f"{megabytes(held.size_bytes)} of {megabytes(held.limit_bytes)} MB in {held.files} files, {held.folder}"


COMMANDS = (targets, spaces, techniques, doctor, cache)
