"""Builds the C++ extension; the metadata is in pyproject.toml.

CAMGUIDE_FAST_NATIVE=0 skips it, =1 means that it must build. Otherwise the package installs without it where it does
not build, and keeps the reason beside its modules, for `python -m camguide_fast.info` and the first op's warning.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

from setuptools import setup

NATIVE = os.environ.get("CAMGUIDE_FAST_NATIVE", "")
if NATIVE not in ("", "0", "1"):
    raise SystemExit(f"CAMGUIDE_FAST_NATIVE is {NATIVE!r}; expected 0, 1 or nothing")


@contextmanager
def printed(to: list[str]) -> Iterator[None]:
    """Keeps what processes print, which then comes at once. (torch's error does not hold what the compiler said.)"""
    sys.stdout.flush()
    streams = {stream: os.dup(stream) for stream in (1, 2)}
    with tempfile.TemporaryFile() as file:
        try:
            for stream in streams:
                os.dup2(file.fileno(), stream)
            yield
        finally:
            sys.stdout.flush()
            for stream, own in streams.items():
                os.dup2(own, stream)
                os.close(own)
            file.seek(0)
            to += file.read().decode(errors="replace").splitlines()
            print(*to, sep="\n", flush=True)


def native() -> dict:
    """The CPU kernels through LibTorch's stable ABI: one binary for torch >= 2.10 and CPython >= 3.10."""
    if NATIVE == "0":
        return {}
    import torch
    from packaging.version import Version
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

    if Version(torch.__version__) < Version("2.10"):
        raise SystemExit(f"camguide_fast needs torch >= 2.10 to build, found {torch.__version__}")

    class Build(BuildExtension):
        def run(self) -> None:
            extension = Path(self.get_ext_fullpath("camguide_fast._C"))  # in the sources if they are installed editable
            note = extension.with_name("_build_error.txt")
            note.unlink(missing_ok=True)
            if NATIVE == "1":
                super().run()
                return
            output: list[str] = []
            try:
                compiler = shlex.split(get_cxx_compiler())[0]
                if not shutil.which(compiler):
                    raise RuntimeError(f"no C++ compiler found ({compiler})")
                with printed(output):
                    super().run()
            except Exception as error:  # of torch, setuptools or the system: none of them shall keep the package out
                reason = next((line for line in output if "error:" in line), str(error)).strip().split("\n")[0]
                print(f"camguide_fast is installed without its C++ extension: {reason}", file=sys.stderr)
                self.extensions = []  # none to copy
                extension.unlink(missing_ok=True)  # an earlier one would be of other sources
                extension.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(reason + "\n")

    extension = CppExtension(
        "camguide_fast._C",
        sorted(["csrc/module.cpp", *glob("csrc/cpu/**/*.cpp", recursive=True)]),
        depends=glob("csrc/cpu/*/*.h"),
        # No -march: a kernel that uses wide vectors chooses them at run time. Nobody reads errno or the floating-point
        # exceptions, for which loops that take a root or select would stay scalar.
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
        ],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**native())
