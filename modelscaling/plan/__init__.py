"""The plan: which meshes are legal, what a process of each needs, and which one a run is given.

Pure functions of a `Workload`; nothing here enumerates ranks, so thousands of processes are planned
in milliseconds.
"""

from modelscaling.plan.choice import Plan, Rejection, check_mesh, choose_mesh
from modelscaling.plan.memory import MemoryEstimate
from modelscaling.plan.workload import Workload

__all__ = ["MemoryEstimate", "Plan", "Rejection", "Workload", "check_mesh", "choose_mesh"]
