"""Files of audio, and their transcripts: a folder, or a table of files and texts."""

import concurrent.futures
import copy
import dataclasses
import hashlib
import logging

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.data.arrays import RESIDENT_BYTES
from bmx.data.audio.waves import SUFFIXES, Wave, check_library, decode
from bmx.data.files import SHOWN, TABLES, THREADS, Files, file_records, names_below, readable
from bmx.data.records import no_file
from bmx.runtime.storage import place

log = logging.getLogger('bmx')
KIND = 'audio'
HELD_BYTES = RESIDENT_BYTES  # of waves; others are decoded each time
TABLE_NAMES = ('transcripts.csv', 'transcripts.tsv', 'transcripts.jsonl', 'metadata.csv')


@dataclasses.dataclass(frozen=True)
class Recordings(Files):
  """Files of audio and their transcripts.

  Attributes:
    root: folder that the names are relative to.
    names: of the files.
    source: for messages.
    texts: transcript of each file; None without one.
  """

  texts: tuple[str | None, ...]

  def take(self, indices: np.ndarray) -> 'Recordings':
    """Returns some of the files."""
    names, texts = ([values[i] for i in indices] for values in (self.names, self.texts))
    return dataclasses.replace(self, names=tuple(names), texts=tuple(texts))

  def digest(self) -> str:
    """Returns the SHA-256 of names, transcripts and sizes of the files, in bytes."""
    total = hashlib.sha256()
    for name, text in zip(self.names, self.texts, strict=True):
      total.update(f'{name}\n{text}\n{self.size_of(name)}\n'.encode())
    return total.hexdigest()


def recordings(path: str, file: str, text: str, predicted: bool) -> Recordings:
  """Lists files of audio.

  Args:
    path: of a table of files and texts; of a folder with such a table (`TABLE_NAMES`); to predict,
      also of a folder of files in any folders, or of a file.
    file: column of the table with the path of a file.
    text: column of the table with its transcript.
    predicted: files need no transcripts.

  Raises:
    InputError: no files, no table, a record without a path or a transcript.
  """
  if not path:
    raise InputError('data.path: expected a folder of audio with transcripts.csv, or a table, such '
                     'as --data.path=speech')  # fmt: skip
  source = place(path)
  if source.is_dir():
    table = next((source / n for n in TABLE_NAMES if (source / n).is_file()), None)
    if table is None and not predicted:
      raise InputError(f'{path}: expected a table of transcripts in it, {TABLE_NAMES[0]} with the '
                       f'columns {file} and {text}')  # fmt: skip
    if table is None:
      names = names_below(source, SUFFIXES, KIND, warn=True)
      return Recordings(source, tuple(names), path, (None,) * len(names))
    source = table
  if source.suffix.lower() in TABLES:
    records = file_records(source, file, 'a file of audio')
    texts = [None if r.get(text) is None else str(r[text]) for r in records]
    for number, record in enumerate(records, 1):
      if record.get(text) is None and not predicted:
        extra = did_you_mean(text, record) if text not in record else ''
        raise InputError(f'{source}, record {number}: expected the transcript in {text!r}{extra}; '
                         'set --data.text=COLUMN')  # fmt: skip
    return Recordings(source.parent, tuple(str(r[file]) for r in records), path, tuple(texts))
  if not source.is_file():
    raise no_file(source)
  return Recordings(source.parent, (source.name,), path, (None,))


class Waves:
  """The waves of files: decoded once at the start, and held in memory up to `HELD_BYTES`.

  Args:
    files: names and transcripts.
    rate: wanted samples a second.
    most: longest recording, in samples; 0: any.
    unreadable: 'refuse' files that cannot be read, or 'skip' them and log their errors.

  Attributes:
    files: that could be read.
    lengths: samples of each, int64 [N].
    failed: number of files that could not be read.

  Raises:
    InputError: a file that cannot be read where they are refused; none can be read.
  """

  def __init__(self, files: Recordings, rate: int, most: int, unreadable: str):
    check_library()
    self.files, self.rate, self.most = files, rate, most
    self._held: dict[str, np.ndarray] = {}
    found: dict[int, Wave] = {}
    left = [HELD_BYTES]

    def read(number: int) -> None:
      wave = self._decoded(files.names[number])
      size = len(wave.samples)
      if left[0] >= wave.samples.nbytes:
        left[0] -= wave.samples.nbytes
        self._held[files.names[number]] = wave.samples
      found[number] = wave._replace(samples=np.zeros(0, np.float32))
      lengths[number] = size

    lengths = np.zeros(len(files.names), np.int64)
    with concurrent.futures.ThreadPoolExecutor(THREADS, KIND) as pool:
      kept = readable(read, len(files.names), pool, unreadable, files.source, KIND)
    self.files, self.lengths = files.take(kept), lengths[kept]
    self.failed = len(files.names) - len(kept)
    _say([found[int(i)] for i in kept], files.source, rate)

  def _decoded(self, name: str) -> Wave:
    path = self.files.path_of(name)
    wave = decode(self.files.read(name), path, self.rate)
    if self.most and len(wave.samples) > self.most:
      raise InputError(
        f'{path} lasts {len(wave.samples) / self.rate:.2f} s: expected at most '
        f'{self.most / self.rate:.2f} s; cut it, or train with a larger --data.seconds'
      )
    return wave

  def wave(self, number: int) -> np.ndarray:
    """Returns the wave of a file, float32 [n]."""
    name = self.files.names[number]
    held = self._held.get(name)
    return self._decoded(name).samples if held is None else held

  def take(self, indices: np.ndarray) -> 'Waves':
    """Returns the waves of some of the files."""
    chosen = copy.copy(self)
    chosen.files, chosen.lengths = self.files.take(indices), self.lengths[indices]
    return chosen


def _say(decoded: list[Wave], source: str, rate: int) -> None:
  """Logs how waves were changed: other rates, several channels."""
  others = [wave.rate for wave in decoded if wave.rate != rate]
  if others:
    shown = ', '.join(map(str, sorted(set(others))[:SHOWN]))
    log.info('%s: %d of %d files resampled from %s to %d Hz', source, len(others), len(decoded),
             shown, rate)  # fmt: skip
  mixed = sum(wave.channels > 1 for wave in decoded)
  if mixed:
    log.info('%s: %d of %d files have several channels: mixed down to their mean', source, mixed,
             len(decoded))  # fmt: skip
