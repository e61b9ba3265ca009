"""data.json: what a run keeps of its training data, so that it can be used without them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.data import Data, Digested, Spec, Stateful
from bmx.core.errors import InputError
from bmx.runtime.writer import write_json

NAME = 'data.json'
TOKENIZER = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class DataFile:
  """The training data of a run, as data.json describes them.

  Attributes:
    size: examples. spec: arrays of one example. metadata: facts.
    state: everything fitted (means, categories, class names, tokenizer).
    digest: SHA-256 of the examples; '' if they have none.
    tokenizer: folder with the run's tokenizer.json; None if it has none.
  """

  size: int
  spec: dict[str, Spec]
  metadata: Mapping[str, Any]
  state: dict[str, Any]
  digest: str = ''
  tokenizer: pathlib.Path | None = None


def describe(data: Data) -> dict[str, Any]:
  """The content of data.json."""
  examples = data.examples
  spec = {k: [list(v.shape), np.dtype(v.dtype).name, list(v.names)] for k, v in data.spec.items()}
  state = dict(examples.state()) if isinstance(examples, Stateful) else {}
  digest = examples.digest() if isinstance(examples, Digested) else ''
  return json.loads(
    json.dumps({
      'size': data.size,
      'spec': spec,
      'metadata': dict(data.metadata),
      'state': state,
      'digest': digest,
    })
  )  # fmt: skip


def tokenizer_of(data: Data) -> str:
  """The text of the tokenizer that made the data; '' without one."""
  examples = data.examples
  return examples.state().get('tokenizer', '') if isinstance(examples, Stateful) else ''


def check(workdir: pathlib.Path, data: Data, changed: bool = False) -> None:
  """Compares the data with the data.json and tokenizer.json of a run, if it has them.

  Args:
    workdir: run directory.
    data: training data.
    changed: data may differ from those that the run began with.

  Raises:
    InputError: the run began with other data or another tokenizer.
  """
  path = workdir / NAME
  check_tokenizer(workdir, tokenizer_of(data))
  if path.exists() and not changed:
    old, new = json.loads(path.read_text()), describe(data)
    lines = [f'{k} {_brief(old.get(k))}, now {_brief(new[k])}' for k in ('size', 'digest')
             if old.get(k) != new[k]]  # fmt: skip
    if lines:
      raise InputError(
        f'{new["metadata"].get("source", "the data")} changed since {workdir} began: '
        f'{"; ".join(lines)}; restore the data, name another --workdir, or accept the change with '
        '--config.allow_changed_data=True'
      )


def write(workdir: pathlib.Path, data: Data) -> None:
  """Writes data.json and tokenizer.json."""
  text = tokenizer_of(data)
  if text:
    part = workdir / f'{TOKENIZER}.part'
    part.write_text(text, encoding='utf-8')
    part.replace(workdir / TOKENIZER)
  write_json(workdir / NAME, describe(data))


def check_tokenizer(workdir: pathlib.Path, text: str) -> None:
  """Raises InputError if the run has another tokenizer: its ids would mean other words."""
  path = workdir / TOKENIZER
  if text and path.is_file() and path.read_text(encoding='utf-8') != text:
    raise InputError(
      f'{path} differs from the tokenizer that the config makes: its text, or the library '
      "tokenizers, has changed. To use the run's own, set "
      "tokenizer={'call': 'bmx.data.text.tokenizer:load', 'path': WORKDIR}"
    )


def read(workdir: pathlib.Path) -> DataFile | None:
  """The data that a run was trained on; None if it has no data.json.

  Raises InputError if the file is not a data.json.
  """
  path = workdir / NAME
  if not path.exists():
    return None
  try:
    stored = json.loads(path.read_text())
    spec = {k: Spec(tuple(shape), np.dtype(dtype), tuple(names))
            for k, (shape, dtype, names) in stored['spec'].items()}  # fmt: skip
    size, digest = int(stored['size']), str(stored['digest'])
    metadata, state = dict(stored['metadata']), dict(stored['state'])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f'{path} is not the data.json of a run: {error}') from None
  if size < 1:
    raise InputError(f'{path}: size={size}: expected at least 1')
  tokenizer = workdir if (workdir / TOKENIZER).is_file() else None
  return DataFile(size, spec, metadata, state, digest, tokenizer)


def _brief(value: Any) -> str:
  return str(value)[:12]
