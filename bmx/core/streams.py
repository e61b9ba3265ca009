"""Which random stream feeds what: the one table.

Device randomness is `jax.random` (threefry): the run's key folded with a stream, then with what the
use varies over. Host randomness is Philox, keyed by `(seed, stream)` and *counted* by what the use
varies over, so the draw for position p needs no draw before it.

| stream       | feeds                                        | varies over       |
|--------------|----------------------------------------------|-------------------|
| INIT         | parameter initialisation                     | parameter path    |
| STEP         | dropout and every other noise of a step      | step, then module |
| EVAL         | noise of an evaluation, where a task has any | nothing           |
| GENERATE     | tokens that are drawn                        | row, then token   |
| MIX_BLOCK    | which source stands where in a mixture       | block of positions   |
| MIX + i      | order of examples of source i of a mixture   | epoch of the source  |
| TEACHER      | projections to the teacher's hidden states   | parameter path    |
| PREPARE      | corruption of a batch, before the model sees | step              |
| ADAPTERS     | initialization of adapters                   | number of the adapter |
| PERMUTATION  | order of examples                            | epoch             |
| SHIFT        | where the windows of a text begin            | epoch             |
| AUGMENTATION | crops, flips and other changes of images     | operation, then position |
| PAIRS        | which text stands second                      | position          |
| SPLIT        | which examples a random split holds          | nothing           |
| DRIFT        | rows that are compared, permutations of MMD  | nothing           |
| GATE         | draws of a bootstrap                         | nothing           |
| SCENES       | composed scenes                              | split, then scene |
| SPEECH       | composed sequences of words, their noise     | split, then sequence |
| CLIENTS      | clients of a round, and the order of their examples | round      |
| CLIENT_SPLIT | which client has which examples              | nothing           |
| SYNTHETIC    | drawn data sets (`data.recommend`, `data.text`) | number of the set |
| EXPLAIN      | permutations, noise and rows of explanations | nothing           |
"""

import dataclasses

import numpy as np

INIT, STEP, EVAL, GENERATE, PREPARE, ADAPTERS, TEACHER = 0, 1, 2, 3, 4, 5, 6
(
  PERMUTATION,
  SHIFT,
  AUGMENTATION,
  SPLIT,
  PAIRS,
  MIX_BLOCK,
  DRIFT,
  GATE,
  SCENES,
  SYNTHETIC,
  EXPLAIN,
  SPEECH,
  CLIENTS,
  CLIENT_SPLIT,
) = range(16, 30)
MIX = 1000  # and one for each source from here on


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
  """Returns a host generator for item `index` (an epoch, for example) of a stream."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, index))))


def draws(seed: int, stream: int, positions: np.ndarray, number: int = 0) -> np.ndarray:
  """Draws four uniform numbers per position: positions int64 [n] -> float64 [n, 4] in [0, 1).

  Row i depends on `(seed, stream, number, positions[i])` alone: Philox is a counter-based generator
  (Salmon et al. 2011), and one count gives four 64-bit words. `number` is the second word of the
  counter, so that the draws of two numbers are independent.
  """
  words = np.empty((len(positions), 4), np.uint64)
  key = np.array([seed, stream], np.uint64)
  breaks = np.flatnonzero(np.diff(positions) != 1) + 1
  for run in np.split(np.arange(len(positions)), breaks):
    if len(run):
      bits = np.random.Philox(key=key, counter=(number << 64) + int(positions[run[0]]))
      words[run] = bits.random_raw(4 * len(run)).reshape(-1, 4)
  return (words >> np.uint64(11)) * 2.0**-53


@dataclasses.dataclass(frozen=True)
class Draws:
  """Uniform numbers of the augmentation of n examples.

  Attributes:
    seed: of the run.
    positions: of the examples, int64 [n].
  """

  seed: int
  positions: np.ndarray

  def __call__(self, number: int = 0) -> np.ndarray:
    """Returns draws `number`, float64 [n, 4] in [0, 1); those of two numbers are independent."""
    return draws(self.seed, AUGMENTATION, self.positions, number)
