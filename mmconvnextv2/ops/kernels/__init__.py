"""Triton kernels and their launches. Only these modules import Triton; they are imported when a kernel first runs."""
