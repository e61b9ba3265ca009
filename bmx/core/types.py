"""The values of a training step, and the protocols of models, tasks and gradients."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import struct

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics

Array = jax.Array
Variables = Mapping[str, Any]  # nested dicts of arrays
Batch = dict[str, Any]  # leading dimension B; the keys a task reads, and always `weights`
HostBatch = dict[str, np.ndarray]  # rows of a batch, or of a split, on the host
Metadata = Mapping[str, Any]  # facts of a data set: vocab_size, num_classes, class_names, ...
Coupling = Literal['none', 'statistics', 'loss']

Schedule = Callable[[Any], Any]  # step -> learning rate


@struct.dataclass
class Noise:
  """Random sources of a loss.

  Attributes:
    key: uint32 [2], the key of one step (or evaluation).
    step: int32 [], completed steps.
    secret: uint32 [2] or None: privacy noise; an argument of the dispatch, never stored.
  """

  key: Array
  step: Array
  secret: Array | None = None

  def fold(self, number: Any) -> 'Noise':
    """Returns the noise of item `number` (of a micro-batch, for example) of the same step."""
    return self.replace(key=jax.random.fold_in(self.key, number))  # type: ignore


class Loss(NamedTuple):
  """A weighted sum with its count, never a mean.

  Attributes:
    sum: float32 [], of the weighted losses.
    count: float32 [], of the weights; the step divides the gradient by it once.
    metrics: name -> (sum, count); 'loss' is among them.
    collections: the new values of the collections that the model updates.
  """

  sum: Array
  count: Array
  metrics: Metrics
  collections: Variables


class Grads(NamedTuple):
  """The result of a GradFn; the step divides `sum` by `count` once.

  Attributes:
    sum: gradient of the weighted sum with respect to 'params'; a leaf may be `SparseRows`.
    count: float32 [], the divisor: the data's count, or a constant (DP: the expected batch size).
    metrics: name -> (sum, count).
    collections: new values of updated collections, those of the GradFn itself included.
  """

  sum: Variables
  count: Array
  metrics: Metrics
  collections: Variables


class Out(NamedTuple):
  """The result of a forward pass.

  Attributes:
    value: return value of the model's method.
    aux: name -> float32 [], values that modules sowed into 'aux' (balance of experts, ...).
    captured: path of a module -> its output, for the paths that `capture` matched, and
      'COLLECTION/PATH' -> sown values, for `collect`.
  """

  value: Any
  aux: Mapping[str, Array]
  captured: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Facts:
  """Properties that a model declares; a task reads them instead of guessing.

  Attributes:
    vocab_size: token ids are below it; 0: the model reads no tokens.
    max_seq_len: longest sequence; 0: no limit.
    max_source_len: longest source of an encoder-decoder, in tokens; 0: no limit, or no source.
    num_outputs: size of the last dimension of the outputs (classes, targets); 0: not fixed.
    coupling: how examples of a batch see each other: 'none'; 'statistics' (batch norm, balance of
      experts); 'loss'.
    aux_losses: name sown into 'aux' -> weight in the loss.
    padded_parameters: stored numbers that belong to no token, left out of published counts.
    sparse_tables: paths of parameters that `models.tables.Table` looks up ('user/table'); their
      gradients are `SparseRows`.
    chunked_head: the model has a method `hidden_and_table` for losses that never hold all logits.
    carried: collections with a row for each example of a batch, from which the same row of the next
      batch continues; training alone reads and writes them.
  """

  vocab_size: int = 0
  max_seq_len: int = 0
  max_source_len: int = 0
  num_outputs: int = 0
  coupling: Coupling = 'none'
  aux_losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
  padded_parameters: int = 0
  sparse_tables: tuple[str, ...] = ()
  chunked_head: bool = False
  carried: tuple[str, ...] = ()


class SparseRows(NamedTuple):
  """The gradient or update of a few rows of a table [V, D]; every other row is zero.

  Attributes:
    indices: int32 [n], each row once; V marks a place without a row.
    values: float [n, D].
  """

  indices: Array
  values: Array


@runtime_checkable
class HasFacts(Protocol):
  """A model that declares `facts`."""

  @property
  def facts(self) -> Facts: ...


def facts_of(model: Any) -> Facts:
  """Returns the facts that a model declares.

  Raises InputError if it declares none.
  """
  if not isinstance(model, HasFacts):
    raise InputError(
      f'{type(model).__name__} declares no facts: expected an attribute or property `facts` of '
      'bmx.core.types.Facts, for instance facts = Facts(num_outputs=10)'
    )
  return model.facts


@runtime_checkable
class Decoder(Protocol):
  """A model that generates text; its cache is a value that callers pass along.

  `inputs` of `prefill` are those of the model (token ids, or a source text beside them); the
  other two methods read target tokens only.
  """

  def prefill(self, inputs: Any, slots: int) -> tuple[Array, Any]:
    """Reads inputs -> (hidden state of the last position [B, 1, D], cache of `slots` positions)."""
    ...

  def extend(self, tokens: Array, cache: Any) -> tuple[Array, Any]:
    """Reads tokens int [B, T] -> (hidden [B, T, D], the cache with them)."""
    ...

  def logits(self, hidden: Array) -> Array:
    """Returns the logits [B, T, V] of hidden states [B, T, D]."""
    ...


class Task(Protocol):
  """The objective: a frozen dataclass that holds the model and the constants of the loss.

  `bmx.tasks.common` has `ModelTask`, a task over one model, and `Wrapper`, a task around a task.
  `Variables` holds 'params' and every other collection by name.
  """

  @property
  def model(self) -> Any:
    """The linen module of the innermost task; it declares `facts`."""
    ...

  @property
  def constant(self) -> tuple[str, ...]:
    """Collections that training never changes (a frozen base, a teacher)."""
    ...

  @property
  def sources(self) -> Mapping[str, tuple[str, 'Task']]:
    """Collection -> (folder, task) that its variables come from; folder '' is init.COLLECTION."""
    ...

  @property
  def averaged(self) -> tuple[str, ...]:
    """Collections that EMA averages and that accumulation updates once a step."""
    ...

  @property
  def coupling(self) -> Coupling:
    """How the examples of a batch see each other."""
    ...

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    """Keys of a batch that metrics of predictions need beside `predict`."""
    ...

  @property
  def aux_losses(self) -> Mapping[str, float]:
    """Name of an auxiliary value of `forward` -> its weight in the loss."""
    ...

  def init(self, noise: Noise, batch: Batch) -> Variables:
    """Returns new variables, in boxes that name their dimensions."""
    ...

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    """Corrupts or mixes a batch before `forward` (masked tokens); `predict` never calls it."""
    ...

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
    """Calls the model, once -> (its outputs, new values of updated collections).

    Args:
      variables: 'params' and every other collection.
      batch: after `prepare`.
      noise: of the step.
      train: whether dropout and the like are active.
      method: 'loss' for the inputs of `score`, 'logits' for those of `postprocess`.
      apply: capture=(REGEX, ...) also returns the outputs of modules whose path matches;
        collect=(COLLECTION, ...) the values that modules sow into a collection;
        read=(COLLECTION, ...) are given to the model and never updated (a wrapper's adapters).
    """
    ...

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    """Scores `Out.value` of 'loss' -> (weighted sum [], count [], metrics besides 'loss')."""
    ...

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    """Converts `Out.value` of 'logits' to predictions of each example, each array [B, ...]."""
    ...

  def loss(self, variables: Variables, batch: Batch, noise: Noise, *, train: bool) -> Loss:
    """Calls prepare, forward and score, and adds the auxiliary losses of the model."""
    ...

  def predict(self, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Array]:
    """Calls forward and postprocess."""
    ...

  def merged_params(self, variables: Variables) -> Variables:
    """Returns the plain weights of `model`, for export, generation and interpretation."""
    ...

  def take(self, variables: Variables, given: Variables) -> Variables:
    """Inverse of `merged_params`: returns variables that hold the given plain weights."""
    ...

  def transform(self, tx: Any, steps: int) -> Any:
    """Returns an optimizer (optax) of a run of `steps`, with what the task needs around it."""
    ...

  def validate(self, metadata: Metadata) -> None:
    """Raises InputError if the model cannot read data with these facts."""
    ...


@runtime_checkable
class ChecksRows(Protocol):
  """A task that examines rows on the host, for errors that a device would ignore."""

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    """Raises InputError naming the example, int `numbers` [n], whose row cannot be trained on.

    `rows` may lack keys: arrays that are held on the device are rows before preprocessing.
    """
    ...


class Secret(Protocol):
  """The source of the noise of private training; no run directory holds it."""

  @property
  def fingerprint(self) -> str:
    """Digest that reveals nothing of the secret."""
    ...

  @property
  def key(self) -> np.ndarray:
    """Key of the noise of a run, uint32 [2], for `Noise.secret`."""
    ...

  def keyed(self, run: str) -> 'Secret':
    """Returns the secret of the run of this name."""
    ...


class GradFn(Protocol):
  """The gradient of a task's weighted sum; GradFns nest."""

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads: ...


@runtime_checkable
class StatefulGradFn(Protocol):
  """A GradFn with state of its own (an adaptive clip, control variates)."""

  def init(self, variables: Variables) -> Variables:
    """Returns the collections that it reads and returns, by name; {} if it has none."""
    ...
