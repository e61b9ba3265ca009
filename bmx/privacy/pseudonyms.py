"""What stands in the place of personal data: a placeholder, a keyed pseudonym, a mask, nothing."""

import dataclasses
import functools
import re
import unicodedata
from typing import Literal, get_args

from bmx.core.errors import InputError, did_you_mean
from bmx.core.paths import local
from bmx.privacy.secret import VARIABLE, Secret, read

Form = Literal['placeholder', 'pseudonym', 'mask', 'remove']
FORMS: tuple[str, ...] = get_args(Form)
DIGITS = 12  # hexadecimal, of a pseudonym: two of a million values share one with probability .002
HOW = (
  "write one with: python -c 'import secrets; print(secrets.token_hex(32))' > KEY_FILE, keep it "
  'outside run directories and away from the anonymized data, and name KEY_FILE or env:NAME'
)
WORD = 'anonymize.key'
NUMBERS = ('CARD', 'IBAN', 'PHONE', 'SSN', 'PASSPORT')  # separators inside them mean nothing


@dataclasses.dataclass(frozen=True)
class Replacement:
  """Replaces values of a type.

  Attributes:
    form: 'placeholder' (<EMAIL>), 'pseudonym' (<EMAIL_3f9a0c41d27e>, the same for the same value
      and key), 'mask' (as many asterisks; blanks stay) or 'remove'.
    key: of pseudonyms: path of a file or env:NAME, with at least 16 random bytes.

  Raises:
    InputError: an unknown form; a pseudonym without a key, or with one that is too short.
  """

  form: Form = 'placeholder'
  key: str = ''

  def __post_init__(self):
    if self.form not in FORMS:
      raise InputError(
        f'form={self.form!r}: expected one of {", ".join(FORMS)}{did_you_mean(self.form, FORMS)}'
      )
    if self.form == 'pseudonym':
      self.check_key()

  def check_key(self) -> None:
    """Raises InputError if the key is missing, has fewer than 16 bytes or lies in a run."""
    if not self.key:
      raise InputError(f"anonymize.key='': expected the key of pseudonyms; {HOW}")
    read(self.key, WORD, HOW)
    if not self.key.startswith(VARIABLE):
      for folder in local(self.key).resolve().parents:
        if (folder / 'checkpoints').is_dir() and (folder / 'config.json').is_file():
          raise InputError(
            f'{WORD}={self.key}: expected a file outside the run directory {folder}, which others '
            'may get; move it'
          )

  def __call__(self, type: str, value: str) -> str:
    """Returns what replaces a value."""
    if self.form == 'placeholder':
      return f'<{type}>'
    if self.form == 'pseudonym':
      return f'<{type}_{self.digest(type, value)}>'
    return re.sub(r'\S', '*', value) if self.form == 'mask' else ''

  def digest(self, type: str, value: str) -> str:
    """Returns the keyed digest of a value: HMAC-SHA256, cut to 48 bits (12 digits)."""
    return _secret(self.key).digest(f'anonymize {type} {canonical(type, value)}')[:DIGITS]


def canonical(type: str, value: str) -> str:
  """Returns the value that equal pseudonyms stand for: without case, width and spacing.

  >>> canonical('PERSON', 'Ann  LEE'), canonical('IBAN', 'GB82 WEST')
  ('ann lee', 'gb82west')
  """
  text = unicodedata.normalize('NFKC', value).casefold()
  if type in NUMBERS:
    return ''.join(c for c in text if c.isalnum())
  return ' '.join(text.split())


@functools.lru_cache(maxsize=8)  # the file is read once
def _secret(key: str) -> Secret:
  return Secret(key, word=WORD, how=HOW)
