"""The allocator setting, in a process of its own: it is for the whole process."""

import subprocess
import sys


def test_the_c_library_takes_the_setting_or_is_not_glibc() -> None:
    code = "from haq.cli.process import keep_freed_memory; print(keep_freed_memory()); bytearray(2**26)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in ("True", "False")
