"""How a model is spread over the processes of a mesh, on torch's own parts.

torch's tensor parallelism costs 4 s to import and its pipelines as much again, so the modules that
use them are imported where a mesh needs them.
"""
