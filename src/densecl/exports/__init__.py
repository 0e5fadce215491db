"""Weights into other people's libraries, with proof that they arrived.

A target is one file and one row in `targets`. docs/architecture.md says how to add one.
"""
