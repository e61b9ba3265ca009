"""Communication of a training step, counted by hand: a test of the compiler's result."""

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

  - FSDP: every weight is gathered for the forward pass and again for the backward pass; its
    gradient is reduced and scattered. In the dtype of the computation, for every micro-batch.
  - data: every gradient is all-reduced, for every micro-batch.
  - tensor: a block sums its output twice forward and twice backward (Shoeybi et al. 2019), and
    twice more if it is recomputed; the head sums its input's gradient.
  - seq: keys and values pass around the ring in the forward pass; in the backward pass they and
    their gradients, in float32, do.
  - expert: with a capacity, tokens are sent to the experts and back, forward and backward, and
    twice more if blocks are recomputed.
  """
  choices, batch = x.choices, x.layout.rules['batch']
  width = 2 if choices.get('dtype') in ('bfloat16', 'float16') else 4
  micro = described(x.grad_fn).micro_batches
  activations = _activations(x, width)
  if activations is None:
    return None
  weights = sum(_weight(leaf, x.layout.mesh.shape, batch) for leaf in jax.tree.leaves(params))
  return round(micro * (width * weights + activations))


def _weight(leaf: Any, mesh: Any, batch: tuple[str, ...]) -> float:
  """Returns the received elements of one weight: twice gathered, once reduced, or all-reduced."""
  axes = [
    a for part in leaf.sharding.spec for a in ([part] if isinstance(part, str) else part or ())
  ]
  kept = math.prod(mesh[a] for a in axes if a != 'fsdp')
  size = math.prod(leaf.shape) / kept
  if mesh['fsdp'] > 1 and 'fsdp' in axes:
    return 3 * size
  return size if math.prod(mesh[a] for a in {*batch, 'seq'} if a not in axes) > 1 else 0.0


def _activations(x: Experiment, width: int) -> float | None:
  mesh, model = x.layout.mesh.shape, x.task.model
  if mesh['model'] * mesh['seq'] * mesh['expert'] == 1:
    return 0.0
  if not isinstance(model, GPT):
    return None
  micro = described(x.grad_fn).micro_batches
  rows, length = x.data.abstract['tokens'].shape
  cut = math.prod(mesh[a] for a in x.layout.rules['batch']) * mesh['seq']
  tokens = rows * length / micro / cut
  again = model.remat == 'full'  # products with weights are computed twice
  inner = model.remat != 'none'  # the ring and the experts are
  sent = 0.0
  if mesh['model'] > 1:
    passes = 4 + (2 if again else 0)
    sent += (model.depth * passes + 1) * tokens * model.width * width
  if mesh['seq'] > 1:
    head = model.head_dim or model.width // model.heads
    keys = 2 * tokens * (model.kv_heads or model.heads) * head / mesh['model']
    forward = keys * width * (2 if inner else 1)
    sent += model.depth * mesh['seq'] * (forward + keys * (width + 4))
  if mesh['expert'] > 1 and model.capacity_factor:
    chosen = tokens * model.top_k * model.capacity_factor
    sent += model.depth * (6 if inner else 4) * chosen * model.width * width
  return sent
