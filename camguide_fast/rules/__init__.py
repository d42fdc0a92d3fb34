"""What needs nothing but Python: numbers that an op's twin and kernels both go by, and how threads wait."""
