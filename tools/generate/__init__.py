"""Writes every generated file of the repository, and tells which of them are out of date.

`python -m tools.generate` writes them, `python -m tools.generate --check` exits 1 and names those
that differ from what would be written.
"""
