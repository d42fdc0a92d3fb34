"""Builds the C++ extension; the metadata is in pyproject.toml. CAMGUIDE_FAST_NATIVE=0 skips the compiler."""

import os
from glob import glob

from setuptools import setup


def native() -> dict:
    """The CPU kernels through LibTorch's stable ABI: one binary for torch >= 2.10 and CPython >= 3.10."""
    if os.environ.get("CAMGUIDE_FAST_NATIVE", "1") == "0":
        return {}
    import torch
    from packaging.version import Version
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if Version(torch.__version__) < Version("2.10"):
        raise SystemExit(f"camguide_fast needs torch >= 2.10 to build, found {torch.__version__}")
    extension = CppExtension(
        "camguide_fast._C",
        sorted(["csrc/module.cpp", *glob("csrc/cpu/*.cpp")]),
        depends=glob("csrc/*.h"),
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
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**native())
