"""Speech recognition: transcripts of features by connectionist temporal classification.

B batch, T frames, S outputs of the model, K units with the blank, L units of a transcript.
"""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.data.audio.units import Units
from bmx.ops.checks import check_ids
from bmx.ops.ctc import Lexicon, beam_search, check_frames, ctc_loss, greedy, lexicon
from bmx.tasks.common import ModelTask, find, num_outputs


@runtime_checkable
class HasOutputFrames(Protocol):
  """A model with fewer outputs than frames."""

  def output_frames(self, frames: Any) -> Any:
    """Returns S of examples of T frames, int [B]."""
    ...


@dataclasses.dataclass(frozen=True)
class CTC(ModelTask):
  """Negative log likelihood of transcripts, summed over all alignments, in nats per utterance.

  Reads `features` [B, T, M], `num_frames` int [B], `transcript` int [B, L], filled up with 0, and
  `transcript_length` int [B]. Output 0 is the blank. Predictions are units [B, S], filled up with
  0. A transcript with more units than the model has frames is refused on the host, as its loss
  would be finite.

  Attributes:
    metadata: of the data: names of the units.
    num_beams: prefixes of beam search; 1 decodes the most likely unit of each frame.
    words: that transcripts consist of; () allows any. Needs beam search.

  Raises:
    InputError: a number outside its range, words without beam search, words with other units than
      those of the data, a model that does not say how many outputs it has.

  Source: Graves et al. 2006.
  """

  metadata: Metadata = dataclasses.field(default_factory=dict, repr=False, compare=False)
  num_beams: int = 1
  words: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    check_number('num_beams', self.num_beams, at_least=1)
    if self.words and self.num_beams == 1:
      raise InputError('num_beams=1: expected at least 2 with words; set task.num_beams=16')
    if not isinstance(self.model, HasOutputFrames):
      raise InputError(f'task.model={type(self.model).__name__}: expected a model with '
                       'output_frames, such as bmx.models.speech:Recognizer')  # fmt: skip
    if self.words and 'units' in self.metadata:
      _ = self.lexicon

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('transcript', 'transcript_length')

  @functools.cached_property
  def lexicon(self) -> Lexicon | None:
    """Automaton of the transcripts that `words` allow; None without words."""
    if not self.words:
      return None
    units = Units.of(self.metadata)
    ids = [units.encode(word, f'words: {word!r}') for word in self.words]
    between = units.names.index(' ') + 1 if ' ' in units.names else 0
    return lexicon(ids, len(units.names) + 1, between)

  def validate(self, metadata: Metadata) -> None:
    units, outputs = Units.of(metadata), num_outputs(self.model)
    if len(units.names) + 1 != outputs:
      raise InputError(f'num_outputs={outputs}: expected {len(units.names) + 1}, the '
                       f'{units.kind} of the data and the blank')  # fmt: skip

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'transcript' not in rows or 'num_frames' not in rows:
      return
    units, length = rows['transcript'], rows['transcript_length']
    check_ids('transcript', units, num_outputs(self.model), numbers)
    assert isinstance(self.model, HasOutputFrames)
    check_frames(self.model.output_frames(rows['num_frames']), units, length, numbers)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'features'), find(batch, 'num_frames'))

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    frames = self._frames(batch)
    losses = ctc_loss(out, frames, find(batch, 'transcript'), batch['transcript_length'])
    total, count = weighted(losses, batch['weights'])
    return total, count, {}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    frames = self._frames(batch)
    if self.num_beams == 1:
      return {'prediction': greedy(out, frames)}
    found = beam_search(out, frames, self.num_beams, out.shape[1], self.lexicon)
    return {'prediction': found}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    units = Units.of(self.metadata or metadata)
    lines: list[dict[str, Any]] = [{'text': units.decode(ids)} for ids in rows['prediction']]
    if 'transcript' in rows:
      for line, ids in zip(lines, rows['transcript'], strict=True):
        line['label'] = units.decode(ids)
    return lines

  def _frames(self, batch: Batch) -> jax.Array:
    assert isinstance(self.model, HasOutputFrames)
    return self.model.output_frames(batch['num_frames'])
