"""What a linear head is fitted to: features on one scale, beside an unpenalised constant."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Standardised:
    """Features x as z = (x − constant · mean) / scale.

    Attributes:
        z: (prompts, features), each of standard deviation 1.
        constant: (prompts, 1): ones, or of a head without a bias the direction v of the features
            that comes nearest to ones, x · v.
        v: (features,); zeros for a head with a bias.
        mean, scale: (features,).
    """

    z: np.ndarray
    constant: np.ndarray
    v: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    with_bias: bool

    @classmethod
    def of(cls, x: np.ndarray, with_bias: bool) -> "Standardised":
        """Args: x: (prompts, features), float64."""
        if with_bias:
            v, constant = np.zeros(x.shape[1]), np.ones((len(x), 1))
        else:
            # A little ridge: there may be more features than prompts.
            gram = x.T @ x
            gram += 1e-6 * gram.diagonal().mean() * np.eye(len(gram))
            v = np.linalg.solve(gram, x.sum(0))
            constant = (x @ v)[:, None]
        mean = x.mean(0)
        centred = x - constant * mean
        scale = np.maximum(centred.std(0), 1e-6)
        return cls(centred / scale, constant, v, mean, scale, with_bias)

    def head(self, w: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (teachers, features) and b (teachers,) of o = W x + b, which is z · w + offset.

        Args:
            w: (features, teachers); offset: (teachers,).
        """
        weight = (w / self.scale[:, None]).T
        bias = offset - weight @ self.mean
        if self.with_bias:
            return weight, bias
        return weight + bias[:, None] * self.v, np.zeros(len(bias))
