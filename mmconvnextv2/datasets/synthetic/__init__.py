"""Procedural images with labels."""
