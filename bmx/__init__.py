"""bmx: big models in JAX."""

import importlib
from typing import Any

__version__ = '0.1.0'

# Imported at first use: `import bmx` imports neither jax nor a recipe.
_API = {
  'load': 'bmx.config',
  'build': 'bmx.experiment',
  'train': 'bmx.train',  # a package that can be called
  'evaluate': 'bmx.modes.evaluate',
  'predict': 'bmx.modes.predict',
}


def __getattr__(name: str) -> Any:
  if name not in _API:
    raise AttributeError(f"module 'bmx' has no attribute {name!r}")
  module = importlib.import_module(_API[name])
  return module if name == 'train' else getattr(module, name)
