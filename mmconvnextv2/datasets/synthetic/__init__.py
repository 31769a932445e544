"""Procedural images with labels, and the embedded data set made of them."""
