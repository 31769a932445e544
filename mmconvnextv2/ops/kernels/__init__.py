"""Triton kernels and how they are launched; the only modules that import Triton, when a kernel first runs."""
