"""Fits the share of the bound that trainings reach, by family of chips, on published figures.

    python experiments/plan/fit.py

Each point is a published speed. Its bound is the peak of the chip over the FLOPs of a token: 6 N +
6 L d T (causal attention, no recomputation; N without the embedding table unless it is tied). The
factor of a family is the geometric mean of reached / bound; a point is predicted from the others of
its family. results.json here holds every point with its error; `bmx/core/chips.py` holds the
factors.
"""

import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from bmx.core.chips import KINDS

HERE = pathlib.Path(__file__).parent


class Model(NamedTuple):
  """Sizes of a decoder: `multiplied` parameters, depth, width, tokens of a row."""

  multiplied: float
  depth: int
  width: int
  length: int

  def flops(self) -> float:
    """FLOPs of a training token, with causal attention."""
    return 6 * self.multiplied + 6 * self.depth * self.width * self.length


def llama(depth: int, width: int, mlp: int, keys: float, vocab: int, length: int) -> Model:
  """A Llama: `keys` is the share of key heads among heads; the head is not tied."""
  block = (2 + 2 * keys) * width**2 + 3 * width * mlp
  return Model(depth * block + vocab * width, depth, width, length)


GPT2 = Model(12 * 12 * 768**2 + 50304 * 768, 12, 768, 1024)
# The published 50.0 % and 0.73 B parameters give this length: some layers attend to a window.
NANOCHAT = Model(24 * 12 * 1536**2 + 32768 * 1536, 24, 1536, 1279)
OLMO_1B = llama(18, 2048, 5632, 1, 100352, 4096)  # the published 47.8 % gives 5632
LLAMA_1B = llama(16, 2048, 8192, 0.25, 128256, 4096)
LLAMA2_7B = llama(32, 4096, 11008, 1, 32000, 4096)
LLAMA2_70B = llama(80, 8192, 28672, 0.125, 32000, 4096)
LLAMA3_8B = llama(32, 4096, 14336, 0.25, 128256, 8192)
LLAMA3_70B = llama(80, 8192, 28672, 0.125, 128256, 8192)
LLAMA3_70B_SHORT = llama(80, 8192, 28672, 0.125, 128256, 4096)

# (name, chip, model, tokens a second and device). Speeds of bmx: one run each, 2026-11-26.
POINTS: list[tuple[str, str, Model, float]] = [
  ('GPT-2 124M, llm.c', 'h100', GPT2, 474_772),
  ('GPT-2 124M with Muon, modded-nanogpt #7', 'h100', GPT2, 462_107),
  ('nanochat d24', 'h100', NANOCHAT, 99_979),
  ('1 B, OLMo-core', 'h100', OLMO_1B, 55_000),
  ('Llama 2 7B, MaxText of NVIDIA', 'h100', LLAMA2_7B, 11_361),
  ('Llama 3.1 8B, torchtitan compiled', 'h100', LLAMA3_8B, 6_667),
  ('Llama 3.1 70B on 256, MaxText', 'h200', LLAMA3_70B_SHORT, 1_056),
  ('GPT-2 124M, PyTorch compiled', 'h200', GPT2, 500_000),
  ('GPT-2 124M, bmx, remat dots', 'h200', GPT2, 411_000),
  ('Llama 3.2 1B, bmx, remat none', 'h200', LLAMA_1B, 56_200),
  ('Llama 2 7B, AXLearn', 'v5p', LLAMA2_7B, 6_554),
  ('Llama 2 70B, AXLearn', 'v5p', LLAMA2_70B, 706),
  ('Llama 3.1 8B on 256, MaxText', 'v6e', LLAMA3_8B, 7_207),
  ('Llama 3.1 70B on 256, MaxText', 'v6e', LLAMA3_70B, 960),
]
# Published as a share of the peak alone, without the sizes: not in the fit.
SHARES = [
  ('Megatron-LM 1.7 B', 'h100', 0.41, 'full'),
  ('Megatron-LM 16 B', 'h100', 0.49, 'full'),
]


def mean(shares: list[float]) -> float:
  """Geometric mean."""
  return math.exp(statistics.fmean(map(math.log, shares)))


def fit() -> dict[str, Any]:
  """Returns the factors of the families, and every point with its error."""
  rows = []
  for name, kind, model, speed in POINTS:
    bound = KINDS[kind].flops / model.flops()
    rows.append({
      'point': name, 'family': KINDS[kind].family, 'tokens_per_second': speed,
      'bound_tokens_per_second': round(bound, 1), 'share': round(speed / bound, 4),
    })  # fmt: skip
  families: dict[str, list[float]] = {}
  for row in rows:
    families.setdefault(row['family'], []).append(row['share'])
  for row in rows:
    others = list(families[row['family']])
    others.remove(row['share'])
    predicted = mean(others) if others else None
    row['predicted_share'] = predicted and round(predicted, 4)
    row['achieved_over_predicted'] = predicted and round(row['share'] / predicted, 3)
  errors = {
    f: round(max(abs(r['achieved_over_predicted'] - 1) for r in rows if r['family'] == f), 3)
    for f, shares in families.items()
    if len(shares) > 1
  }
  return {
    'efficiency': {f: round(mean(shares), 3) for f, shares in families.items()},
    'largest_leave_one_out_error': errors,
    'points': rows,
    'published_as_shares': [
      dict(zip(('point', 'family', 'share', 'count'), s, strict=True)) for s in SHARES
    ],
  }


def main() -> None:
  """Writes results.json and prints it."""
  record = json.dumps(fit(), indent=1)
  (HERE / 'results.json').write_text(record + '\n')


if __name__ == '__main__':
  main()
