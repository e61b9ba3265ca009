"""Published scaling laws: the model size and the tokens that reach the lowest loss for FLOPs."""

from typing import NamedTuple

from bmx.core.errors import InputError, did_you_mean

FLOPS = 6.0  # of a training token for each parameter, as both papers count


class Optimum(NamedTuple):
  """A model and its training.

  Attributes:
    parameters: all of them, with embeddings.
    tokens: that it reads, each once.
    loss: nats of a token of the paper's text, which is not the user's.
  """

  parameters: float
  tokens: float
  loss: float


class ScalingLaw(NamedTuple):
  """loss = floor + a · parameters^-alpha + b · tokens^-beta (Hoffmann et al. 2022, equation 2).

  Attributes:
    floor: nats.
    a: nats of one parameter.
    b: nats of one token.
    alpha: exponent of the parameters.
    beta: exponent of the tokens.
    paper: source of the constants.
  """

  floor: float
  a: float
  b: float
  alpha: float
  beta: float
  paper: str

  def loss(self, parameters: float, tokens: float) -> float:
    """Returns the loss of a training."""
    return self.floor + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

  def best(self, flops: float) -> Optimum:
    """Returns the minimum of the loss where 6 · parameters · tokens = flops (equation 4)."""
    g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
    parameters = g * (flops / FLOPS) ** (self.beta / (self.alpha + self.beta))
    tokens = flops / FLOPS / parameters
    return Optimum(parameters, tokens, self.loss(parameters, tokens))


LAWS = {
  # The text rounds the exponents to 0.34 and 0.28, which moves the optimum by a quarter; table A3
  # follows from those of the source of the paper, which Besiroglu et al. report.
  'hoffmann': ScalingLaw(
    1.6934, 406.4, 410.7, 0.3392, 0.2849, 'Hoffmann et al. 2022, arXiv:2203.15556, approach 3'
  ),
  'besiroglu': ScalingLaw(
    1.8172, 482.01, 2085.43, 0.3478, 0.3658, 'Besiroglu et al. 2024, arXiv:2404.10102'
  ),
}


def law(name: str) -> ScalingLaw:
  """Returns a law of `LAWS`. Raises InputError for another name."""
  if name not in LAWS:
    raise InputError(f'plan.law={name!r}: expected a law{did_you_mean(name, LAWS)}')
  return LAWS[name]
