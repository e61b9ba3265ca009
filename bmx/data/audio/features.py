"""Log-mel features: waves float32 [n] -> float32 [T, M], T frames of M mel bands."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.fft
import scipy.sparse

from bmx.core.errors import InputError
from bmx.core.ranges import check_number

Kind = Literal['mel', 'whisper']
LEAST = 1e-10  # power below which the logarithm is cut off
BREAK, LINEAR, OCTAVES = 1000.0, 200 / 3, np.log(6.4) / 27  # of Slaney's scale: Hz, Hz, log Hz
EPS = 1e-5  # added to a standard deviation


@dataclasses.dataclass(frozen=True)
class LogMel:
  """How waves become features; kept in data.json.

  Frame t is centered at sample t · hop of the wave, with zeros (of `whisper`, the reflected wave)
  beyond its ends; the window is a periodic Hann window, and mel bands are Slaney's, each of area 1.

  Attributes:
    rate: samples a second.
    mels: M, bands.
    window: seconds of a frame.
    hop: seconds between frames.
    low: lower end of the lowest band, in Hz.
    high: upper end of the highest band, in Hz; 0 is half of the rate.
    normalize: whether each band of a wave gets mean 0 and standard deviation 1 over its frames.
    kind: 'mel', the natural logarithm of the power; or 'whisper', the features that Whisper was
      trained on (Radford et al. 2022): the decimal logarithm, at most 8 below its largest value,
      plus 4, divided by 4; neither the last frame nor `normalize` apply.

  Raises:
    InputError: a number outside its range.

  Source: Davis & Mermelstein 1980; Slaney 1998, Auditory Toolbox, as librosa computes it.
  """

  rate: int = 16000
  mels: int = 80
  window: float = 0.025
  hop: float = 0.01
  low: float = 0.0
  high: float = 0.0
  normalize: bool = True
  kind: Kind = 'mel'

  def __post_init__(self):
    check_number('rate', self.rate, at_least=1000)
    check_number('mels', self.mels, at_least=1)
    check_number('window', self.window, at_least=2 / self.rate, at_most=1)
    check_number('hop', self.hop, at_least=1 / self.rate, at_most=self.window)
    check_number('high', self.high, at_least=0, at_most=self.rate / 2)
    check_number('low', self.low, at_least=0, below=self.high or self.rate / 2)
    if self.kind not in ('mel', 'whisper'):
      raise InputError(f"kind={self.kind!r}: expected 'mel' or 'whisper'")
    empty = np.flatnonzero(self.filters.sum(1) == 0)
    if len(empty):
      raise InputError(
        f'mels={self.mels}: band {empty[0]} holds no frequency of a window of {self.window} s; '
        'expected fewer bands, or a longer window'
      )

  @property
  def samples(self) -> int:
    """Samples of a window."""
    return round(self.window * self.rate)

  @property
  def stride(self) -> int:
    """Samples between frames."""
    return round(self.hop * self.rate)

  @property
  def size(self) -> int:
    """Points of the Fourier transform: of 'mel', the power of 2 that holds a window."""
    return self.samples if self.kind == 'whisper' else 1 << (self.samples - 1).bit_length()

  @property
  def filters(self) -> np.ndarray:
    """Weight of each frequency in each band, float64 [M, size // 2 + 1]."""
    return mel_filters(*self._key)

  @property
  def _key(self) -> tuple[int, int, int, float, float]:
    return self.rate, self.size, self.mels, self.low, self.high or self.rate / 2

  def frames(self, samples: int) -> int:
    """Returns T of a wave of n samples."""
    return samples // self.stride + (self.kind == 'mel')

  def state(self) -> dict[str, Any]:
    """Returns the attributes, as JSON holds them."""
    return dataclasses.asdict(self)

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'LogMel':
    """Inverse of `state`."""
    return cls(**state)

  def __call__(self, wave: np.ndarray) -> np.ndarray:
    """Computes features: [n] -> [T, M], in the wave's dtype."""
    power = self.spectrum(wave)
    # Not by BLAS, whose threads could change the order of sums.
    mel = np.maximum(_sparse(self._key, power.dtype.name).dot(power.T).T, LEAST)
    if self.kind == 'whisper':
      values = np.log10(mel[:-1])
      return (np.maximum(values, values.max(initial=-np.inf) - 8) + 4) / 4
    values = np.log(mel)
    if not self.normalize:
      return values
    return (values - values.mean(0)) / (values.std(0) + EPS)

  def spectrum(self, wave: np.ndarray) -> np.ndarray:
    """Computes the power of each frame and frequency: [n] -> [1 + n // stride, size // 2 + 1]."""
    half = self.size // 2
    if self.kind == 'whisper' and len(wave) <= half:
      raise InputError(f'{len(wave)} samples: expected more than {half}')
    padded = np.pad(wave, half, 'reflect' if self.kind == 'whisper' else 'constant')
    frames = np.lib.stride_tricks.sliding_window_view(padded, self.size)[:: self.stride]
    left = (self.size - self.samples) // 2
    window = np.zeros(self.size, wave.dtype)
    turns = np.arange(self.samples) / self.samples
    window[left : left + self.samples] = 0.5 - 0.5 * np.cos(2 * np.pi * turns)
    found: Any = scipy.fft.rfft(frames * window, axis=-1)
    return found.real**2 + found.imag**2


WHISPER_SECONDS = 30  # that Whisper reads at once


def whisper(mels: int = 80) -> LogMel:
  """Returns the features of Whisper, of 80 bands, or 128 from large-v3 on."""
  return LogMel(16000, mels, kind='whisper')


def whisper_features(wave: np.ndarray, mels: int = 80) -> np.ndarray:
  """Computes the inputs of Whisper of a wave of 16,000 samples a second: [n] -> [3000, M].

  The wave is cut off after 30 s, or filled up with zeros.
  """
  most = WHISPER_SECONDS * 16000
  return whisper(mels)(np.pad(wave[:most], (0, max(0, most - len(wave)))))


def _to_mel(hertz: Any) -> np.ndarray:
  hertz = np.asarray(hertz, np.float64)
  above = BREAK / LINEAR + np.log(np.maximum(hertz, BREAK) / BREAK) / OCTAVES
  return np.where(hertz < BREAK, hertz / LINEAR, above)


def _to_hertz(mel: np.ndarray) -> np.ndarray:
  above = BREAK * np.exp(OCTAVES * (mel - BREAK / LINEAR))
  return np.where(mel < BREAK / LINEAR, mel * LINEAR, above)


@functools.lru_cache(maxsize=16)
def mel_filters(rate: int, size: int, mels: int, low: float, high: float) -> np.ndarray:
  """Returns triangular filters on Slaney's scale, float64 [mels, size // 2 + 1].

  Args:
    rate: samples a second.
    size: points of the Fourier transform.
    mels: number of filters.
    low: lower end of the lowest, in Hz.
    high: upper end of the highest, in Hz.
  """
  corners = _to_hertz(np.linspace(_to_mel(low), _to_mel(high), mels + 2))
  frequency = np.arange(size // 2 + 1) * (rate / size)
  rising = (frequency[None] - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
  falling = (corners[2:, None] - frequency[None]) / (corners[2:] - corners[1:-1])[:, None]
  area = (2 / (corners[2:] - corners[:-2]))[:, None]
  return np.maximum(0, np.minimum(rising, falling)) * area


@functools.lru_cache(maxsize=16)
def _sparse(key: tuple[int, int, int, float, float], dtype: str) -> Any:
  """Returns `mel_filters(*key)` as a sparse matrix: a frequency lies in two of them at most."""
  return scipy.sparse.csr_array(mel_filters(*key).astype(dtype))
