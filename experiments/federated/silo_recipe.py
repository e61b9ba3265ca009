"""The recipe of the silos of flower.py, with data from archives."""

from typing import Any

import bmx

ROWS = 80  # of a silo in a round: 10 local steps of 8 examples


def built(archives: dict[str, str]) -> Any:
  """Returns the experiment of silos: name -> archive of their digits."""
  config, name = bmx.load('digits_federated', ['mesh.data=1', 'seed=0'])
  sources = {
    silo: {'call': 'bmx.data.arrays:arrays', 'path': path, 'classes': 10, 'scale': 16.0}
    for silo, path in archives.items()
  }
  config.data = {'call': 'bmx.data.clients:sources', 'sources': sources}
  config.data.update(per_round=len(sources), passes=2)
  config.batch_size = ROWS * len(sources)
  config.eval = {}
  return bmx.build(config, name)
