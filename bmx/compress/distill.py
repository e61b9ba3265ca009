"""Distillation: a student learns the outputs, hidden states and relations of a frozen teacher."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.compress import matching
from bmx.compress.divergence import divergence, hidden_error, relation_error
from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Facts, Metadata, Noise, Out, Task, Variables, facts_of
from bmx.parallel import gather, named, unbox
from bmx.tasks.common import ModelTask, Wrapper

OWN = 'distill'  # projections of hidden states, among the student's parameters
PARTS = ('query', 'key', 'value')


class Distilled(NamedTuple):
  """Outputs of student and teacher, and the terms of each example, float32 [B]."""

  student: Any
  teacher: Any
  terms: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Distill(Wrapper):
  """The student's loss plus its divergence from a teacher, in training; an evaluation's is plain.

  loss = task_coef · task + kl_coef · KL + hidden_coef · hidden + attention_coef · attention, with
  KL = T² · KL(teacher ‖ student) of the predictions at temperature T under the weights of the task
  (Hinton et al. 2015); for a regression, the mean squared difference of the outputs. `hidden` is
  that of outputs of modules (Romero et al. 2015), through a trainable projection where widths
  differ; `attention` the divergence of relations between tokens (Wang et al. 2021). Both are means
  over the pairs that are given, and over the real tokens of an example.

  The teacher's variables are the constant collection 'teacher', read from init.teacher; its
  gradient is zero. Projections are parameters below 'distill', absent from `merged_params`.

  Attributes:
    inner: the student's task; adapters and quantization are inside.
    teacher: the model of init.teacher, `{'call': 'bmx.adapt.restore:model', 'path': DIR}`; the
      student's task is its task.
    temperature: divides the logits.
    task_coef: weight of the task's own loss.
    kl_coef: weight of the divergence of predictions.
    hidden: path of a student's module -> path of the teacher's whose output it learns, such as
      {'stack/block_0': 'stack/block_1'}; the beginning of a path may be left out.
    hidden_coef: weight of the hidden states.
    attention: layer of the student -> layer of the teacher, likewise; each has a module
      'attention' with query, key and value.
    attention_coef: weight of the relations.
    relation_heads: heads that queries, keys and values are divided into; 0: those of the student.

  Raises:
    InputError: a number out of range; no term; a teacher of another vocabulary or other outputs.
  """

  role: ClassVar[str] = 'distill'

  teacher: nn.Module
  temperature: float = 2.0
  task_coef: float = 1.0
  kl_coef: float = 1.0
  hidden: Mapping[str, str] = dataclasses.field(default_factory=FrozenDict)
  hidden_coef: float = 1.0
  attention: Mapping[str, str] = dataclasses.field(default_factory=FrozenDict)
  attention_coef: float = 1.0
  relation_heads: int = 0

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, 'hidden', FrozenDict(self.hidden))  # tasks are hashed
    object.__setattr__(self, 'attention', FrozenDict(self.attention))
    check_number('temperature', self.temperature, above=0)
    check_number('relation_heads', self.relation_heads, at_least=0)
    for name, value in (('task_coef', self.task_coef), *self._coefs.items()):
      check_number(name, value, at_least=0)
    if not any(self._coefs.values()):
      raise InputError('kl_coef=0: expected above 0 without pairs in hidden or attention')
    _check_outputs(facts_of(self.model), facts_of(self.teacher))

  @property
  def _coefs(self) -> dict[str, float]:
    coefs = {'kl_coef': self.kl_coef}
    coefs |= {'hidden_coef': self.hidden_coef} if self.hidden else {}
    return coefs | ({'attention_coef': self.attention_coef} if self.attention else {})

  @functools.cached_property
  def innermost(self) -> ModelTask:
    """The student's task without wrappers."""
    task = self.inner
    while isinstance(task, Wrapper):
      task = task.inner
    if not isinstance(task, ModelTask):
      raise InputError(f'{type(task).__name__}: distillation expects a task over one model')
    return task

  @functools.cached_property
  def teacher_task(self) -> ModelTask:
    """The student's task over the teacher."""
    return dataclasses.replace(self.innermost, model=self.teacher)

  @property
  def constant(self) -> tuple[str, ...]:
    return ('teacher', *self.inner.constant)

  @property
  def sources(self) -> Mapping[str, tuple[str, Task]]:
    return {**self.inner.sources, 'teacher': ('', self.teacher_task)}

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    try:
      self.teacher_task.validate(metadata)
    except InputError as error:
      raise InputError(f'teacher: {error}') from None

  def init(self, noise: Noise, batch: Batch) -> Variables:
    student = dict(self.inner.init(noise, batch))
    teacher = self.teacher_task.init(noise.fold(streams.TEACHER), batch)
    own = self._projections(noise, unbox(student), unbox(teacher), batch)
    params = {**student['params'], **({OWN: own} if own else {})}
    return {**student, 'params': params, 'teacher': teacher}

  def _projections(self, noise, student, teacher, batch) -> dict[str, Any]:
    """Returns a projection [D, teacher's D] for each pair of hidden states of different widths."""
    pairs = self._pairs(student, teacher)

    def outputs():
      rows = self.prepare(batch, noise, train=False)
      (out, _), other = self._both(pairs, student, teacher, rows, noise, train=False)
      return [(a.of(out.captured), b.of(other.captured)) for a, b in pairs.hidden]

    own = {}
    shapes: Any = jax.eval_shape(outputs) if self.hidden else ()
    for number, (name, (x, y)) in enumerate(zip(self.hidden, shapes, strict=True)):
      if x.shape[:-1] != y.shape[:-1]:
        raise InputError(
          f'hidden={{{name!r}: {self.hidden[name]!r}}}: expected outputs that differ in their last '
          f'dimension only, found {x.shape} and {y.shape}'
        )
      if x.shape != y.shape:
        init = named(nn.initializers.normal(x.shape[-1] ** -0.5), _axes(x.ndim))
        key = noise.fold(streams.TEACHER).fold(number).key
        made = init(key, (x.shape[-1], y.shape[-1]), jnp.float32)
        own[_key(name)] = {'projection': made}
    return own

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
    student, own = _apart(variables)
    if method != 'loss':
      return self.inner.forward(student, batch, noise, train=train, method=method, **apply)
    teacher = jax.lax.stop_gradient(variables['teacher'])
    pairs = self._pairs(student, teacher)
    (out, new), other = self._both(pairs, student, teacher, batch, noise, train=train, **apply)
    terms = self._terms(pairs, own, out.captured, other.captured, batch)
    return out._replace(value=Distilled(out.value, other.value, terms)), new

  def _pairs(self, student: Variables, teacher: Variables) -> matching.Pairs:
    plain = jax.eval_shape(self.inner.merged_params, student)
    own, others = matching.modules(plain), matching.modules(teacher['params'])

    def found(names, word):
      where = f'{word}: %s of the student', f'{word}: %s of the teacher'
      return [
        (matching.find(a, own, where[0]), matching.find(b, others, where[1]))
        for a, b in names.items()
      ]

    layers = found(self.attention, 'attention')
    parts = [(matching.part(a, part), matching.part(b, part)) for a, b in layers for part in PARTS]
    return matching.Pairs(found(self.hidden, 'hidden'), parts)

  def _both(self, pairs, student, teacher, batch, noise, *, train, capture=(), **apply):
    """Calls both models -> ((student's outputs, its new collections), teacher's outputs)."""
    own, others = zip(*pairs.hidden, *pairs.attention, strict=True) if any(pairs) else ((), ())
    wanted = (*capture, *matching.regexes(own))
    result = self.inner.forward(student, batch, noise, train=train, capture=wanted, **apply)
    other, _ = self.teacher_task.forward(
      teacher, batch, noise, train=False, capture=matching.regexes(others)
    )
    return result, other

  def _terms(self, pairs: matching.Pairs, own, captured, others, batch: Batch) -> dict[str, Array]:
    """Returns the terms of each example, by name, float32 [B]."""
    terms = {}
    if self.hidden:
      xs = [
        _projected(own, k, a.of(captured))
        for k, (a, _) in zip(self.hidden, pairs.hidden, strict=True)
      ]
      ys = [b.of(others) for _, b in pairs.hidden]
      errors = [hidden_error(x, y, batch) for x, y in zip(xs, ys, strict=True)]
      terms['hidden'] = jnp.stack(errors).mean(0)
    if self.attention:
      errors = [self._relation(a.of(captured), b.of(others), batch) for a, b in pairs.attention]
      terms['attention'] = jnp.stack(errors).mean(0)
    return terms

  def _relation(self, student: Array, teacher: Array, batch: Batch) -> Array:
    heads = self.relation_heads or student.shape[2]
    for owner, x in (('student', student), ('teacher', teacher)):
      width = x.shape[2] * x.shape[3]
      if width % heads:
        raise InputError(
          f"relation_heads={heads}: expected a divisor of {width}, the width of the {owner}'s "
          'queries, keys or values'
        )
    return relation_error(student, teacher, heads, batch)

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    total, count, metrics = self.inner.score(out.student, batch, train=train)
    kl = divergence(
      self.innermost, self.teacher_task, out.student, out.teacher, batch, self.temperature
    )
    rows = batch['weights'].reshape(len(batch['weights']), -1).sum(1)
    terms = {'kl': kl} | {name: weighted(each, rows) for name, each in out.terms.items()}
    metrics = metrics | terms
    if not train:
      return total, count, metrics
    metrics['task_loss'] = jnp.stack([total, count])
    total = self.task_coef * total
    total += sum(self._coefs[f'{name}_coef'] * sums[0] for name, sums in terms.items())
    return total, count, metrics

  def merged_params(self, variables: Variables) -> Variables:
    return self.inner.merged_params(_apart(variables)[0])

  def take(self, variables: Variables, given: Variables) -> Variables:
    student, own = _apart(variables)
    taken = self.inner.take(student, given)
    params = {**taken['params'], **({OWN: own} if own else {})}
    return {**taken, 'params': params, 'teacher': variables['teacher']}


def _check_outputs(student: Facts, teacher: Facts) -> None:
  sizes = (
    ('vocab_size', student.vocab_size, teacher.vocab_size),
    ('num_outputs', student.num_outputs, teacher.num_outputs),
  )
  for name, own, other in sizes:
    if own != other:
      raise InputError(
        f'teacher: expected {name}={own}, that of the student, found {other}; both must predict '
        'the same classes or tokens'
      )


def _apart(variables: Variables) -> tuple[Variables, Mapping[str, Any]]:
  """Splits variables -> (those of the student, projections by layer)."""
  params = {k: v for k, v in variables['params'].items() if k != OWN}
  others = {k: v for k, v in variables.items() if k != 'teacher'}
  return {**others, 'params': params}, variables['params'].get(OWN, {})


def _axes(ndim: int) -> tuple[str | None, str | None]:
  return ('embed', None) if ndim == 3 else (None, None)


def _projected(own: Mapping[str, Any], name: str, x: Array) -> Array:
  if _key(name) not in own:
    return x
  kernel = gather(own[_key(name)]['projection'], _axes(x.ndim))
  return x.astype(jnp.float32) @ kernel


def _key(name: str) -> str:
  return name.replace('/', '_')
