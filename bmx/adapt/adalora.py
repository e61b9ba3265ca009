"""AdaLoRA: adapters whose ranks follow their importance (Zhang et al. 2023).

The adapter of a kernel is P Λ Q: 'kernel_a' holds Q, 'kernel_b' P and 'singular' the diagonal of Λ,
see `ops.lowrank`. All matrices share one budget of triplets (a singular value with its two
vectors); each layer of a stack is a matrix of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bmx.adapt.lora import ADAPTERS, LoRA
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Batch, Noise, Out, Variables
from bmx.models import kernels
from bmx.ops import lowrank
from bmx.optim.masks import Masks
from bmx.parallel.sharding import Named

ORTHOGONALITY = 'orthogonality'


@dataclasses.dataclass(frozen=True)
class AdaLoRA(LoRA):
  """LoRA that begins with `init_rank` triplets a matrix and ends with `rank` of them on average.

  The scale is alpha / init_rank. The optimizer needs nothing: `transform` puts the allocator of the
  budget around it.

  Attributes:
    init_rank: triplets of each matrix at the beginning.
    tinit: steps before the budget begins to shrink.
    tfinal: steps at the end with the final budget; the triplets do not change then.
    delta_t: steps between two allocations.
    beta1: decay of the mean of the sensitivity.
    beta2: decay of the mean of its uncertainty.
    orthogonality: weight of ‖PᵀP - I‖² + ‖QQᵀ - I‖² of every matrix in the loss.

  Raises:
    InputError: a value out of range.
  """

  init_rank: int = 12
  tinit: int = 0
  tfinal: int = 0
  delta_t: int = 1
  beta1: float = 0.85
  beta2: float = 0.85
  orthogonality: float = 0.5
  zeroed: ClassVar[str] = lowrank.SINGULAR
  columns_word: ClassVar[str] = 'init_rank'

  def __post_init__(self):
    super().__post_init__()
    check_number('init_rank', self.init_rank, at_least=self.rank)
    check_number('tinit', self.tinit, at_least=0)
    check_number('tfinal', self.tfinal, at_least=0)
    check_number('orthogonality', self.orthogonality, at_least=0)
    check_number('delta_t', self.delta_t, at_least=1)
    check_number('beta1', self.beta1, above=0, below=1)
    check_number('beta2', self.beta2, above=0, below=1)

  @property
  def columns(self) -> int:
    return self.init_rank

  def factors(
    self, key: jax.Array, kernel: kernels.Kernel, layers: tuple[int, ...]
  ) -> dict[str, Any]:
    """Returns new parts of an adapter: P and Q normal (0.02), Λ zero; see `LoRA.factors`."""
    made = super().factors(key, kernel, layers)
    for i, (name, box) in enumerate(made.items()):
      drawn = 0.02 * jax.random.normal(jax.random.fold_in(key, i), box.value.shape)
      made[name] = Named(drawn, box.names)
    zeros = jnp.zeros((*layers, self.init_rank))
    return {**made, lowrank.SINGULAR: Named(zeros, (*('layers',) * len(layers), None))}

  @property
  def aux_losses(self) -> Mapping[str, float]:
    return {**self.inner.aux_losses, ORTHOGONALITY: self.orthogonality}

  def forward(
    self,
    variables: Variables,
    batch: Batch,
    noise: Noise,
    *,
    train: bool,
    method: str = 'loss',
    **apply: Any,
  ) -> tuple[Out, Variables]:
    out, new = super().forward(variables, batch, noise, train=train, method=method, **apply)
    own = {ORTHOGONALITY: penalty(variables['params'][ADAPTERS])}
    return out._replace(aux={**out.aux, **own}), new

  def transform(self, tx: Any, steps: int) -> Any:
    end = steps - max(self.tfinal, 1)  # the first step with the final budget
    if self.tinit >= end:
      raise InputError(
        f'tinit={self.tinit}, tfinal={self.tfinal}: expected tinit + tfinal below steps={steps}'
      )
    return allocator(
      self.inner.transform(tx, steps),
      ranks=(self.init_rank, self.rank),
      begin=self.tinit,
      end=end,
      every=self.delta_t,
      betas=(self.beta1, self.beta2),
    )


def penalty(adapters: Variables) -> jax.Array:
  """Returns the sum over matrices of ‖PᵀP - I‖² + ‖QQᵀ - I‖², float32 [] (equation 4)."""
  total = jnp.zeros((), jnp.float32)
  for parts in lowrank.by_path(adapters).values():
    lead = parts[lowrank.SINGULAR].ndim - 1
    for name in (lowrank.A, lowrank.B):
      gram = lowrank.gram(parts[name], lead, name)
      total += jnp.square(gram - jnp.eye(gram.shape[-1])[(None,) * lead]).sum()
  return total


class AllocatorState(NamedTuple):
  """State of `allocator`.

  Attributes:
    inner: of the optimizer.
    sensitivity: mean of |w · gradient| of every entry of the adapters.
    uncertainty: mean of its distance from that mean.
    masks: singular values that are kept; all between two allocations.
    held: bool [], whether the final budget has been allocated.
  """

  inner: Any
  sensitivity: Variables
  uncertainty: Variables
  masks: Masks
  held: jax.Array


def allocator(
  tx: Any,
  *,
  ranks: tuple[int, int],
  begin: int,
  end: int,
  every: int,
  betas: tuple[float, float],
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer: sets the singular values beyond the budget to zero (algorithm 1).

  The budget is cubic between `begin` and `end`, as in the authors' code; equation 12 of the paper
  prints tᵢ + t_f for tᵢ in the numerator. Equal importance: the triplet of the earlier name, layer
  and number is kept. A rejected update changes nothing; the final budget is allocated by the first
  accepted update from `end` on.

  Args:
    tx: the optimizer.
    ranks: mean number of triplets of a matrix, first and final.
    begin: step after which the budget shrinks.
    end: first step with the final budget.
    every: steps between allocations.
    betas: decays of sensitivity and uncertainty.
  """
  inner = optax.with_extra_args_support(tx)

  def init(params):
    own = params[ADAPTERS]
    zeros = {ADAPTERS: jax.tree.map(jnp.zeros_like, own)}
    kept = {k: jnp.ones(v.shape, bool) for k, v in _singular(own).items()}
    copy = jax.tree.map(jnp.copy, zeros)
    return AllocatorState(inner.init(params), zeros, copy, Masks(kept), jnp.bool_(False))

  def update(updates, state, params: Any = None, **extra):
    own, gradient, step = params[ADAPTERS], updates[ADAPTERS], extra['step']
    updates, new = inner.update(updates, state.inner, params, **extra)
    drift = jax.tree.map(lambda w, g: jnp.abs(w * g), own, gradient)
    mean = _moved(state.sensitivity[ADAPTERS], drift, betas[0])
    distance = jax.tree.map(lambda i, m: jnp.abs(i - m), drift, mean)
    doubt = _moved(state.uncertainty[ADAPTERS], distance, betas[1])
    scores = importance(jax.tree.map(jnp.multiply, mean, doubt))
    matrices = sum(x.size // x.shape[-1] for x in scores.values())
    is_final = step >= end
    share = 1 - (step - begin) / (end - begin)
    first, last = (r * matrices for r in ranks)
    cubic = jnp.floor(last + (first - last) * share**3).astype(jnp.int32)
    chosen = top(scores, jnp.where(is_final, last, cubic))
    due = is_final | ((step > begin) & (step % every == 0))
    held = is_final & state.held

    def one(name, old):
      return jnp.where(held, old, jnp.where(due, chosen[name], True))

    kept = {name: one(name, old) for name, old in state.masks.kept.items()}
    singular = _singular(own)

    def prune(name, update):
      return jnp.where(kept[name], update, -singular[name]) if name in kept else update

    updates = tree.map_named(prune, updates)
    moved = {ADAPTERS: mean}, {ADAPTERS: doubt}
    return updates, AllocatorState(new, *moved, Masks(kept), jnp.asarray(is_final))

  return optax.GradientTransformationExtraArgs(init, update)


def _singular(adapters: Variables) -> dict[str, jax.Array]:
  """Returns the singular values by the names of their parameters."""
  named = tree.named({ADAPTERS: adapters})
  return {k: v for k, v in named.items() if k.endswith(f'/{lowrank.SINGULAR}')}


def _moved(average: Variables, new: Variables, decay: float) -> Variables:
  return jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, new)


def importance(scores: Variables) -> dict[str, jax.Array]:
  """Returns the importance of each triplet (equation 7), by the name of its singular value.

  Args:
    scores: of every entry of the adapters.
  """
  found = {}
  for path, parts in lowrank.by_path(scores).items():
    own, lead = parts[lowrank.SINGULAR], parts[lowrank.SINGULAR].ndim - 1
    a, b = parts[lowrank.A], parts[lowrank.B]
    own += a.mean(range(lead, a.ndim - 1)) + b.mean(range(lead + 1, b.ndim))
    found[f'{ADAPTERS}/{path}/{lowrank.SINGULAR}'] = own
  return found


def top(scores: Mapping[str, jax.Array], budget: Any) -> dict[str, jax.Array]:
  """Returns masks of exactly `budget` highest scores of all arrays together."""
  flat = jnp.concatenate([x.ravel() for x in scores.values()])
  rank = jnp.argsort(jnp.argsort(-flat, stable=True))
  kept, masks, start = rank < budget, {}, 0
  for name, x in scores.items():
    masks[name] = kept[start : start + x.size].reshape(x.shape)
    start += x.size
  return masks


def ranks(adapters: Variables) -> dict[str, Any]:
  """Returns how many singular values of each matrix are not zero: PATH -> int [L?]."""
  own = lowrank.by_path(adapters)
  return {path: (parts[lowrank.SINGULAR] != 0).sum(-1) for path, parts in own.items()}
