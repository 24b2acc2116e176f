"""Backends of the stages: `torch` in this process, `triton` on a server, `scripted` with no model.

`loading` returns an implementation of `protocols`.
"""
