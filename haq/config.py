"""A config as a value: read from a file, looked into, and written back byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haq.configcheck import text_faults
from haq.configfile import executed_assignment, numbers_to_copy
from haq.configschema import SCHEMA
from haq.errors import InputError
from haq.precision import Assignment
from haq.textfile import write_file


@dataclass(frozen=True)
class Config:
    """One `haq.config/v1`. text: as it stands in the file. folder: where its parameters file lies, if it has one."""

    text: str
    folder: Path

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """The config in a file; raises InputError on the first fault of whatever `haq validate` finds."""
        file = Path(path)
        try:
            text = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            got = error.strerror if isinstance(error, OSError) else "bytes that are no UTF-8"
            raise InputError("cannot read the config", where=str(file), got=got, expected="a JSON file") from None
        return cls._checked(text, file.parent, str(file))

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: str | Path = ".") -> Config:
        """A config from its JSON data; folder: where its parameters file lies. Raises InputError as `load` does."""
        return cls._checked(json.dumps(content, indent=2) + "\n", Path(folder), "config")

    @classmethod
    def _checked(cls, text: str, folder: Path, where: str) -> Config:
        if faults := text_faults(text, folder):
            first, others = faults[0], len(faults) - 1
            raise InputError(
                f"{first.path} is wrong", where=where, got=first.got, expected=first.expected,
                way_out=f"{others} more: see `haq validate`" if others else "",
            )  # fmt: skip
        return cls(text, folder)

    @classmethod
    def opened(cls, config: Config | str | Path | Mapping[str, Any]) -> Config:
        """The config, however it is given; raises InputError as `load` does."""
        if isinstance(config, Config):
            return config
        return cls.of(config) if isinstance(config, Mapping) else cls.load(config)

    def save(self, path: str | Path) -> None:
        """Write the file as it was read, every byte, with its parameters file beside it.

        Raises InputError where that cannot be written, or where other parameters of that name lie already.
        """
        file = Path(path)
        if (source := self.parameters) is not None:
            target = file.parent / source.name
            if (numbers := numbers_to_copy(source, target, str(self.content["parameters_sha256"]))) is not None:
                write_file(target, numbers, "parameters")
        write_file(file, self.text, "config")

    @property
    def content(self) -> dict[str, Any]:
        """The JSON data, anew each time: changing it changes nothing here."""
        content: dict[str, Any] = json.loads(self.text)
        return content

    @property
    def id(self) -> str:
        """What names it."""
        return str(self.content["id"])

    @property
    def layers(self) -> Assignment:
        """What every layer executes."""
        return executed_assignment(self.content)

    @property
    def parameters(self) -> Path | None:
        """The file with its tuned numbers; None where they follow from the network and calibration data."""
        content = self.content
        return self.folder / content["parameters"] if "parameters" in content else None

    def __str__(self) -> str:
        content = self.content
        return f"{SCHEMA} {content['id']} of {content['model']['model']} on {content['target']['name']}"
