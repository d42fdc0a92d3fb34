"""The compiler of CUDA, where there is one."""

import shutil

NVCC = shutil.which("nvcc")
