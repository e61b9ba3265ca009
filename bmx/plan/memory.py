"""Memory of one device during a training step, counted by hand from traced shapes."""

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.core.experiment import Experiment
from bmx.core.hardware import LANES
from bmx.core.types import Noise
from bmx.models.bert import BERT
from bmx.models.gpt import GPT
from bmx.ops.attention import ROWS, reference_attention
from bmx.parallel import unbox, use
from bmx.tasks.common import Wrapper
from bmx.tasks.language import CausalLM
from bmx.train.gradients import described
from bmx.train.state import state_spec

GIB = 2**30
LIVE = 0.6  # share of a layer's results
SCORES = 2.5  # arrays of float32 scores
FUSED = ('splash', 'cudnn', 'ring')  # implementations of attention that keep no scores


Traces = dict[str, Any]  # a key of what was traced -> its result


class Memory(NamedTuple):
  """Bytes of one device at the peak of a step, by kind.

  Attributes:
    parameters: in float32, with frozen collections and averages.
    moments: of the optimizer.
    gradients: of a micro-batch, and their sum over micro-batches.
    activations: that the forward pass keeps for the backward pass, the batch included.
    temporaries: of the layer, or of the loss, that is computed at the peak.
  """

  parameters: float
  moments: float
  gradients: float
  activations: float
  temporaries: float

  @property
  def total(self) -> float:
    """Bytes of all kinds."""
    return sum(self)


def estimate(x: Experiment, state: Any = None, traces: Traces | None = None) -> Memory:
  """Estimates the memory of one device during a training step.

  Args:
    x: the experiment.
    state: abstract and placed, if it is known.
    traces: results of earlier calls, for experiments that differ in layout alone.
  """
  state = state or state_spec(x).abstract
  local = lambda part: sum(shard_bytes(leaf) for leaf in jax.tree.leaves(part))
  moments = local(state.opt_state)
  micro = described(x.grad_fn).micro_batches
  gradients = sum(shard_bytes(leaf) for leaf in jax.tree.leaves(state.params))
  kept, temporary = activations(x, {} if traces is None else traces)
  batch = sum(math.prod(s.shape) * s.dtype.itemsize for s in x.data.abstract.values())
  return Memory(
    local(state) - moments,
    moments,
    gradients * (2 if micro > 1 else 1),
    kept + batch / shards(x),
    temporary,
  )


def shard_bytes(leaf: Any) -> int:
  """Returns the bytes of a placed, abstract array on one device."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def shards(x: Experiment) -> int:
  """Returns the number of parts that a batch is cut into."""
  return math.prod(x.layout.mesh.shape[a] for a in x.layout.rules['batch'])


def is_stack(model: Any) -> bool:
  """Returns whether a model is a stack of blocks, whose layers can be recomputed."""
  return isinstance(model, (GPT, BERT))


def activations(x: Experiment, traces: Traces) -> tuple[float, float]:
  """Returns bytes of one device: (kept for the backward pass, of the layer or loss at the peak).

  The residuals of the loss are traced on the part of model and batch that one device has, with one
  row and with two: they grow with the rows.
  """
  mesh = x.layout.mesh.shape
  rows = max(1, x.data.batch_size // described(x.grad_fn).micro_batches // shards(x))
  model = innermost(x.task).model
  fields = _local(model, mesh) | {'scan': True} if is_stack(model) else {}
  task = with_model(x.task, **fields) if fields else x.task
  one, two = (_of_rows(x, task, n, traces) for n in (1, 2))
  kept, layer, loss = (a + (rows - 1) * (b - a) for a, b in zip(one, two, strict=True))
  gathered = _gathered(model, fields) if fields and mesh['fsdp'] > 1 else 0.0
  return kept, max(layer + gathered, loss)


def _of_rows(x: Experiment, task: Any, rows: int, traces: Traces) -> tuple[float, float, float]:
  """Returns bytes for so many rows: kept, of a layer, of the loss."""
  mesh = x.layout.mesh.shape
  batch = {k: _part(v, rows, mesh['seq']) for k, v in x.data.abstract.items()}
  model = innermost(task).model
  if not is_stack(model):
    return _residuals(task, batch, None, True, traces), 0.0, 0.0
  parts, scores = mesh['model'], model.attention not in FUSED and model.remat == 'none'
  kept = _residuals(task, batch, parts, scores, traces)
  one, two = (
    _residuals(with_model(task, depth=n, remat='none'), batch, parts, False, traces) for n in (1, 2)
  )
  blocks = ROWS if x.layout.devices == 1 and batch['tokens'].shape[1] % ROWS == 0 else 1
  return kept, _layer(model, batch, two - one, blocks), _loss(x, batch)


def _part(spec: jax.ShapeDtypeStruct, rows: int, parts: int) -> jax.ShapeDtypeStruct:
  tail = spec.shape[1:]
  if tail and parts > 1 and tail[0] % parts == 0:
    tail = (tail[0] // parts, *tail[1:])
  return jax.ShapeDtypeStruct((rows, *tail), spec.dtype)


def _apart(batch: dict[str, Any], model: Any) -> dict[str, Any]:
  """Cuts rows until their length differs from all sizes of the model: scores are found by it."""
  sizes = {model.width, model.mlp_dim, model.head_dim, model.heads, _rows_of_table(model)}
  rows, length = batch['tokens'].shape
  while length in sizes and length % 2 == 0:
    rows, length = rows * 2, length // 2
  before = batch['tokens'].shape
  return {
    k: jax.ShapeDtypeStruct((rows, length, *v.shape[2:]), v.dtype) if v.shape[:2] == before else v
    for k, v in batch.items()
  }


def _rows_of_table(model: Any) -> int:
  return model.vocab_size + model.vocab_pad


def _local(model: Any, mesh: Any) -> dict[str, int]:
  """Returns the fields of the part of a transformer that one device has."""
  parts = mesh['model']
  head = model.head_dim or model.width // model.heads
  fields = {
    'depth': model.depth // mesh['pipe'],
    'heads': model.heads // parts,
    'head_dim': head,
    'mlp_dim': (model.mlp_dim or 4 * model.width) // parts,
  }
  if isinstance(model, GPT):
    fields['kv_heads'] = max(1, (model.kv_heads or model.heads) // parts)
    fields['experts'] = max(model.experts // mesh['expert'], min(model.experts, model.top_k))
  return fields


def with_model(task: Any, **fields: Any) -> Any:
  """Returns a task, or the innermost of a wrapper, with other fields of its model."""
  if isinstance(task, Wrapper):
    return dataclasses.replace(task, inner=with_model(task.inner, **fields))
  return dataclasses.replace(task, model=task.model.clone(**fields))


def _residuals(
  task: Any, batch: dict[str, Any], parts: int | None, scores: bool, traces: Traces
) -> float:
  """Returns the bytes that the forward pass keeps, without the variables themselves.

  Args:
    task: traced as it is.
    batch: abstract.
    parts: of the token table, one on each device; None for a model without one.
    scores: whether arrays of pairs of positions count.
    traces: results of earlier calls.
  """
  model = None if parts is None else innermost(task).model
  batch = batch if scores else _apart(batch, model)
  key = repr((task, sorted((k, v.shape) for k, v in batch.items()), parts, scores))
  if key not in traces:
    variables, kept = _traced(task, batch)
    known = collections.Counter((v.shape, v.dtype) for v in jax.tree.leaves(variables))
    total = 0.0 if model is None else _kernels(batch, model)
    for leaf in jax.tree.leaves(kept):
      if known[leaf.shape, leaf.dtype]:
        known[leaf.shape, leaf.dtype] -= 1
      elif scores or not _is_score(leaf.shape):
        total += _size(leaf, model, parts)
    traces[key] = total
  return traces[key]


def _traced(task: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
  """Returns the abstract variables of a task, and what its forward pass keeps."""

  def back(batch, noise):
    with use(None), reference_attention(recompute=True):
      variables = unbox(dict(task.init(noise, batch)))
      params = variables['params']
      loss = lambda p: task.loss({**variables, 'params': p}, batch, noise, train=True).sum
      return variables, jax.vjp(loss, params)[1]

  key: Any = jax.ShapeDtypeStruct((2,), jnp.uint32)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32)
  return jax.eval_shape(back, batch, Noise(key, step))


def _size(leaf: Any, model: Any, parts: int | None) -> float:
  size = math.prod(leaf.shape) * leaf.dtype.itemsize
  if model is None or parts is None:
    return size
  if leaf.dtype.itemsize > jnp.dtype(model.dtype).itemsize and leaf.ndim < 5:
    return 0.0  # a conversion, which compilers compute again from what it converts
  return size / parts if _rows_of_table(model) in leaf.shape else size


def _is_score(shape: tuple[int, ...]) -> bool:
  """Whether an array is of pairs of positions: scores of attention, or their mask."""
  return len(shape) > 3 and shape[-1] == shape[-2]


def _kernels(batch: dict[str, Any], model: Any) -> float:
  """Returns the bytes that fused attention keeps besides: results (with 'dots'), normalizers."""
  if model.attention not in FUSED or model.remat == 'full':
    return 0.0
  tokens = math.prod(batch['tokens'].shape)
  lanes = (
    math.ceil(model.head_dim / LANES) * LANES if model.attention == 'splash' else model.head_dim
  )
  width = jnp.dtype(model.dtype).itemsize * lanes if model.remat == 'dots' else 0
  return model.depth * tokens * model.heads * (width + 4)


def _layer(model: Any, batch: dict[str, Any], whole: float, blocks: int) -> float:
  """Returns the bytes of a layer in the backward pass.

  They are its results (`whole`), unless they are kept, the gradients of the widest two, and scores
  of plain attention, by blocks of rows, with their gradients. The shares that live at the peak are
  fitted to experiments/aot/results.json.
  """
  width = jnp.dtype(model.dtype).itemsize
  widest = math.prod(batch['tokens'].shape) * max(model.mlp_dim, model.width) * width
  rows, length = batch['tokens'].shape
  scores = 0.0 if model.attention in FUSED else 4.0 * rows * model.heads * length**2 / blocks
  return (0.0 if model.remat == 'none' else LIVE * whole) + 2 * widest + SCORES * scores


def _gathered(model: Any, fields: dict[str, int]) -> float:
  """Returns the bytes of a layer's gathered weights, of those of the next, and of a gradient."""
  experts = max(1, fields.get('experts', 1))
  heads = fields['heads'] + fields.get('kv_heads', fields['heads'])
  columns = 2 * heads * fields['head_dim'] + 3 * experts * fields['mlp_dim']
  return 3 * jnp.dtype(model.dtype).itemsize * model.width * columns


def _loss(x: Experiment, batch: dict[str, Any]) -> float:
  """Returns the bytes of the loss: scores of all tokens or of a chunk, and the table's gradient."""
  tokens, parts = math.prod(batch['tokens'].shape), x.layout.mesh.shape['model']
  task = innermost(x.task)
  rows = _rows_of_table(task.model) / parts
  if not isinstance(task, CausalLM) or not task.loss_method:
    return 2 * 4 * tokens * rows
  return 2 * 4 * rows * tokens / task.chunks + 4 * rows * task.model.width


def word(task: Any, name: str) -> str:
  """Returns the word of the config that sets a field of the model inside wrappers."""
  return f'task.{"inner." * depth(task)}model.{name}'


def depth(task: Any) -> int:
  """Returns the number of wrappers around a task."""
  return 1 + depth(task.inner) if isinstance(task, Wrapper) else 0


def innermost(task: Any) -> Any:
  """Returns the task that wrappers are around."""
  return innermost(task.inner) if isinstance(task, Wrapper) else task
