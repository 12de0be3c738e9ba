"""The `haq` command: each subcommand parses, calls one function and prints."""

from __future__ import annotations

from haq.cli.app import main

__all__ = ["main"]
