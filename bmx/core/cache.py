"""jax's persistent cache of compiled programs."""

import os
import pathlib

import jax


def enable(folder: str) -> None:
  """Keeps compiled programs in `folder`; '' is the user's cache folder, 'off' keeps none."""
  if folder == 'off':
    return
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = pathlib.Path(folder or f'{home}/bmx/programs').expanduser()
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
