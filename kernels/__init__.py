"""GPU kernels and their launchers, installed as `camguide_fast.kernels`: tensors in, tensors out, no autograd, no
argument checks."""
