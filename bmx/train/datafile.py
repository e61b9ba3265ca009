"""data.json: what a run keeps of its training data, so that it can be used without them."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.data import Data, Digested, Spec, Stateful
from bmx.core.errors import InputError
from bmx.data.text import chat_template, special
from bmx.runtime.files import read_json, replacing, to_json, write_json
from bmx.runtime.storage import Place, place
from bmx.train.manifest import SEAL, seal

log = logging.getLogger('bmx')
NAME = 'data.json'
TOKENIZER = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class DataFile:
  """The training data of a run, as data.json describes them.

  Attributes:
    size: examples. spec: arrays of one example. metadata: facts.
    state: everything fitted (means, categories, class names, tokenizer).
    digest: SHA-256 of the examples; '' if they have none.
    ends: ids that end a text by the files of the weights that the run began with.
  """

  size: int
  spec: dict[str, Spec]
  metadata: Mapping[str, Any]
  state: dict[str, Any]
  digest: str = ''
  ends: tuple[int, ...] = ()


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


def facts(name: str, data: Data) -> dict[str, str]:
  """Returns what the processes of a run must share of their data: word -> value."""
  known = describe(data)
  fitted = hashlib.sha256(json.dumps(known['state'], sort_keys=True).encode()).hexdigest()
  return {
    f'examples of {name}': str(known['size']),
    f'digest of {name}': known['digest'],
    f'digest of what {name} fitted': fitted[:16],
  }


def tokenizer_of(data: Data) -> str | None:
  """The text of the tokenizer that made the data: '' of bytes, None if it is not known."""
  examples = data.examples
  return examples.state().get('tokenizer') if isinstance(examples, Stateful) else None


def names_of(data: Data) -> dict[str, str]:
  """Role -> special token of that tokenizer, as files beside its tokenizer.json name them."""
  examples = data.examples
  return examples.state().get('special_tokens', {}) if isinstance(examples, Stateful) else {}


def chat_template_of(data: Data) -> str:
  """The template of conversations that made the data, or that their tokenizer has; '' if none."""
  examples = data.examples
  return examples.state().get('chat_template', '') if isinstance(examples, Stateful) else ''


def check(workdir: Place, data: Data, changed: bool = False) -> None:
  """Compares the data with the data.json and tokenizer.json of a run, if it has them.

  Args:
    workdir: run directory.
    data: training data.
    changed: data may differ from those that the run began with.

  Raises:
    InputError: the run began with other data, other classes or another tokenizer.
  """
  check_tokenizer(workdir, tokenizer_of(data))
  old = read(workdir)
  if old is None:
    return
  new = describe(data)
  source = new['metadata'].get('source', 'the data')
  _check_classes(workdir, source, old.state.get('class_names'), new['state'].get('class_names'))
  if changed:
    fitted = [k for k, v in new['state'].items() if old.state.get(k) != v]
    if fitted:
      log.warning('%s: fitted to the changed data, so equal rows become other inputs: %s', source,
                  ', '.join(fitted))  # fmt: skip
    return
  was = {'size': old.size, 'digest': old.digest}
  lines = [f'{k} {_brief(v)}, now {_brief(new[k])}' for k, v in was.items() if v != new[k]]
  if lines:
    raise InputError(
      f'{source} changed since {workdir} began: {"; ".join(lines)}; restore the data, name another '
      '--workdir, or accept the change with --config.allow_changed_data=True'
    )


def _check_classes(workdir: Place, source: str, old: Any, new: Any) -> None:
  if old != new:
    raise InputError(
      f'{source}: expected the classes of {workdir}, {old}, found {new}: a label means another '
      'class there; name another --workdir'
    )


def write(workdir: Place, data: Data, weights: str = '') -> None:
  """Writes data.json, with the SHA-256 of its own content, and the files of the tokenizer.

  They are tokenizer.json, tokenizer_config.json and chat_template.jinja, as far as there are.

  Args:
    workdir: run directory.
    data: training data.
    weights: folder that the run's weights began with, or ''. What generation reads there is kept,
      as the folder may be gone then: its ends of text, and its tokenizer where the data have none.
  """
  old, text = read(workdir), tokenizer_of(data)
  ends = ends_of(weights) or (old.ends if old else ())
  if text:
    with replacing(workdir / TOKENIZER) as file:
      file.write(text)
    if names := names_of(data):
      write_json(workdir / special.CONFIG, {f'{k}_token': v for k, v in names.items()})
  elif weights and not (workdir / TOKENIZER).is_file():
    for name in (special.MAP, special.CONFIG, chat_template.NAME, TOKENIZER):
      if (place(weights) / TOKENIZER).is_file() and (place(weights) / name).is_file():
        shutil.copyfile(place(weights) / name, workdir / name)
  if template := chat_template_of(data):
    with replacing(workdir / chat_template.NAME) as file:
      file.write(template)
  content = json.loads(to_json(describe(data) | {'ends': list(ends)}))
  write_json(workdir / NAME, content | {SEAL: seal(content)})


def ends_of(weights: str) -> tuple[int, ...]:
  """Ids that end a text by the files beside weights, of a Hugging Face model or a run."""
  if not weights:
    return ()
  stored = read(place(weights))
  return special.read_ids(weights)['eos'] or (stored.ends if stored else ())


def check_tokenizer(workdir: Place, text: str | None) -> None:
  """Raises InputError if the run has another tokenizer: its ids would mean other words."""
  path = workdir / TOKENIZER
  if text and path.is_file() and path.read_text(encoding='utf-8') != text:
    raise InputError(
      f'{path} differs from the tokenizer that the config makes: its text, or the library '
      "tokenizers, has changed. To use the run's own, set "
      "tokenizer={'call': 'bmx.data.text.tokenizer:load', 'path': WORKDIR}"
    )


def read(workdir: Place) -> DataFile | None:
  """The data that a run was trained on; None if it has no data.json.

  Raises InputError if the file is not a data.json, or its content is not what was written.
  """
  path = workdir / NAME
  if not path.exists():
    return None
  try:
    stored = dict(read_json(path))
    whole = stored.pop(SEAL, None) == seal(stored)
    spec = {k: Spec(tuple(shape), np.dtype(dtype), tuple(names))
            for k, (shape, dtype, names) in stored['spec'].items()}  # fmt: skip
    size, digest = int(stored['size']), str(stored['digest'])
    metadata, state = dict(stored['metadata']), dict(stored['state'])
    ends = special.checked_ids('ends', stored.get('ends'))
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f'{path} is not the data.json of a run: {error}') from None
  if not whole:
    raise InputError(
      f'{path}: expected the content that the run wrote, found another (its SHA-256 differs); '
      'restore the file from a copy of the run'
    )
  if size < 1:
    raise InputError(f'{path}: size={size}: expected at least 1')
  return DataFile(size, spec, metadata, state, digest, ends)


def _brief(value: Any) -> str:
  return str(value)[:12]
