"""Examples of captured traffic, and of files: records with the best label that is known."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.data.frames import read_records
from bmx.runtime.files import replacing, to_json
from bmx.runtime.storage import Place, place

log = logging.getLogger('bmx')
ANSWER, FEEDBACK = 'answer', 'feedback'  # kinds of events
PREDICT = '/v1/predict'


class Fields(NamedTuple):
  """Names in the records of a run.

  Attributes:
    label: of the class or number.
    text: of the text; '' for a table.
    csv: words that say how a CSV file without a header is read.
  """

  label: str
  text: str
  csv: dict[str, Any]


class Example(NamedTuple):
  """One example of traffic.

  Attributes:
    inputs: a record without its label.
    prediction: of the served model; None if unknown.
    label: the correction of a user; the prediction if a user found it right; None without either.
  """

  inputs: dict[str, Any]
  prediction: Any = None
  label: Any = None


def part_of(data: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the data part of a config that reads a file: itself, or a source of a mixture.

  Raises InputError if none names the file and the label.
  """
  parts = [data, *data.get('sources', {}).values()]
  for part in parts:
    if 'path' in part and ('target' in part or 'label' in part):
      return dict(part)
  raise InputError(
    f'data.call={data.get("call", "")}: expected a run that reads labeled examples from a file '
    '(bmx.data.tables:table, bmx.data.text.text_classification:text_classification)'
  )


def fields_of(part: Mapping[str, Any]) -> Fields:
  """Returns the names of a part, see `part_of`."""
  csv = {k: part[k] for k in ('columns', 'delimiter') if part.get(k)}
  return Fields(part.get('target') or part.get('label', ''), part.get('text', ''), csv)


def read(path: str, fields: Fields) -> list[Example]:
  """Reads examples.

  Args:
    path: a folder or file that `capture` wrote; or a CSV, JSON lines or Parquet file of records.
    fields: of the run.

  Raises:
    InputError: a file that cannot be read; captured traffic without predictions.
  """
  where = local(path)
  files = event_files(where) if where.is_dir() else [where]
  if not files:
    raise InputError(f'--input={path}: expected files NAME.jsonl that a server has captured')
  if where.is_dir() or _is_captured(where):
    found = list(examples((event for file in files for event in events(file)), fields))
    if not found:
      raise InputError(f'--input={path}: holds no answer of {PREDICT}')
    return found
  named = fields.csv if where.suffix.lower() not in ('.jsonl', '.json', '.parquet') else {}
  return [
    Example({k: v for k, v in r.items() if k != fields.label}, label=r.get(fields.label))
    for r in read_records(place(path), **named)
  ]


def event_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of captured events in their order."""
  return sorted(folder.glob('*.jsonl'))


def _is_captured(path: pathlib.Path) -> bool:
  """Whether the first line of a file is an event."""
  try:
    with path.open(encoding='utf-8') as file:
      first = json.loads(file.readline())
  except (OSError, ValueError):
    return False
  return isinstance(first, dict) and first.get('kind') in (ANSWER, FEEDBACK) and 'id' in first


def events(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the events of a file; a last line that a kill has cut is left out.

  Raises InputError naming any other line that is not an event.
  """
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      event = json.loads(line)
      if not isinstance(event, dict) or not isinstance(event['id'], str):
        raise ValueError('expected an object with an id')
    except (ValueError, KeyError, RecursionError) as error:
      if number == len(lines):
        log.warning('%s: its last line is not whole, and is left out', path)
        return
      raise InputError(f'{path}, line {number}: not an event: {error}') from None
    yield event


def examples(found: Iterable[Mapping[str, Any]], fields: Fields) -> Iterator[Example]:
  """Yields an example for each instance of each captured answer, with its correction.

  The last correction of an instance counts.
  """
  answers, corrections = [], {}
  for event in found:
    if event.get('kind') == FEEDBACK:
      corrections[event['id'], int(event.get('index', 0))] = event
    elif event.get('route') == PREDICT:
      answers.append(event)
  for event in answers:
    try:
      pairs = list(zip(event['asked']['instances'], event['answer']['predictions'], strict=True))
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f'answer {event["id"]}: expected instances and as many predictions: {error!r}; '
        'capture.redact must keep them'
      ) from None
    for index, (instance, answer) in enumerate(pairs):
      prediction = answer.get('prediction') if isinstance(answer, Mapping) else answer
      inputs = dict(instance) if isinstance(instance, Mapping) else {fields.text: instance}
      if fields.text and fields.text not in inputs and 'text' in inputs:  # as the server reads it
        inputs[fields.text] = inputs.pop('text')
      label = _label(corrections.get((event['id'], index), {}), prediction)
      yield Example(inputs, prediction, label)


def _label(correction: Mapping[str, Any], prediction: Any) -> Any:
  for key in ('label', 'answer'):
    if correction.get(key) is not None:
      return correction[key]
  return prediction if (correction.get('rating') or 0) > 0 else None


def labeled(found: Sequence[Example], classes: Sequence[Any] = ()) -> list[Example]:
  """Returns the examples whose label is known.

  A correction of another label than one of `classes`, if there are some, is left out: anybody may
  send one. Raises InputError naming the first such label of a file.
  """
  kept = [e for e in found if e.label not in (None, '')]
  names = {str(c) for c in classes}
  is_known = lambda e: str(e.label).strip(' .') in names or str(e.label) in names
  wrong = [e for e in kept if names and not is_known(e)]
  message = ''
  if wrong:
    message = (
      f'label {wrong[0].label!r} of {to_json(wrong[0].inputs)[:80]}: expected one of '
      f'{", ".join(map(str, classes))}'
    )
  if any(e.prediction is None for e in wrong):
    raise InputError(message)
  if wrong:
    log.warning('left out   %d corrections; %s', len(wrong), message)
  return [e for e in kept if e not in wrong]


def key_of(example: Example) -> str:
  """Returns the SHA-256 of the inputs: equal inputs are never both learned from and held out."""
  texts = {k: str(v) for k, v in example.inputs.items() if v not in (None, '')}
  return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def is_held_out(example: Example, share: float) -> bool:
  """Whether an example is one of the `share` that a challenger does not learn from."""
  return int(key_of(example)[:13], 16) < share * 16**13


def write(path: Place, found: Sequence[Example], fields: Fields, labels: bool = True) -> None:
  """Writes examples as JSON lines that the data part of the run reads.

  Args:
    path: ends with .jsonl.
    found: the examples.
    fields: of the run.
    labels: whether labels are written.
  """
  with replacing(path) as file:
    for example in found:
      record = example.inputs | ({fields.label: example.label} if labels else {})
      file.write(to_json(record) + '\n')
