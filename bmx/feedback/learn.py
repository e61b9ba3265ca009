"""The config of a challenger: the champion's, from its weights, on original and captured data."""

import itertools
from collections.abc import Mapping
from typing import Any

from bmx.core.ranges import check_number
from bmx.feedback.traffic import part_of

MIX = 'bmx.data.mixture:mix'
ORIGINAL, CAPTURED = 'original', 'captured'  # sources of the mixture
# Words of a part that describe its own file.
OF_FILE = ('columns', 'delimiter', 'split', 'holdout')


def challenger(config: Mapping[str, Any], champion: str, path: str, share: float) -> dict[str, Any]:
  """Returns the config of a run that learns from captured examples.

  It is that of the champion, except that training begins with the champion's weights (`init.path`),
  data are encoded as the champion encodes them (`fitted`), and `data` is a mixture. Captured data
  that the champion has learned from stay in the mixture.

  Args:
    config: of the champion, with overrides of the command.
    champion: its run directory.
    path: JSON lines of captured examples.
    share: of captured examples in a batch.

  Raises:
    InputError: a share out of range; data that are not read from a file of labeled examples.
  """
  check_number('feedback.share', share, above=0, below=1)
  data = config['data']
  read = {k: v for k, v in part_of(data).items() if k not in OF_FILE} | {'path': path}
  sources, weights = {ORIGINAL: data}, {ORIGINAL: 1.0}
  if data['call'] == MIX:
    sources, weights = dict(data['sources']), dict(data['weights'])
  names = itertools.chain([CAPTURED], (f'{CAPTURED}{n}' for n in itertools.count(2)))
  name = next(n for n in names if n not in sources)
  total = sum(weights.values())
  weights = {k: (1 - share) * v / total for k, v in weights.items()} | {name: share}
  whole = lambda entry: dict(entry) if 'call' in entry else {**data, **entry}
  init = {k: v for k, v in config['init'].items() if k != 'adapter'}
  return {
    **config,
    'data': {'call': MIX, 'sources': sources | {name: read}, 'weights': weights},
    'eval': {k: whole(entry) for k, entry in config['eval'].items()},
    'init': init | {'path': champion, 'reinit': ''},
    'fitted': champion,
  }
