"""Differential privacy: clipped gradients of single examples, Gaussian noise, and its accounting.

The config word `privacy` is the part `Privacy`, which composes the rest: `Poisson` draws batches,
`Clipped` bounds what an example adds to a gradient (`GhostClipped` with less memory), `Noised` adds
noise, `Accountant` computes ε. Federated training is beside it: `Federated` averages what clients
learn from data of their own.
"""

from bmx.privacy.accounting import Accountant
from bmx.privacy.clip import Clipped
from bmx.privacy.federated import Federated
from bmx.privacy.ghost import GhostClipped
from bmx.privacy.mechanism import Mechanism, Privacy
from bmx.privacy.noise import Noised
from bmx.privacy.sampling import Poisson
from bmx.privacy.secret import Secret

__all__ = [
  'Accountant', 'Clipped', 'Federated', 'GhostClipped', 'Mechanism', 'Noised', 'Poisson',
  'Privacy', 'Secret',
]  # fmt: skip
