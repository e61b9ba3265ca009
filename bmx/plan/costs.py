"""Costs of a training step, counted by hand: FLOPs, memory traffic, received bytes."""

from typing import Any, NamedTuple

from bmx.core.experiment import Experiment
from bmx.models.bert import BERT
from bmx.ops.attention import ROWS
from bmx.plan import communication
from bmx.plan.memory import FUSED, Memory, Traces, innermost, is_stack, with_model
from bmx.train.gradients import described
from bmx.train.start import published_parameters, step_costs, units
from bmx.train.state import StateSpec, state_spec

ON_CHIP = 2**27  # bytes: no chip here has more memory next to its units (VMEM, L2)


class StepCosts(NamedTuple):
  """Costs of one training step.

  Attributes:
    parameters: trained and frozen, without padding.
    unit: 'tokens' or 'examples'.
    units: that a step reads.
    flops: of the products of all devices: attention in full, without recomputation (PaLM).
    run: the same as they run: recomputation is counted, masked blocks that a kernel skips are not.
    traffic: bytes that one device reads and writes in its memory, at least.
    received: mesh axis -> bytes that one device receives; None if they are not known.
  """

  parameters: int
  unit: str
  units: int
  flops: float
  run: float
  traffic: float
  received: dict[str, float] | None


def count(
  x: Experiment, memory: Memory, plan: StateSpec | None = None, traces: Traces | None = None
) -> StepCosts:
  """Counts the costs of a training step of an experiment; its devices may be absent.

  Args:
    x: the experiment.
    memory: that its step needs.
    plan: of its state, if it is known.
    traces: results of earlier calls, for experiments that differ in layout alone.
  """
  plan, traces = plan or state_spec(x), {} if traces is None else traces
  flops = _products(x, plan, False, traces)
  run = flops if _keeps_all(x) else _products(x, plan, True, traces)
  (unit, number), *_ = units(x).items()
  return StepCosts(
    published_parameters(x, plan),
    unit,
    number,
    flops,
    run - _skipped(x),
    _traffic(x, memory),
    communication.received(x, plan.abstract.params),
  )


def _products(x: Experiment, plan: StateSpec, recompute: bool, traces: Traces) -> int:
  """Returns the FLOPs of a step, which do not depend on the layout or on micro-batches."""
  model = innermost(x.task).model
  plain = not recompute and is_stack(model)
  task = with_model(x.task, remat='none', attention='xla') if plain else x.task
  key = repr(('flops', task, recompute, x.data.batch_size))
  if key not in traces:
    traces[key] = step_costs(x, plan, recompute).flops
  return traces[key]


def _keeps_all(x: Experiment) -> bool:
  return x.choices.get('remat', 'none') == 'none'


def _skipped(x: Experiment) -> float:
  """Returns the FLOPs of attention that a trace of plain attention counts and that do not run.

  Kernels, and plain attention on one device in `ROWS` blocks, leave out masked blocks. Kernels keep
  their results where the policy is 'dots'.
  """
  model: Any = innermost(x.task).model
  if not is_stack(model):
    return 0.0
  rows, length = x.data.abstract['tokens'].shape
  head = model.head_dim or model.width // model.heads
  forward = 4.0 * rows * length**2 * model.heads * head * model.depth
  fused = model.attention in FUSED
  again = 0 if model.remat == 'none' else 1
  kept = (
    forward * again if model.remat == 'dots' and model.attention in ('splash', 'cudnn') else 0.0
  )
  passes = (3 + again) * forward - kept
  return kept + passes * (1 - _seen(model, length, fused, x.layout.devices))


def _seen(model: Any, length: int, fused: bool, devices: int) -> float:
  """Returns the share of pairs of positions that are computed."""
  if isinstance(model, BERT):
    return 1.0
  if fused:
    window = min(model.window or length, length)
    return (window * length - window * (window - 1) / 2) / length**2
  return (ROWS + 1) / (2 * ROWS) if devices == 1 and length % ROWS == 0 else 1.0


def _traffic(x: Experiment, memory: Memory) -> float:
  """Returns the bytes of a step: weights and gradients by micro-batch, activations, the update.

  An update reads parameters, moments and gradients and writes parameters and moments. Results
  for the backward pass are written and read once. Of each, `ON_CHIP` bytes may stay on the chip.
  """
  micro = described(x.grad_fn).micro_batches
  width = 0.5 if x.choices.get('dtype') in ('bfloat16', 'float16') else 1.0
  passes = 2 if _keeps_all(x) else 3
  beyond = lambda size: max(0.0, size - ON_CHIP)
  weights = passes * beyond(width * memory.parameters)
  kept = 2 * beyond(memory.activations)
  return micro * (weights + kept) + 2 * beyond(memory.parameters + memory.moments)
