"""`plan` is `train` without the last call: the same state and step, compiled for other devices."""

import dataclasses
import re
import time
from typing import Any

import jax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.parallel import describe, jit
from bmx.plan import communication, hlo
from bmx.runtime import cache
from bmx.train.state import StateSpec, state_spec
from bmx.train.step import abstract_secret, train_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A training step compiled for devices that may be absent.

  Attributes:
    program: the compiled executable.
    params: its abstract parameters, with their placement.
    seconds: duration of the compilation.
    peak: largest bytes on one device at a time, arguments included.
    arguments: bytes of the arguments alone.
    collectives: communication of the step.
    kernels: calls of Pallas or vendor kernels.
  """

  program: Any
  params: Any
  seconds: float
  peak: int
  arguments: int
  collectives: list[hlo.Collective]
  kernels: int


def lower_step(x: Experiment, plan: StateSpec) -> Any:
  """Traces one training step of an experiment -> jax's lowered program."""
  step = train_step(x)
  at = x.layout.batch(x.data.spec, x.data.batch_size)
  batch = {
    k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=at[k]) for k, v in x.data.abstract.items()
  }
  program = jit(step, x.layout, donate_argnums=(0,), out_shardings=(plan.shardings, None))
  return program.lower(plan.abstract, batch, abstract_secret(x))


def compile_step(x: Experiment) -> Compiled:
  """Compiles one training step of an experiment that was built on a topology's devices.

  Raises InputError if it does not fit the memory of a device.
  """
  plan = state_spec(x)
  began = time.perf_counter()
  try:
    with cache.nothing_kept():
      compiled = lower_step(x, plan).compile()
  except jax.errors.JaxRuntimeError as error:
    raise _too_large(x, error) from None
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  return Compiled(
    compiled,
    plan.abstract.params,
    time.perf_counter() - began,
    _peak(memory, x.layout.mesh.devices.flat[0].platform),
    memory.argument_size_in_bytes,
    hlo.collectives(text),
    len(re.findall(r'custom_call_target="(?:tpu_custom_call|__cudnn\$fmha\w*)"', text)),
  )


def _peak(memory: Any, platform: str) -> int:
  """Returns the peak; XLA:CPU leaves arguments out of it, so there: all buffers together."""
  if platform != 'cpu':
    return memory.peak_memory_in_bytes
  kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + kept + memory.temp_size_in_bytes


def _too_large(x: Experiment, error: Exception) -> Exception:
  if 'RESOURCE_EXHAUSTED' not in str(error):
    return error
  device = x.layout.mesh.devices.flat[0].device_kind
  reason = str(error).removeprefix('RESOURCE_EXHAUSTED: ').splitlines()[0]
  return InputError(
    f'the step does not fit a {device}: {reason}\nmore devices on mesh.fsdp or mesh.model, more '
    'steps of accumulation, remat, or a smaller batch_size make it smaller'
  )


def whole_parameters(params: Any, found: list[hlo.Collective]) -> list[str]:
  """Counts all-reduces of a whole sharded parameter: gradients that should have been scattered.

  If one axis spans a whole TPU slice, libtpu writes even an explicit reduce-scatter so.
  """
  shapes = set()
  for name, leaf in tree.named(params).items():
    if 'fsdp' in str(leaf.sharding.spec):
      shapes.add(_squeezed(leaf.shape[1:] if '/blocks/' in name else leaf.shape))
  dims = lambda c: _squeezed(int(d) for d in re.findall(r'\d+', c.shape.partition('[')[2]))
  return sorted({c.shape for c in found if c.kind == 'all-reduce' and dims(c) in shapes})


def _gib(size: int) -> float:
  return round(size / GIB, 2 if size > GIB else 5)


def _squeezed(shape: Any) -> tuple[int, ...]:
  return tuple(n for n in shape if n > 1)


def summarize(x: Experiment, made: Compiled) -> dict[str, Any]:
  """Summarizes a compiled step, as JSON holds it; sizes in GiB on one device."""
  sent, hand = hlo.total(made.collectives), communication.expected(x, made.params)
  received = sum(sent.values())
  return {
    'devices': x.layout.devices,
    'mesh': describe(x.layout.mesh),
    'compile_seconds': round(made.seconds, 1),
    'peak_gib': _gib(made.peak),
    'arguments_gib': _gib(made.arguments),
    'kernels': made.kernels,
    'attention': x.choices.get('attention', ''),
    'received_gib': {k: round(v / GIB, 3) for k, v in sent.items()},
    'analytic_estimate_gib': None if hand is None else round(hand / GIB, 3),
    'over_analytic_estimate': round(received / hand, 2) if hand else None,
    'whole_parameters_all_reduced': whole_parameters(made.params, made.collectives),
  }
