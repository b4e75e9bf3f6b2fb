"""Decisions as small named functions: what is seen goes in, a verdict with its reason comes out."""
