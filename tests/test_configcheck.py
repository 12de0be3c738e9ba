"""What a config file may hold: its schema, what its parts owe each other, and the value `haq.Config`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_configs import content, network
from test_cli import Haq

import haq
from haq.configcheck import config_faults
from haq.configschema import json_schema
from haq.errors import InputError
from haq.precision import FORMATS

MIXED = ("int4/int8", "int8/int8", "fp16/fp16")
SCHEMA_FILE = Path(haq.__file__).parent / "schemas" / "haq.config-v1.json"


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    return content(network(), MIXED)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Haq:
    return Haq(capsys)


def written(folder: Path, raw: object) -> Path:
    path = folder / "config.json"
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return path


def test_the_committed_schema_is_the_one_that_files_are_checked_with() -> None:
    # After a change on purpose: haq validate --schema > haq/schemas/haq.config-v1.json
    assert SCHEMA_FILE.read_text() == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_has_no_null_and_no_default() -> None:
    text = SCHEMA_FILE.read_text()
    assert '"null"' not in text
    assert '"default"' not in text


def test_every_precision_of_weight_and_activation_that_can_be_parsed_is_in_the_schema(
    tmp_path: Path, valid: dict[str, Any]
) -> None:
    for weight in FORMATS:
        for activation in FORMATS:
            text = f"{weight}/{activation}"
            try:
                haq.Precision.parse(text)
                is_precision = True
            except InputError:
                is_precision = False
            raw = {**valid, "id": "by-hand", "layers": {**valid["layers"], "0": text}}
            assert (config_faults(written(tmp_path, raw)) == ()) == is_precision, text


def change(key: str, value: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: {**raw, key: value}


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (change("schema", "haq.config/v2"), "$.schema: got \"haq.config/v2\", expected 'haq.config/v1'"),
        (change("layers", {"0": "int9/int8"}), "$.layers['0']: got \"int9/int8\", expected text like ^(int4|int8|"),
        (change("layers", {}), "$.layers: got {}, expected at least 1 in it"),
        (change("id", 7), "$.id: got 7, expected a valid string"),
        (change("ids", "x"), "$.ids: got \"x\", expected no such key (did you mean 'id'?)"),
        (change("parameters", "../w.safetensors"), '$.parameters: got "../w.safetensors", expected text like '),
        (change("parameters", "w.safetensors"), "$.parameters_sha256: got nothing, expected both"),
        (change("quantization", {"ptq": ["gptq", "adaround"], "observer": "mse"}), "$.quantization.ptq: got"),
        (change("quantization", {"ptq": ["gqtp"], "observer": "mse"}), '$.quantization.ptq[0]: got "gqtp"'),
        (change("requested_bits", {"0": 8, "3": 8}), "$.requested_bits['7']: got nothing, expected bits"),
        (change("requested_bits", {"0": 8, "3": 8, "7": 6}), "$.requested_bits['7']: got 6, expected 4, 8, 16 or 32"),
        (
            change("model", {"model": "n", "weights_hash": "abc"}),
            '$.model.weights_hash: got "abc"',
        ),
        (
            change("metrics", {"size_bytes": {"value": 10.5, "kind": "modelled"}}),
            "$.metrics.size_bytes.value: got 10.5, expected a whole number of bytes",
        ),
        (
            change("metrics", {"latency_ms": {"value": "2", "kind": "modelled"}}),
            '$.metrics.latency_ms.value: got "2", expected a valid number',
        ),
        (change("metrics", {"accuracy": {"value": 0.5}}), "$.metrics.accuracy.kind: got nothing, expected a value"),
        (
            change("fallbacks", [{"layer": "0", "requested": "int4/int8", "executed": "int8/int8", "reason": "r"}]),
            "$.fallbacks[0].executed: got 'int8/int8', expected 'int4/int8' as under layers",
        ),
        (change("target", {"name": "a100"}), "$.id: got "),
    ],
)
def test_a_fault_is_one_line_with_path_got_and_expected(
    edit: Callable[[dict[str, Any]], dict[str, Any]], line: str, tmp_path: Path, valid: dict[str, Any]
) -> None:
    faults = config_faults(written(tmp_path, edit(valid)))
    assert any(str(fault).startswith(line) for fault in faults), [str(fault) for fault in faults]
    assert all("\n" not in str(fault) for fault in faults)


def test_all_faults_are_told_at_once(tmp_path: Path, valid: dict[str, Any]) -> None:
    raw = {**valid, "id": "", "layers": {"0": "int9/int8"}, "more": 1}
    paths = [fault.path for fault in config_faults(written(tmp_path, raw))]
    assert sorted(paths) == ["$.id", "$.layers['0']", "$.more"]


def test_a_key_twice_is_a_fault(tmp_path: Path, valid: dict[str, Any]) -> None:
    text = json.dumps(valid).replace('"0": "int4/int8"', '"0": "int8/int8", "0": "int4/int8"')
    assert [str(f) for f in config_faults(written(tmp_path, text))] == [
        "$..['0']: got the key twice, expected each key once"
    ]


@pytest.mark.parametrize(("text", "got"), [("{", "no JSON"), ("[1]", "[1]"), ('{"schema": 1}', "1")])
def test_what_is_no_config_is_one_fault(text: str, got: str, tmp_path: Path) -> None:
    (fault,) = config_faults(written(tmp_path, text))
    assert fault.got.startswith(got)


def test_the_parameters_file_must_be_there_and_have_the_hash(tmp_path: Path, valid: dict[str, Any]) -> None:
    digest = hashlib.sha256(b"numbers").hexdigest()
    raw = {**valid, "parameters": "w.safetensors", "parameters_sha256": digest}
    path = written(tmp_path, raw)
    assert [fault.path for fault in config_faults(path)] == ["$.parameters"]
    (tmp_path / "w.safetensors").write_bytes(b"others")
    (fault,) = config_faults(path)
    assert digest in fault.got
    assert hashlib.sha256(b"others").hexdigest() in fault.expected
    (tmp_path / "w.safetensors").write_bytes(b"numbers")
    assert config_faults(path) == ()


def test_validate_says_so_and_exits_with_0_or_2(tmp_path: Path, valid: dict[str, Any], run: Haq) -> None:
    assert run("validate", written(tmp_path, valid)).code == 0
    bad = run("validate", written(tmp_path, {**valid, "id": "", "more": 1}))
    assert bad.code == 2
    assert len(bad.out.splitlines()) == 2
    assert bad.err.endswith("2 faults; expected a haq.config/v1 file\n")
    told = run("validate", written(tmp_path, {**valid, "id": ""}), "--json")
    assert told.code == 2
    assert [fault["path"] for fault in json.loads(told.out)["faults"]] == ["$.id"]
    assert "cannot read the config" in run.error("validate", tmp_path / "absent.json")
    assert json.loads(run("validate", "--schema").out) == json_schema()


def test_a_config_round_trips_byte_for_byte_however_it_is_written(tmp_path: Path, valid: dict[str, Any]) -> None:
    texts = (
        json.dumps(valid, indent=2) + "\n",
        json.dumps(valid, separators=(",", ":"), sort_keys=True),
        json.dumps({**valid, "id": "größer"}, ensure_ascii=False, indent="\t").replace("\n", "\r\n"),
    )
    for text in texts:
        path = tmp_path / "a.json"
        path.write_bytes(text.encode())
        haq.Config.load(path).save(tmp_path / "b" / "b.json")
        assert (tmp_path / "b" / "b.json").read_bytes() == text.encode()


def test_a_config_from_data_is_written_as_haq_writes_files(tmp_path: Path, valid: dict[str, Any]) -> None:
    config = haq.Config.of(valid)
    config.save(tmp_path / "c.json")
    assert (tmp_path / "c.json").read_text() == json.dumps(valid, indent=2) + "\n"
    assert config.content == valid
    assert config.layers.to_json() == valid["layers"]
    with pytest.raises(InputError, match=r"\$\.layers is wrong; got '\{\}'; expected at least 1 in it"):
        haq.Config.of({**valid, "layers": {}})


def test_the_parameters_go_with_the_config_and_overwrite_no_others(tmp_path: Path, valid: dict[str, Any]) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    path = written(tmp_path, {**valid, "parameters": "w.safetensors", "parameters_sha256": digest})
    config = haq.Config.load(path)
    config.save(tmp_path / "to" / "config.json")
    assert (tmp_path / "to" / "w.safetensors").read_bytes() == b"numbers"
    config.save(tmp_path / "to" / "config.json")  # the same parameters are no hindrance
    (tmp_path / "to" / "w.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="other parameters lie where those of the config go"):
        config.save(tmp_path / "to" / "config.json")
    assert (tmp_path / "to" / "w.safetensors").read_bytes() == b"others"
