"""Methods by name: attributions of a batch, one number for each feature, pixel or token."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Array, Batch, Task, Variables
from bmx.interpret import ablation, fields, gradients, maps
from bmx.interpret.features import Features
from bmx.interpret.patches import places
from bmx.interpret.subject import Score, Subject, input_key, last_positions
from bmx.models.bert import Classifier, Tagger
from bmx.models.gpt import GPT
from bmx.models.vit import ViT
from bmx.parallel import Layout, jit

MAX_PARTS = 256  # of the path of integrated gradients, each of `gradients.NODES` gradients
EVERY = ('integrated_gradients', 'saliency', 'smoothgrad', 'occlusion')


@dataclasses.dataclass(frozen=True)
class Options:
  """Numbers of the methods.

  Attributes:
    samples: draws of SmoothGrad; orders of Shapley values, rounded up to weight all backgrounds
      alike.
    layer: path of the layer of Grad-CAM; '' is the last one of maps.
    seed: of the draws.
  """

  samples: int = 64
  layer: str = ''
  seed: int = 0


class Explanation(NamedTuple):
  """Attributions of a batch.

  Attributes:
    values: float [B, G] of the features of a table, [B, I, J] of images, [B, T] of tokens.
    signed: whether values below 0 lower the output; else they are sizes.
    errors: float [B, G], standard errors; None without.
    notes: facts for people.
  """

  values: np.ndarray
  signed: bool
  errors: np.ndarray | None = None
  notes: Mapping[str, str] = {}


def methods_of(task: Task, variables: Variables, batch: Batch) -> tuple[str, ...]:
  """Returns the methods that a model can give, the one that fits its input best first."""
  key = input_key(batch)
  if key == 'x':
    return 'shapley', *EVERY
  if key == 'ids':  # categories have no gradient
    return 'shapley', 'occlusion'
  extra = ['shapley'] if key == 'tokens' else []
  if key == 'image' and maps.convolution_paths(places(task, variables, batch)):
    extra.append('gradcam')
  if isinstance(task.model, Classifier | GPT | Tagger | ViT):
    extra.append('rollout')
  return *EVERY, *extra


def check_method(method: str, known: tuple[str, ...], model: Any) -> str:
  """Returns the method to use; the first one for 'auto'.

  Raises InputError naming those that the model can give.
  """
  if method == 'auto':
    return known[0]
  if method not in known:
    hint = did_you_mean(method, known)
    suggested = hint if 'did you mean' in hint else ''
    raise InputError(
      f'explain.method={method}: expected one that {type(model).__name__} on this input can give, '
      f'{", ".join(known)}{suggested}'
    )
  return method


def explain(
  method: str,
  task: Task,
  layout: Layout,
  variables: Variables,
  batch: Batch,
  target: Array,
  features: Features,
  background: np.ndarray,
  options: Options,
) -> Explanation:
  """Explains one output of each example.

  Args:
    method: of `methods_of`.
    task: over the model.
    layout: mesh and rules.
    variables: of the model.
    batch: of examples, placed.
    target: the explained outputs, see `Subject`.
    features: of the input.
    background: [M, ...], inputs that features are replaced by; of tokens 0, an embedding; of the
      columns of a click model packed, see `fields`.
    options: of the methods.
  """
  call = _Call(task, layout, variables, batch, target)
  key = input_key(batch)
  mean: Any = (
    fields.typical(background, batch['x'].shape[1])
    if key == 'ids'
    else background.mean(0, keepdims=True)
  )
  if method == 'rollout':
    return Explanation(call(_rollout), signed=False)
  if method == 'gradcam':
    shape = batch['image'].shape[1:3]
    cam = lambda s: maps.resized(maps.grad_cam(s, options.layer), shape)
    return Explanation(call(cam), signed=False)
  if method == 'saliency':
    found = call(_of_input(lambda f, x: _size(gradients.saliency(f, x), key, features)))
    return Explanation(found, signed=False)
  if method == 'smoothgrad':
    random = jax.random.PRNGKey(options.seed)
    smooth = lambda f, x: gradients.smooth_grad(f, x, random, options.samples)
    found = call(_of_input(lambda f, x: _size(smooth(f, x), key, features)))
    return Explanation(found, signed=False, notes={'draws': str(options.samples)})
  if method == 'integrated_gradients':
    return _integrated(call, jnp.asarray(mean), key, features)
  if method == 'occlusion':
    masks = jnp.asarray(features.masks)
    lost = _of_input(lambda f, x: ablation.occlusion(f, x, mean, masks))
    spread = lambda s: ablation.spread(lost(s), masks)[..., 0] if key == 'image' else lost(s)
    return Explanation(call(spread), signed=True)
  return _shapley(call, background, features, options)


class _Call:
  """Calls functions of a subject, compiled, and fetches their results."""

  def __init__(self, task: Task, layout: Layout, variables: Variables, batch: Batch, target: Array):
    self.task, self.layout, self.given = task, layout, (variables, batch, target)

  def program(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    of = lambda variables, batch, target, *more: fn(
      Subject(self.task, variables, batch, target), *more
    )
    made = jit(of, self.layout, out_shardings=self.layout.sharding())
    return lambda *more: jax.tree.map(lambda x: np.asarray(tree.fetch(x)), made(*self.given, *more))

  def __call__(self, fn: Callable[..., Any]) -> Any:
    return self.program(fn)()


def _size(values: Array, key: str, features: Features) -> Array:
  """The size of gradients: of a feature or pixel the largest, of a token's embedding the norm."""
  values = jnp.abs(values)
  if key == 'tokens':
    return jnp.sqrt(jnp.square(values).sum(-1))
  if key == 'image':
    return values.max(-1)
  masks = jnp.asarray(features.masks)[None]
  return jnp.where(masks, values[:, None], 0).max(tuple(range(2, masks.ndim)))


def _sum(values: np.ndarray, key: str, features: Features) -> np.ndarray:
  """The sum of the attributions of a feature, pixel or token."""
  if key != 'x':
    return values.sum(-1)
  rest = tuple(range(1, values.ndim))
  return np.tensordot(values, features.masks.astype(values.dtype), (rest, rest))


def _integrated(call: _Call, base: Array, key: str, features: Features) -> Explanation:
  integrate = gradients.integrated_gradients
  program = call.program(lambda s, n: _of_input(lambda f, x: integrate(f, x, base, n))(s))
  found, parts = gradients.completed(lambda n: program(np.int32(n)), most=MAX_PARTS)
  gap = np.abs(np.asarray(found.gap)).max()
  notes = {
    'steps': str(parts * gradients.NODES),
    'completeness': f'sums differ from the differences of outputs by at most {gap:.2g}',
  }
  return Explanation(_sum(np.asarray(found.values), key, features), signed=True, notes=notes)


def _shapley(
  call: _Call, background: np.ndarray, features: Features, options: Options
) -> Explanation:
  masks, turn = jnp.asarray(features.masks), 2 * len(background)
  rounds = -(-options.samples // turn) * turn
  orders, chosen = ablation.permutations(len(masks), len(background), rounds, options.seed)
  orders, chosen = jnp.asarray(orders), jnp.asarray(chosen)
  sample = lambda f, x: ablation.shapley(f, x, jnp.asarray(background), masks, orders, chosen)
  found = call(_of_input(sample))
  notes = {'orders': f'{rounds}, in pairs of opposite ones'}
  return Explanation(found.values, signed=True, errors=found.error, notes=notes)


def _of_input(fn: Callable[[Score, Array], Any]) -> Callable[[Subject], Any]:
  """A function of a score and its input as one of a subject."""

  def call(subject: Subject) -> Any:
    score, x = subject.input()
    return fn(score, x)

  return call


def _rollout(s: Subject) -> Array:
  """How much each token or pixel reaches the place that the head reads."""
  total = maps.rollout(maps.attention_weights(s.task, s.variables, s.batch))
  model: Any = s.task.model
  if isinstance(model, GPT):
    at = last_positions(s.batch)[:, None, None]
    return jnp.take_along_axis(total, at, 1)[:, 0]
  if isinstance(model, Classifier):
    return total[:, 0]
  if isinstance(model, Tagger):
    at = jnp.asarray(s.target).max(-1).argmax(1)[:, None, None]  # the token with the tag
    return jnp.take_along_axis(total, at, 1)[:, 0]
  rows = total[:, model.prefix :].mean(1) if model.pool == 'mean' else total[:, 0]
  patches = rows[:, model.prefix :]
  side = model.image_size // model.patch_size
  grid = patches.reshape(len(patches), side, side)
  return maps.resized(grid, (model.image_size, model.image_size))
