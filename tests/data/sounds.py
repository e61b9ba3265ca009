"""Files of audio for tests."""

import numpy as np

RATE = 8000


def tone(seconds=0.5, rate=RATE, hertz=440.0, level=0.5):
  """A sine, float64 [n]."""
  return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def save(path, wave, rate=RATE, **words):
  """Writes a WAV or FLAC file, by its suffix."""
  import soundfile

  path.parent.mkdir(exist_ok=True, parents=True)
  soundfile.write(path, wave, rate, **words)
  return path


def keypad(path, texts, rate=RATE, seed=0):
  """Writes a file of touch tones for each text of digits, and their table -> the texts by name."""
  from bmx.data.audio.digits import NAMES, tones

  clips = {}
  for clip in tones('train'):
    clips.setdefault(NAMES[clip.word - 1], []).append(clip.wave)
  random = np.random.default_rng(seed)
  found = {}
  for i, text in enumerate(texts):
    parts = [np.zeros(800)]
    for word in text.split():
      parts += [clips[word][random.integers(len(clips[word]))], np.zeros(800)]
    wave = np.concatenate(parts) + random.normal(0, 2e-3, sum(map(len, parts)))
    found[f'{i:03}.wav'] = text
    save(path / f'{i:03}.wav', 0.5 * wave, rate)
  rows = [f'{name},{text}' for name, text in found.items()]
  (path / 'transcripts.csv').write_text('\n'.join(['file,text', *rows]) + '\n')
  return found
