"""Files of audio -> waves: decoding, mixing down, resampling.

A wave is float32 [n], full scale is -1 to 1.
"""

import importlib.util
import io
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.signal

from bmx.core.errors import InputError
from bmx.core.ranges import check_number

SUFFIXES = ('.wav', '.flac')
SILENCE = 1e-4  # largest sample of a silent file, of full scale: -80 dB
STREAMED = (0, 0xFFFFFFFF)  # length of a RIFF file whose writer could not go back
STEPS = 1000  # a factor of speed is a multiple of 1 / STEPS


class Wave(NamedTuple):
  """A decoded file.

  Attributes:
    samples: mean of the channels, at the wanted rate, float32 [n].
    rate: of the file, in samples a second.
    channels: of the file.
  """

  samples: np.ndarray
  rate: int
  channels: int


def check_library() -> None:
  """Raises InputError if the library that decodes files is not installed."""
  if importlib.util.find_spec('soundfile') is None:
    raise InputError("audio needs the library soundfile: pip install 'bmx-jax[audio]'")


def decode(data: bytes, name: str, rate: int) -> Wave:
  """Decodes a WAV or FLAC file.

  Channels are mixed down to their mean, and other rates are resampled.

  Args:
    data: content of the file.
    name: of the file, for messages.
    rate: wanted samples a second.

  Raises:
    InputError: damaged data or another format, no samples, numbers that are not finite, silence.
  """
  check_library()
  import soundfile

  fix = 'remove or replace it'
  try:
    _check_length(data)
    samples, given = soundfile.read(io.BytesIO(data), dtype='float32', always_2d=True)
  except (soundfile.SoundFileError, ValueError, RuntimeError, OSError, MemoryError) as error:
    reason = str(error).rpartition('>: ')[2]  # behind the address of the buffer
    raise InputError(f'{name} cannot be read as audio ({reason.rstrip(".")}); {fix}') from None
  if not len(samples):
    raise InputError(f'{name} is empty: expected at least one sample; {fix}')
  if not np.isfinite(samples).all():
    at = int(np.argwhere(~np.isfinite(samples))[0, 0])
    raise InputError(f'{name} has {samples[at].max()} at sample {at}: expected finite numbers; '
                     f'{fix}')  # fmt: skip
  wave = samples.mean(1, dtype=np.float32)
  peak = float(np.abs(wave).max())
  if peak <= SILENCE:
    raise InputError(
      f'{name} is silent (largest sample {peak:.2g} of full scale): expected more than '
      f'{SILENCE:g}; {fix}'
    )
  return Wave(resampled(wave, given, rate), given, samples.shape[1])


def _check_length(data: bytes) -> None:
  """Raises ValueError for a WAV file that is shorter than it says, which libsndfile accepts."""
  said = int.from_bytes(data[4:8], 'little')
  if data[:4] == b'RIFF' and said not in STREAMED and said + 8 > len(data) + 1:
    raise ValueError(f'{len(data)} bytes of {said + 8}')


def resampled(wave: np.ndarray, rate: int, new: int) -> np.ndarray:
  """Resamples a wave by a polyphase filter: float32 [n] -> float32 [⌈n · new / rate⌉].

  Args:
    wave: at `rate` samples a second.
    rate: of the wave.
    new: wanted samples a second.
  """
  if rate == new:
    return wave
  common = math.gcd(rate, new)
  filtered: Any = scipy.signal.resample_poly(wave, new // common, rate // common)
  return filtered.astype(np.float32)


def faster(wave: np.ndarray, speed: float) -> np.ndarray:
  """Plays a wave at another speed, which also shifts its pitch: [n] -> [⌈n / speed⌉].

  Source: Ko et al. 2015, Audio augmentation for speech recognition.
  """
  return resampled(wave, round(STEPS * speed), STEPS)


def check_speeds(speeds: tuple[float, ...]) -> None:
  """Raises InputError unless all factors of speed lie between 0.5 and 2."""
  for speed in speeds:
    check_number('speed', speed, at_least=0.5, at_most=2)
