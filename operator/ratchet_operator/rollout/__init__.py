"""A policy's way to its users as a pure function: what is seen goes in, what is wanted comes out."""
