"""Time of a training step: a bound that no program beats, and the likely time."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from bmx.core.chips import Chip
from bmx.core.experiment import Experiment
from bmx.parallel.mesh import count_slices
from bmx.plan.costs import StepCosts


class StepTime(NamedTuple):
  """Seconds of one training step.

  Attributes:
    compute: of the products at the peak of the chip.
    memory: of the traffic with the memory at its peak.
    network: of the received bytes at the peak of the links; 0 if they are not known.
    efficiency: share of the bound that is likely reached.
  """

  compute: float
  memory: float
  network: float
  efficiency: float

  @property
  def bound(self) -> float:
    """Seconds if compute, memory and network overlap, each at its peak."""
    return max(self.compute, self.memory, self.network)

  @property
  def apart(self) -> float:
    """Seconds if the network waits for compute, at the peaks."""
    return max(self.compute, self.memory) + self.network

  @property
  def likely(self) -> float:
    """Seconds at the efficiency of the family of chips."""
    return self.bound / self.efficiency

  @property
  def limit(self) -> str:
    """Name of the resource that bounds the step."""
    times = {'compute': self.compute, 'memory': self.memory, 'network': self.network}
    return max(times, key=lambda name: times[name])


def predict(x: Experiment, costs: StepCosts, chip: Chip) -> StepTime:
  """Predicts the time of a training step on absent devices of one kind.

  Args:
    x: the experiment, whose mesh spans the devices.
    costs: of its step.
    chip: of each device.
  """
  peak = chip.peak(x.choices.get('dtype', 'float32'))
  return StepTime(
    costs.run / x.layout.devices / peak,
    costs.traffic / chip.bandwidth,
    _network(x, costs.received or {}, chip),
    chip.efficiency,
  )


def _network(x: Experiment, received: Mapping[str, float], chip: Chip) -> float:
  mesh = x.layout.mesh
  node = chip.node or mesh.size // count_slices(list(mesh.devices.flat))
  return sum(max(both) for both in network(mesh.shape, received, chip, node).values())


def network(
  mesh: Mapping[str, int], received: Mapping[str, float], chip: Chip, node: int
) -> dict[str, tuple[float, float]]:
  """Returns the seconds in which a device receives its bytes by axis: in a node, between nodes.

  Of an array of which each of n devices has a part, 1 - 1/n arrives. Between nodes, the devices of
  a node that receive the same array share it: each receives a part through its adapter.

  Args:
    mesh: axis -> size, the slowest first.
    received: axis -> bytes that a device receives, see `costs.StepCosts`.
    chip: of each device.
    node: devices that share the fast network: of a node, or of a slice.
  """
  found, inner = {}, math.prod(mesh.values())
  for axis, n in mesh.items():
    inner //= n
    size = received.get(axis, 0.0)
    local = min(n, max(1, node // inner))  # devices of the axis in a node
    fast = size * (1 - 1 / n) / chip.link
    slow = size * (1 - local / n) / local / chip.network if chip.network else 0.0
    found[axis] = fast, slow
  return found
