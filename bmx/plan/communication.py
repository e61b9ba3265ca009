"""Communication of a training step, counted by hand: a test of the compiler's result."""

import collections
import math
from typing import Any

import jax

from bmx.core.experiment import Experiment
from bmx.models.gpt import GPT
from bmx.train.gradients import described


def expected(x: Experiment, params: Any) -> int | None:
  """Returns the bytes of the arrays that one device receives in a training step.

  None: the mesh cuts activations of a model other than `GPT`, without a known count.

  Args:
    x: the experiment.
    params: the abstract parameters, with their placement.
  """
  found = received(x, params)
  return None if found is None else round(sum(found.values()))


def received(x: Experiment, params: Any) -> dict[str, float] | None:
  """Returns mesh axis -> bytes of the arrays that one device receives along it in a step.

  None as in `expected`. An all-reduce over several axes counts for the outermost.

  - FSDP: every weight is gathered for the forward pass and again for the backward pass; its
    gradient is reduced and scattered. In the dtype of the computation, for every micro-batch.
    With `data` besides, each part of a gradient is all-reduced along it.
  - data: every gradient is all-reduced, for every micro-batch.
  - tensor: a block sums its output twice forward and twice backward (Shoeybi et al. 2019), and
    twice more if it is recomputed; the head sums its input's gradient.
  - seq: keys and values pass around the ring in the forward pass; in the backward pass they and
    their gradients, in float32, do.
  - expert: with a capacity, tokens are sent to the experts and back, forward and backward, and
    twice more if blocks are recomputed.
  """
  width = 2 if x.choices.get('dtype') in ('bfloat16', 'float16') else 4
  micro = described(x.grad_fn).micro_batches
  activations = _activations(x, width)
  if activations is None:
    return None
  found: dict[str, float] = collections.defaultdict(float)
  for leaf in jax.tree.leaves(params):
    for axis, elements in _weight(leaf, x.layout.mesh.shape, x.layout.rules['batch']).items():
      found[axis] += micro * width * elements
  for axis, size in activations.items():
    found[axis] += micro * size
  return {axis: size for axis, size in found.items() if size}


def _weight(leaf: Any, mesh: Any, batch: tuple[str, ...]) -> dict[str, float]:
  """Returns axis -> received elements of one weight: twice gathered, once reduced; or reduced.

  The reduced and scattered part of a gradient is all-reduced over the axes that do not shard it.
  """
  axes = [
    a for part in leaf.sharding.spec for a in ([part] if isinstance(part, str) else part or ())
  ]
  kept = math.prod(mesh[a] for a in axes if a != 'fsdp')
  size = math.prod(leaf.shape) / kept
  over = [a for a in (*batch, 'seq') if a not in axes and mesh[a] > 1]
  if mesh['fsdp'] > 1 and 'fsdp' in axes:
    return {'fsdp': 3 * size} | {a: size / mesh['fsdp'] for a in over[:1]}
  return {a: size for a in over[:1]}


def _activations(x: Experiment, width: int) -> dict[str, float] | None:
  """Returns axis -> bytes of activations that one device receives in a micro-batch."""
  mesh, model = x.layout.mesh.shape, x.task.model
  if mesh['model'] * mesh['seq'] * mesh['expert'] == 1:
    return {}
  if not isinstance(model, GPT):
    return None
  micro = described(x.grad_fn).micro_batches
  rows, length = x.data.abstract['tokens'].shape
  cut = math.prod(mesh[a] for a in x.layout.rules['batch']) * mesh['seq']
  tokens = rows * length / micro / cut
  again = model.remat == 'full'  # products with weights are computed twice
  inner = model.remat != 'none'  # the ring and the experts are
  sent = {}
  if mesh['model'] > 1:
    passes = 4 + (2 if again else 0)
    sent['model'] = (model.depth * passes + 1) * tokens * model.width * width
  if mesh['seq'] > 1:
    head = model.head_dim or model.width // model.heads
    keys = 2 * tokens * (model.kv_heads or model.heads) * head / mesh['model']
    forward = keys * width * (2 if inner else 1)
    sent['seq'] = model.depth * mesh['seq'] * (forward + keys * (width + 4))
  if mesh['expert'] > 1 and model.capacity_factor:
    chosen = tokens * model.top_k * model.capacity_factor
    sent['expert'] = model.depth * (6 if inner else 4) * chosen * model.width * width
  return sent
