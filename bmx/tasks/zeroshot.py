"""Zero-shot classification: each image against texts that name classes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, HostBatch, Metadata, Noise, Task, Variables
from bmx.data.images.pairs import encode_captions
from bmx.data.text.tokenizer import Subwords
from bmx.parallel import axes_of, current
from bmx.runtime.report import Section
from bmx.tasks import readable
from bmx.tasks.common import Wrapper
from bmx.tasks.contrastive import Contrastive


@dataclasses.dataclass(frozen=True)
class ZeroShot(Wrapper):
  """A contrastive task that classifies images among given texts.

  The embedding of a class is the mean over the templates, scaled to length 1. Reads `image`
  [B, I, J, C].

  Attributes:
    labels: names of the K classes.
    tokens: int [K, M, T], each class in each of M templates.

  Source: Radford et al. 2021, section 3.1.
  """

  labels: tuple[str, ...] = ()
  tokens: Any = dataclasses.field(default=None, repr=False, compare=False)

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('label',)

  def predict(self: Any, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Array]:
    """Returns `prediction` int [B] and `probability` float32 [B, K]."""
    if 'image' not in batch:
      raise InputError(f'predict.labels={self.labels}: expected images, not {sorted(batch)}')
    classes, templates, length = self.tokens.shape
    rows = self.tokens.reshape(-1, length)
    padded = np.resize(rows, (-(-len(rows) // _parts()) * _parts(), length))
    texts = {'tokens': jnp.asarray(padded),
             'weights': jnp.ones(len(padded))}  # fmt: skip
    image = {k: v for k, v in batch.items() if k in ('image', 'weights')}
    found, _ = self.forward(variables, image, noise, train=False, method='logits')
    named, _ = self.forward(variables, texts, noise, train=False, method='logits')
    text = named.value.text[: len(rows)].reshape(classes, templates, -1).mean(1)
    text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
    logits = found.value.scale * (found.value.image @ text.T)
    return {'prediction': logits.argmax(-1), 'probability': jax.nn.softmax(logits)}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    """Returns the class of each row with the probabilities of all, by their names."""
    own = {k: v for k, v in rows.items() if k != 'label'}
    lines = readable.classes(own, rows['probability'], {'class_names': self.labels})
    if 'label' in rows:
      names = metadata.get('class_names') or self.labels
      for line, label in zip(lines, rows['label'].tolist(), strict=True):
        line['label'] = names[label]
    return lines

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    return ()


def _parts() -> int:
  """Returns the parts that the mesh splits a batch into."""
  layout = current()
  return math.prod(layout.mesh.shape[a] for a in axes_of('batch')) if layout else 1


def with_labels(
  task: Task,
  labels: Sequence[str],
  templates: Sequence[str],
  state: Mapping[str, Any],
) -> Task:
  """Returns the task that classifies images among `labels`; the task itself without any.

  Args:
    task: of a run.
    labels: names of the classes.
    templates: texts with {} for a class, such as 'a photo of a {}'.
    state: what the run keeps of its training data, the tokenizer among it.

  Raises:
    InputError: fewer than two labels, or equal ones; a template without {}; a task that does not
      compare images and texts.
  """
  if not labels:
    return task
  inner: Any = task
  while isinstance(inner, Wrapper):
    inner = inner.inner
  where = f'predict.labels={tuple(labels)}'
  if not isinstance(inner, Contrastive):
    raise InputError(f'{where}: expected a run of images and captions (emoji_clip), not '
                     f'{type(inner).__name__}; leave it out')  # fmt: skip
  if len(labels) < 2 or len(set(labels)) < len(labels) or not all(map(str.strip, labels)):
    raise InputError(f'{where}: expected at least two different texts')
  for template in templates or ('',):
    if '{}' not in template:
      raise InputError(f'predict.templates={tuple(templates)}: expected {{}} in each, where the '
                       "label stands, such as 'a photo of a {}'")  # fmt: skip
  tokenizer = Subwords(state['tokenizer'], names=state.get('special_tokens'))
  texts = [template.replace('{}', label) for label in labels for template in templates]
  tokens, _ = encode_captions(tokenizer, texts, inner.model.facts.max_seq_len)
  shape = len(labels), len(templates), tokens.shape[-1]
  return ZeroShot(task, tuple(labels), np.asarray(tokens).reshape(shape))
