"""ModelScaling: scale PyTorch models on Kubernetes.

This package is the part that the operator, the trainer and the command line share: the typed
API, sizes, meshes, plans and the protocol between operator and agents. It is pure: it imports
neither torch nor kopf.
"""

__version__ = "0.1.0"
