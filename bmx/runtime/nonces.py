"""A random text in the run directory, by which the processes of a run know one another."""

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator

from bmx.core.errors import InputError
from bmx.runtime.files import replacing
from bmx.runtime.storage import Place

SECONDS = 8.0  # until a network file system shows the file


@contextlib.contextmanager
def written(path: Place) -> Iterator[str]:
  """A random text in a file, for the length of a `with` block.

  Raises InputError if the file cannot be written.
  """
  text = secrets.token_hex(32)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
      file.write(text)
  except OSError as error:
    raise InputError(f'--workdir={path.parent} cannot be written: {error}') from None
  try:
    yield text
  finally:
    path.unlink(missing_ok=True)


def proof(text: str, role: str, challenge: str) -> str:
  """Returns the proof of one who knows the nonce, for a challenge."""
  return hmac.new(text.encode(), f'{role} {challenge}'.encode(), hashlib.sha256).hexdigest()


def proven(text: str, role: str, challenge: str, given: object) -> bool:
  """Whether a given proof is the right one."""
  return hmac.compare_digest(proof(text, role, challenge).encode(), str(given).encode())


def name_of(text: str) -> str:
  """Returns the public name of a nonce: tells a stale file from the new one."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: Place, name: str) -> str:
  """Returns the nonce of that name; '' if the file does not show it in time."""
  deadline = time.monotonic() + SECONDS
  while True:
    with contextlib.suppress(OSError, ValueError):
      text = path.read_text()
      if name_of(text) == name:
        return text
    if time.monotonic() > deadline:
      return ''
    time.sleep(0.1)
