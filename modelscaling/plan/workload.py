"""What is to be planned: a training, and the processes that are there for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.api.parallelism import TensorPlacement
from modelscaling.api.training import ActivationCheckpointing, CompileMode, Precision

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh
    from modelscaling.shape import ModelShape

_BYTES = {Precision.FLOAT32: 4, Precision.BFLOAT16: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The numbers that decide which mesh can be had."""

    shape: ModelShape
    global_batch_size: int
    micro_batch_size: int | None
    """As declared; None where it is chosen with the mesh."""
    precision: Precision
    activation_checkpointing: ActivationCheckpointing
    compile: CompileMode
    replicas: int
    processes_per_replica: int
    tensor_placement: TensorPlacement
    computes_on_cpu: bool
    """Whether the pods ask for no device, so that attention is a CPU's."""
    device_memory: int | None
    """Bytes that one process may use; None where that is not limited."""
    device_memory_field: str
    """The field that says so, for messages."""

    @property
    def processes(self) -> int:
        """The number of worker processes."""
        return self.replicas * self.processes_per_replica

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the matrix products."""
        return _BYTES[self.precision]

    def samples_of(self, mesh: Mesh) -> int:
        """Return the samples of the global batch that each data-parallel part of `mesh` has."""
        return self.global_batch_size // mesh.data_parallel

    def tensor_fits(self, tensor: int) -> bool:
        """Whether that many processes may be neighbours of a tensor-parallel group."""
        is_free = self.tensor_placement is TensorPlacement.ACROSS_PODS
        return is_free or self.processes_per_replica % tensor == 0
