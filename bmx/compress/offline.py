"""Distillation from stored outputs: a large teacher reads the data once."""

import dataclasses
import logging
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bmx.compress.divergence import of_logits, top_kl
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.metrics import Metrics, weighted
from bmx.core.paths import local
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Metadata, Variables
from bmx.data import taught
from bmx.parallel import jit
from bmx.runtime.files import write_json
from bmx.tasks.classification import Classification
from bmx.tasks.common import Wrapper
from bmx.tasks.encoder import TokenClassification
from bmx.tasks.language import CausalLM
from bmx.train.evaluate import eval_noise

log = logging.getLogger('bmx')
TASKS = (Classification, TokenClassification, CausalLM)


def store(
  experiment: Experiment,
  variables: Variables,
  folder: str,
  top_k: int = 16,
  temperature: float = 2.0,
) -> None:
  """Writes the most likely classes of each training example, for `bmx.data.taught:Taught`.

  Args:
    experiment: of the teacher, on the data of the student: rows in the order of their numbers,
      without shifts and augmentation.
    variables: of the teacher.
    folder: to write; 8 bytes a class.
    top_k: classes of each prediction.
    temperature: of the probabilities; that of the student's training.

  Raises:
    InputError: a task without classes or tokens, a number out of range, several processes.
  """
  task, data, layout = experiment.task, experiment.data, experiment.layout
  innermost_of(task)
  check_number('top_k', top_k, at_least=1)
  check_number('temperature', temperature, above=0)
  if jax.process_count() > 1:
    raise InputError('offline teachers: expected one process')

  def top(variables, batch):
    out, _ = task.forward(variables, batch, eval_noise(), train=False, method='logits')
    log_probs = jax.nn.log_softmax(out.value.astype(jnp.float32) / temperature)
    return jax.lax.top_k(log_probs, min(top_k, log_probs.shape[-1]))

  run, path, arrays = jit(top, layout), local(folder), {}
  path.mkdir(parents=True, exist_ok=True)
  places = layout.batch(data.spec, data.batch_size)
  for start in range(0, data.size, data.batch_size):
    numbers = np.arange(start, min(start + data.batch_size, data.size))
    padded = np.pad(numbers, (0, data.batch_size - len(numbers)), 'edge')
    rows = data.rows(padded, padded)
    log_probs, ids = run(variables, jax.device_put(rows, {k: places[k] for k in rows}))
    crc = taught.checksums(data.examples.rows(numbers, numbers))
    by_token = ids.ndim == 3
    names = (
      (taught.TOKEN_IDS, taught.TOKEN_LOG_PROBS) if by_token else (taught.IDS, taught.LOG_PROBS)
    )
    found = {names[0]: np.asarray(ids), names[1]: np.asarray(log_probs), 'checksums': crc}
    for name, x in found.items():
      if name not in arrays:
        shape = data.size, *x.shape[1:]
        arrays[name] = np.lib.format.open_memmap(path / f'{name}.npy', 'w+', x.dtype, shape)
      arrays[name][numbers] = x[: len(numbers)]
  for array in arrays.values():
    array.flush()
  about = {
    'size': data.size,
    'temperature': temperature,
    'names': sorted(set(arrays) - {'checksums'}),
  }
  write_json(path / taught.FACTS, about)
  log.info('outputs of the teacher for %d examples in %s', data.size, folder)


def innermost_of(task: Any) -> Any:
  """Returns the task without wrappers; raises InputError if it has neither classes nor tokens."""
  while isinstance(task, Wrapper):
    task = task.inner
  if not isinstance(task, TASKS):
    names = ', '.join(t.__name__ for t in TASKS)
    raise InputError(f'{type(task).__name__}: expected one of {names} for stored outputs')
  return task


@dataclasses.dataclass(frozen=True)
class DistillStored(Wrapper):
  """The student's loss plus its divergence from stored outputs of a teacher, in training.

  loss = task_coef · task + kl_coef · T² · KL, over the stored classes and all others as one.

  Attributes:
    inner: the student's task; its training data are `bmx.data.taught:Taught`.
    temperature: of the stored outputs.
    task_coef: weight of the task's own loss.
    kl_coef: weight of the divergence.

  Raises:
    InputError: a number out of range; a task that has neither classes nor tokens.
  """

  role: ClassVar[str] = 'distill'

  temperature: float = 2.0
  task_coef: float = 1.0
  kl_coef: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    innermost_of(self)
    check_number('temperature', self.temperature, above=0)
    check_number('task_coef', self.task_coef, at_least=0)
    check_number('kl_coef', self.kl_coef, above=0)

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    there = metadata.get('teacher_temperature', self.temperature)
    if there != self.temperature:
      raise InputError(f'temperature={self.temperature}: expected {there}, that of the stored '
                       'outputs of the teacher')  # fmt: skip

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    total, count, metrics = self.inner.score(out, batch, train=train)
    if not train:
      return total, count, metrics
    by_token = taught.TOKEN_IDS in batch
    names = (
      (taught.TOKEN_IDS, taught.TOKEN_LOG_PROBS) if by_token else (taught.IDS, taught.LOG_PROBS)
    )
    if names[0] not in batch:
      raise InputError(
        "data: expected outputs of a teacher; wrap the training data in {'call': "
        "'bmx.data.taught:Taught', 'inner': ..., 'folder': DIR}"
      )
    ids, log_probs = (batch[name] for name in names)
    values = of_logits(
      innermost_of(self), out, lambda x, i, p: top_kl(i, p, x, self.temperature), ids, log_probs
    )
    kl = weighted(values, batch['weights'])
    metrics = metrics | {'kl': kl, 'task_loss': jnp.stack([total, count])}
    return self.task_coef * total + self.kl_coef * kl[0], count, metrics
