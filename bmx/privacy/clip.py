"""Per-example clipping: the sum of the gradients of single examples, each of bounded norm."""

import dataclasses

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Coupling, Grads, Loss, Noise, Variables
from bmx.parallel import vmap_examples
from bmx.train.gradients import GradWrapper
from bmx.train.guard import norm

COLLECTION = 'privacy'  # state of an adaptive clip: 'clip' and 'within', each float32 []


@dataclasses.dataclass(frozen=True)
class Clipped(GradWrapper):
  """Sums the gradients of single examples, each scaled to a norm of at most `clip`.

  An example counts if it has a weight, and if its loss and gradient are finite; others add zero.
  The gradients of all examples of a batch are in memory at once: `Accumulate` around it bounds them
  to those of a micro-batch. Of the metrics only the loss remains: each example adds the mean loss
  of its targets, limited to ±`loss_bound`.

  Source: Abadi et al. 2016, algorithm 1; Andrew et al. 2021, for the adaptive clip.

  Attributes:
    inner: GradFn of a batch, which is called with each example as a batch of one.
    clip: largest L2 norm of an example's gradient; the first one, if the clip is adaptive.
    loss_bound: largest absolute loss of an example in the metrics.
    adaptive: the clip is state, that `Noised` moves.

  Raises:
    InputError: a number out of range; an inner GradFn whose examples see each other.
  """

  clip: float = 1.0
  loss_bound: float = 10.0
  adaptive: bool = False

  def __post_init__(self):
    check_number('privacy.clip', self.clip, above=0)
    check_number('privacy.loss_bound', self.loss_bound, above=0)
    if super().coupling != 'none':
      raise InputError(
        f'privacy: expected examples that do not see each other, found coupling='
        f'{super().coupling!r}: gradients of single examples do not exist then'
      )

  @property
  def coupling(self) -> Coupling:
    """Examples are separate."""
    return 'none'

  def init(self, variables: Variables) -> Variables:
    """Returns the collections of the inner GradFn, and the state of an adaptive clip."""
    inner = super().init(variables)
    if not self.adaptive:
      return inner
    state = {'clip': jnp.float32(self.clip), 'within': jnp.float32(0)}
    return {**inner, COLLECTION: state}

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the clipped sum; the count is that of the examples."""
    bound = variables[COLLECTION]['clip'] if self.adaptive else jnp.float32(self.clip)
    inner = {k: v for k, v in variables.items() if k != COLLECTION}

    def one(example, row):
      grads = self.inner(inner, jax.tree.map(lambda x: x[None], example), noise.fold(row))
      check_collections(grads)
      return self._clipped(grads, bound)

    rows = jnp.arange(len(batch['weights']))
    each = vmap_examples(one)(batch, rows)
    grads, loss, counted, within = jax.tree.map(lambda x: x.sum(0), each)
    state = {}
    if self.adaptive:
      state[COLLECTION] = {'clip': bound, 'within': variables[COLLECTION]['within'] + within}
    return Grads(grads, counted, {'loss': jnp.stack([loss, counted])}, state)

  def _clipped(self, grads: Grads, bound: Array) -> tuple[Variables, Array, Array, Array]:
    """Returns of one example: clipped gradient, and the rest of `judged`."""
    size, losses = norm(grads.sum), grads.metrics['loss']
    factor, loss, counts, within = judged(bound, self.loss_bound, size, losses)
    scale = lambda g: jnp.where(counts > 0, g * factor.astype(g.dtype), 0)
    return jax.tree.map(scale, grads.sum), loss, counts, within


def judged(
  bound: Array, loss_bound: float, size: Array, losses: Array
) -> tuple[Array, Array, Array, Array]:
  """Returns of one example or client: clip factor, loss, whether it counts, how its norm compares.

  The last is ½ for a norm within the bound and -½ for one above it (0 if it does not count): in a
  sum, one example changes it by ½ at most.

  Args:
    bound: largest norm.
    loss_bound: largest absolute loss.
    size: norm of the gradient.
    losses: [sum over the targets, their weight].
  """
  total, count = losses
  loss = total / jnp.where(count > 0, count, 1)
  counts = (count > 0) & jnp.isfinite(size) & jnp.isfinite(loss)
  factor = jnp.minimum(1.0, bound / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
  kept = lambda x: jnp.where(counts, x, 0.0)
  loss = kept(jnp.clip(loss, -loss_bound, loss_bound))
  return kept(factor), loss, kept(1.0), kept(jnp.where(size <= bound, 0.5, -0.5))


def check_collections(grads: Grads | Loss) -> None:
  """Raises InputError if a training step would move statistics of the examples."""
  if grads.collections:
    names = ', '.join(sorted(grads.collections))
    raise InputError(
      f'privacy: expected a model that updates no collection in training, found {names}: moving '
      'statistics of examples are stored without noise; use a model without them (group or layer '
      'norm instead of batch norm)'
    )
