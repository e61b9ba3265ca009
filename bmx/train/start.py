"""Report at the start of a run: parameters, placement, costs, choices."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core import costs, hardware, tree
from bmx.core.costs import Costs
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.paths import how_to_fetch
from bmx.core.types import facts_of
from bmx.ops.attention import reference_attention
from bmx.parallel import describe, jit
from bmx.runtime.storage import Place, place
from bmx.train.feed import THREADS, Feed
from bmx.train.guard import all_finite
from bmx.train.parameters import parameter_table
from bmx.train.policy import LoopState
from bmx.train.state import StateSpec, variables_of
from bmx.train.step import abstract_secret, make_dispatch, step_noise, train_step

log = logging.getLogger('bmx')
RATES_CHECKED = 10_000  # steps whose learning rates are examined before the run
GROUP_FLOPS = 5e9  # about a tenth of a second of one CPU: dispatching then costs little
MAX_DEPTH = 50
# XLA:CPU gets the memory of large temporaries from the kernel anew at every call: a sixth of the
# time of a 10.6 M GPT's step alone, a twentieth of it among four. A longer step would let a signal
# wait.
FEW, LONG_FLOPS = 4, 2e11
GROUP_BYTES = 64e6  # of host-fed rows
NO_OPTIMIZER = 'optax:identity'  # that mode `compress` writes


def step_costs(x: Experiment, plan: StateSpec, recompute: bool = False) -> Costs:
  """Returns the costs of one training step on all devices, counted on the traced GradFn.

  The work of wrappers (adapters, a teacher, clipping) is counted.

  Args:
    x: the experiment.
    plan: shapes of its state.
    recompute: whether recomputation is counted, as the model's `remat` asks for it.
  """

  def gradient(state, batch, secret):
    with reference_attention(recompute):
      return x.grad_fn(variables_of(state), batch, step_noise(state, state.step, secret))

  return costs.count(gradient, plan.abstract, x.data.abstract, abstract_secret(x))


def check_weights(x: Experiment) -> None:
  """Raises InputError if the folder of the weights to start from does not exist."""
  if x.weights and not place(x.weights).is_dir():
    raise InputError(
      f'--config.init.path={x.weights}: expected a directory{how_to_fetch(x.weights)}'
    )


def check_optimizer(x: Experiment, workdir: Place) -> None:
  """Raises InputError for the optimizer of a compressed run, which trains nothing."""
  if x.config['optimizer'].get('call') != NO_OPTIMIZER:
    return
  raise InputError(
    f'optimizer={NO_OPTIMIZER}: expected an optimizer that trains; {workdir} is a compressed or '
    'exported run, whose weights stay as they are. To train on, start a new run in another '
    f'--workdir: adapters around it (task bmx.adapt.lora:LoRA, --config.init.path={workdir}), or '
    'the run that it was made from with its rounding (bmx.compress.quantize:FakeQuantize) or its '
    'masks (bmx.compress.prune:prune), which is compressed afterwards'
  )


def loops(x: Experiment, counted: Costs) -> bool:
  """Returns whether several steps may share a program.

  XLA:CPU runs convolutions inside a loop on one thread and without its fast kernels (5×5 kernels,
  32 → 64 channels: 17 times slower).

  Args:
    x: the experiment.
    counted: costs of a step.
  """
  return not (_on_cpu(x) and counted.convolves)


def keep_memory(x: Experiment) -> bool:
  """See `hardware.keep_freed_memory`; False unless the devices are CPUs."""
  return _on_cpu(x) and hardware.keep_freed_memory()


def _on_cpu(x: Experiment) -> bool:
  return x.layout.mesh.devices.flat[0].platform == 'cpu'


def units(x: Experiment) -> dict[str, int]:
  """Returns the examples or tokens that a step reads, by the name of the unit."""
  examples = {'examples': round(x.data.expected)}
  if 'tokens' in x.data.abstract:
    return {'tokens': math.prod(x.data.abstract['tokens'].shape)}
  return examples


def choose_dispatch(x: Experiment, counted: Costs) -> int:
  """Returns the steps per jitted call: the config's, or (0) enough to hide the cost of a call.

  Args:
    x: the experiment.
    counted: costs of a step.
  """
  flops = counted.flops
  if x.steps_per_call:
    return x.steps_per_call
  if not loops(x, counted):
    return 1
  few = FEW if _on_cpu(x) and flops < LONG_FLOPS else 1
  depth = min(MAX_DEPTH, max(few, math.ceil(GROUP_FLOPS / max(flops, 1))))
  if x.data.resident() is None:
    rows = sum(math.prod(s.shape) * s.dtype.itemsize for s in x.data.abstract.values())
    depth = min(depth, int(GROUP_BYTES // rows))
  return max(1, min(depth, x.every.log or depth, x.steps))


def learning_rates(x: Experiment) -> dict[int, float]:
  """Computes step of a log line -> rate of the update before it.

  All rates come from one program and cover the whole run: separate calls would wait for steps in
  flight, and a resumed run must log the same bits.

  Raises InputError for a rate that is not finite or is negative, at these steps or at one of
  `RATES_CHECKED` others.
  """
  every = x.every.log or x.steps
  marks = np.array(sorted({*range(every, x.steps, every), x.steps}), np.int32)
  others = np.linspace(0, x.steps - 1, min(x.steps, RATES_CHECKED)).astype(np.int32)
  steps = np.concatenate([marks - 1, others])
  rates = _rates(x, steps)
  bad = ~(np.isfinite(rates) & (rates >= 0))
  if bad.any():
    step = steps[bad].min()
    raise InputError(
      f'schedule: the learning rate of step {step} is {rates[steps == step][0]}: expected a finite '
      'number, at least 0; change --config.schedule'
    )
  return dict(zip(marks.tolist(), rates[: len(marks)].tolist(), strict=True))


def compare_rates(x: Experiment, logged: Sequence[float]) -> tuple[float, ...]:
  """Warns if the schedule gives another learning rate than the run had, as more steps may do.

  Args:
    x: the experiment of the resumed run.
    logged: `LoopState.rate`.

  Returns:
    The learning rate of the newest logged step, before and now; () if they are equal.
  """
  if not logged:
    return ()
  step, before = int(logged[0]), logged[1]
  now, following = _rates(x, np.array([step - 1, step], np.int32)).tolist()
  if not np.isclose(now, before, rtol=1e-3, atol=0):
    log.warning(
      'THE SCHEDULE HAS CHANGED: the learning rate of step %d was %.3g and is %.3g now, that of '
      'the next step %.3g. A schedule of the number of steps is stretched over the new number; for '
      'another one, start in a new --workdir with --config.init.path=THIS_WORKDIR',
      step - 1, before, now, following,
    )  # fmt: skip
    return before, now
  return ()


def _rates(x: Experiment, steps: np.ndarray) -> np.ndarray:
  everywhere = NamedSharding(x.layout.mesh, PartitionSpec())
  return np.asarray(jit(jax.vmap(x.schedule), x.layout, out_shardings=everywhere)(steps))


def peak_flops(x: Experiment) -> float:
  """Returns the FLOP/s of all devices together; 0 if the chip is unknown."""
  chip = hardware.chip(x.layout.mesh.devices.flat[0])
  return chip.flops * x.layout.devices if chip else 0.0


def published_parameters(x: Experiment, plan: StateSpec) -> int:
  """Counts the parameters without the rows that pad a table."""
  return tree.count(plan.abstract.params) - facts_of(x.task.model).padded_parameters


def describe_start(
  x: Experiment, plan: StateSpec, flops: int, depth: int, step: int | None, kept: bool
) -> str:
  """Formats the start table: parameters with their placement, and every choice.

  Args:
    x: the experiment.
    plan: shapes and placement of its state.
    flops: of a step on all devices.
    depth: steps per jitted call.
    step: of the checkpoint that the run resumes; None for a new run.
    kept: result of `keep_memory`.
  """
  device = x.layout.mesh.devices.flat[0]
  per = next(iter(units(x)))[:-1]
  resident = x.data.resident() is not None
  threads = f'{THREADS} threads' if THREADS > 1 else 'a thread'
  facts = [
    f'{x.name}: {published_parameters(x, plan):,} parameters, '
    f'{flops / next(iter(units(x).values())):.4g} training FLOPs per {per} '
    '(contractions of the gradient, attention in full)',
    f'device     {x.layout.devices} × {device.device_kind}, mesh {describe(x.layout.mesh)}'
    f'{"; freed memory is kept for the next step" if kept else ""}',
    f'state      {_per_device(plan.abstract):,} bytes per device with moments',
    f'data       {x.data.size:,} examples, batch {_rows(x)}, '
    f'{"held on the device" if resident else f"fed from the host by {threads}"}; '
    f'{x.data.metadata.get("source", "")}',
    f'rules      {_rules(x.layout)}',
    f'choices    {", ".join(f"{k} {v}" for k, v in sorted(x.choices.items()))}',
    f'start      {"a new run" if step is None else f"from the checkpoint of step {step:,}"}',
    f'run        {x.steps:,} steps, {depth} per dispatch, seed {x.seed}',
  ]
  return '\n'.join([parameter_table(x, plan), *facts])


def _rows(x: Experiment) -> str:
  rows, expected = x.data.batch_size, x.data.expected
  return f'{rows}' if rows == expected else f'{expected:g} on average, in {rows} rows'


def _rules(layout: Any) -> str:
  """Formats the rules in use on this mesh, and those whose compute placement differs."""
  there = lambda axes: '+'.join(a for a in axes if layout.mesh.shape[a] > 1)
  stored = {k: there(v) for k, v in layout.rules.items()}
  used = {k: there(v) for k, v in layout.compute.items()}
  lines = [f'{k} on {v}' + (f' (gathered to use: {used[k] or "whole"})' if used[k] != v else '')
           for k, v in stored.items() if v]  # fmt: skip
  return ', '.join(lines) or 'one device: nothing is sharded'


def _per_device(abstract: Any) -> int:
  """Returns the bytes of a state on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract)
  )


def compile_program(
  x: Experiment, spec: StateSpec, feed: Feed, arrays: Any, loop: LoopState, step: int
) -> tuple[Any, Any]:
  """Compiles the one program of all dispatches and the test of a state, before the first."""
  began = time.perf_counter()
  everywhere = NamedSharding(x.layout.mesh, PartitionSpec())
  patience = x.guard['patience']
  dispatch = make_dispatch(train_step(x), feed.take, patience, feed.depth, x.task.constant)
  finite = jit(all_finite, x.layout, out_shardings=everywhere).lower(spec.abstract).compile()
  group, _ = next(feed.groups([(step, 1)]))
  at = (spec.shardings, everywhere, everywhere)
  program = jit(dispatch, x.layout, donate_argnums=(0,), out_shardings=at)
  secret = abstract_secret(x)
  compiled = program.lower(spec.abstract, arrays, group, np.int32(0), secret).compile()
  seconds = time.perf_counter() - began
  loop.compile_seconds += seconds
  log.info('compiled in %.1f s', seconds)
  return compiled, finite
