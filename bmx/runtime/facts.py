"""Facts that the processes of a run must share: config, flags, versions, environment, files."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

PACKAGES = (
  'bmx-jax', 'jax', 'jaxlib', 'libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'flax', 'optax',
  'orbax-checkpoint', 'numpy', 'grain', 'tokenizers',
)  # fmt: skip
# Variables that change a compiled program or its results.
ENVIRONMENT = (
  'XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_PLATFORMS', 'JAX_ENABLE_X64', 'JAX_DEFAULT_PRNG_IMPL',
  'JAX_DEFAULT_MATMUL_PRECISION', 'JAX_THREEFRY_PARTITIONABLE', 'JAX_NUMPY_DTYPE_PROMOTION',
)  # fmt: skip
LOCAL = ('cache',)  # words of a config that may differ between machines
EDGE = 1 << 20  # bytes at each end of a file that its digest covers
MAX_LINES = 12
LONGEST = 80  # characters of a value in a message
ABSENT = '(absent)'


def facts(config: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, str]:
  """Returns word -> value of everything that is known before jax starts.

  Args:
    config: words of the config by dotted names.
    flags: flags of the command beside it.
  """
  shared = {k: v for k, v in config.items() if k.split('.')[0] not in LOCAL}
  found = {f'--{k}': repr(v) for k, v in flags.items()}
  found |= {f'config.{k}': repr(v) for k, v in shared.items()}
  found |= {f'file of config.{k}': t for k, v in shared.items() if (t := _file(v))}
  found |= {f'version of {k}': _version(k) for k in PACKAGES}
  found['version of python'] = platform.python_version()
  found['source of bmx'] = source_digest(pathlib.Path(__file__).parent.parent)
  return found | {k: repr(os.environ.get(k, '')) for k in ENVIRONMENT}


def differences(reports: Mapping[int, Mapping[str, str]]) -> list[str]:
  """Returns a line for every word that the processes do not share, with values and processes.

  >>> differences({0: {'seed': '1', 'steps': '9'}, 1: {'seed': '2', 'steps': '9'}})
  ['seed: 1 on process 0, 2 on process 1']
  """
  words = sorted({word for report in reports.values() for word in report})
  lines = []
  for word in words:
    values: dict[str, list[int]] = {}
    for process, report in sorted(reports.items()):
      values.setdefault(report.get(word, ABSENT), []).append(process)
    if len(values) > 1:
      parts = [f'{_brief(value)} on {names(some)}' for value, some in values.items()]
      lines.append(f'{word}: {", ".join(parts)}')
  more = [f'and {len(lines) - MAX_LINES} more words'] if len(lines) > MAX_LINES else []
  return lines[:MAX_LINES] + more


def names(processes: list[int]) -> str:
  """Returns 'process 1' or 'processes 1, 2'."""
  return f'process{"es" if len(processes) > 1 else ""} {", ".join(map(str, processes))}'


def source_digest(folder: pathlib.Path) -> str:
  """Returns a digest of the Python files of a folder: which code a machine runs."""
  total = hashlib.sha256()
  for path in sorted(folder.rglob('*.py')):
    total.update(f'{path.relative_to(folder)}\n'.encode() + path.read_bytes())
  return total.hexdigest()[:16]


def _file(value: Any) -> str:
  """Returns size and digest of each file or folder that a value names; '' if it names none."""
  if isinstance(value, tuple | list):
    return '; '.join(text for v in value if (text := _file(v)))
  if not isinstance(value, str) or not value:
    return ''
  path = pathlib.Path(value).expanduser()
  try:
    if path.is_dir() and len(path.parts) > 1:
      listing = sorted((p.name, p.stat().st_size if p.is_file() else -1) for p in path.iterdir())
      return f'{len(listing)} entries, digest {_hash(repr(listing).encode())}'
    return _content(path) if path.is_file() else ''
  except (OSError, ValueError):
    return ''


def _content(path: pathlib.Path) -> str:
  size = path.stat().st_size
  with path.open('rb') as file:
    ends = file.read(EDGE)
    if size > EDGE:
      file.seek(max(EDGE, size - EDGE))
      ends += file.read(EDGE)
  return f'{size:,} bytes, digest {_hash(ends)}'


def _hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ABSENT


def _brief(value: str) -> str:
  if len(value) <= LONGEST:
    return value
  return f'{value[: LONGEST - 30]}... (digest {_hash(value.encode())})'
