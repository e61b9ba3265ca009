"""Paths in the words of users."""

import os
import pathlib
import re

from bmx.core.errors import InputError

MAX_NAME = 255  # bytes of a file's name
HUB_NAME = re.compile(r'[\w-][\w.-]*(/[\w-][\w.-]*)?')
SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*):/')


def local(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path of this machine; `~` and `~NAME` at its start are home directories.

  Raises InputError for an address such as gs://BUCKET/DIR, and for a home that does not exist.

  >>> local('~') == pathlib.Path.home(), local('a/~b')
  (True, PosixPath('a/~b'))
  """
  text = os.fspath(path)
  scheme = SCHEME.match(text)
  if scheme:
    raise InputError(
      f'{text}: expected a path of this machine, as bmx does not read or write {scheme[1]}: '
      'storage here; mount it (gcsfuse, mountpoint-s3), or copy it'
    )
  try:
    names = os.fsencode(text).split(b'/')
  except UnicodeEncodeError:
    names = [b'\0']
  if any(b'\0' in name or len(name) > MAX_NAME for name in names):
    raise InputError(f'{text[:200]!r}: expected a path that a file system can hold')
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise InputError(f'{text}: {error}; write the whole path') from None


def how_to_fetch(folder: str | os.PathLike[str]) -> str:
  """Returns the command that fetches a missing folder of weights; '' if no hub has such names.

  >>> how_to_fetch('openai-community/gpt2')[:52]
  '; a model of the Hugging Face hub is fetched first: '
  """
  name = os.fspath(folder)
  if not HUB_NAME.fullmatch(name):
    return ''
  return (
    f'; a model of the Hugging Face hub is fetched first: hf download {name} --local-dir {name} '
    '(bmx downloads nothing)'
  )
