"""What an op's twin and its kernels both go by, in plain numbers: needs nothing but Python."""
