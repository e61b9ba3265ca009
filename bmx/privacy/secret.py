"""The secret that noise and draws come from: of a file or an environment variable, never stored.

Who has the secret of a run can subtract its noise. A run directory holds the fingerprint alone, and
the random name of the run, which separates the noise of two runs of one secret.
"""

import dataclasses
import functools
import hashlib
import hmac
import os

import numpy as np

from bmx.core.errors import InputError
from bmx.core.paths import local

LEAST_BYTES = 16
VARIABLE = 'env:'  # begins the name of an environment variable
HOW = (
  "write one with: python -c 'import secrets; print(secrets.token_hex(32))' > SECRET_FILE, keep it "
  'outside the run directory, and set --config.privacy.secret=SECRET_FILE or env:NAME'
)


@dataclasses.dataclass(frozen=True)
class Secret:
  """Random bytes that a run's noise and draws are derived from.

  Attributes:
    source: path of a file, or env:NAME.
    run: random name of the run; two runs of one secret have independent noise and draws.
    word: of the config, for messages.
    how: to make a secret, for messages.
  """

  source: str
  run: str = ''
  word: str = 'privacy.secret'
  how: str = HOW

  @functools.cached_property
  def _bytes(self) -> bytes:
    return read(self.source, self.word, self.how)

  @property
  def fingerprint(self) -> str:
    """Hexadecimal digest that reveals nothing of random bytes; a run directory holds it."""
    return hashlib.sha256(b'bmx fingerprint' + self._bytes).hexdigest()[:16]

  @property
  def key(self) -> np.ndarray:
    """Key of the noise of the run, uint32 [2]."""
    return np.frombuffer(self._derived('noise')[:8], np.uint32)

  def generator(self, step: int) -> np.random.Generator:
    """Returns the host generator of the draws of a step (Philox, 128-bit key)."""
    key = np.frombuffer(self._derived('draws')[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=step << 64))

  def digest(self, text: str) -> str:
    """Returns a keyed digest of a text, which nobody without the secret can compare with others."""
    return hmac.new(self._bytes, text.encode(), hashlib.sha256).hexdigest()

  def keyed(self, run: str) -> 'Secret':
    """Returns the secret of a run."""
    return dataclasses.replace(self, run=run)

  def _derived(self, use: str) -> bytes:
    return hashlib.sha256(f'bmx {use} {self.run} '.encode() + self._bytes).digest()


def read(source: str, word: str = 'privacy.secret', how: str = HOW) -> bytes:
  """Returns the bytes of a secret, without blanks around them.

  Args:
    source: path of a file, or env:NAME.
    word: of the config, for messages.
    how: to make a secret, for messages.

  Raises:
    InputError: it is missing, or has fewer than `LEAST_BYTES` bytes.
  """
  where = f'{word}={source}'
  if source.startswith(VARIABLE):
    name = source.removeprefix(VARIABLE)
    if name not in os.environ:
      raise InputError(f'{where}: expected an environment variable that is set; {how}')
    found = os.environ[name].encode()
  else:
    try:
      found = local(source).read_bytes()
    except OSError as error:
      raise InputError(f'{where}: expected a file: {error.strerror}; {how}') from None
  found = found.strip()
  if len(found) < LEAST_BYTES:
    raise InputError(
      f'{where}: expected at least {LEAST_BYTES} random bytes, found {len(found)}; {how}'
    )
  return found
