"""On what the trainer runs, and whether it waits for a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ratchet.api.v1alpha1.trainingjob import Gpu
from ratchet_operator.conditions import Verdict, no, unknown, yes

Device = Literal["CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device, whether the trainer may start, and AcceleratorReady (None: no GPU was asked for)."""

    device: Device
    may_start: bool
    verdict: Verdict | None
    fell_back: bool = False


def choose_device(
    gpu: Gpu | None, most_on_a_node: Mapping[str, int] | None, running_on: Device | None
) -> DeviceChoice:
    """Choose once per start of the trainer, and stay with it.

    Args:
        gpu: what the job asks for.
        most_on_a_node: the largest number of each device on any one node; None where nodes can't be seen.
        running_on: device of the trainer that runs now, None where none runs. A device plugin that restarts
            takes its devices away for a moment; that must not restart the trainer.

    """
    if gpu is None or gpu.count == 0:
        return DeviceChoice("CPU", True, None)
    wanted = f"{gpu.count} x {gpu.resource_name}"
    if running_on == "GPU":
        return DeviceChoice("GPU", True, yes("Allocated", f"The trainer has {wanted}."))
    if most_on_a_node is None:
        return DeviceChoice(
            "GPU",
            True,
            unknown("NodesNotVisible", f"The operator may not list nodes; {wanted} asked for as written."),
        )
    there = most_on_a_node.get(gpu.resource_name, 0)
    lack = f"No node has {wanted}" + (f"; the largest has {there}." if there else ".")
    if running_on == "CPU" and gpu.fallback == "CPU":
        lack = lack if there < gpu.count else f"A node with {wanted} came later: the next start will use it."
        return DeviceChoice(
            "CPU", True, no("FallbackCPU", f"{lack} Training on CPU, as gpu.fallback: CPU says."), True
        )
    if there >= gpu.count:
        return DeviceChoice("GPU", True, yes("Available", f"A node has {wanted}."))
    if gpu.fallback == "CPU":
        return DeviceChoice(
            "CPU", True, no("FallbackCPU", f"{lack} Training on CPU, as gpu.fallback: CPU says."), True
        )
    return DeviceChoice("GPU", False, no("WaitingForGPU", f"{lack} Waiting, as gpu.fallback: None says."))
