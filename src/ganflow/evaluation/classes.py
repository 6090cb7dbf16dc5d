"""What a classifier sees in generated pictures: Inception Score, modes and the divergence of the classes' histogram."""

from math import exp

import torch
from torch import Tensor

from ganflow.errors import UserError


class ClassTally:
    """The classes of pictures, batch by batch, in memory that does not grow with the number of pictures.

    `counts`, int64 (c,), says how many pictures each class is the most probable one of.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64)
        self._probabilities = torch.zeros(0, dtype=torch.float64)
        self._negative_entropy = 0.0

    def update(self, logits: Tensor) -> None:
        """Take the logits (b, c) of a batch, on any device; computed on the CPU, in float64.

        The first batch says how many classes there are. Raises ValueError for another shape, UserError for logits
        that are not finite.
        """
        classes = len(self.counts) or logits.shape[-1]
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must be (b, {classes}), not {tuple(logits.shape)}")
        values = logits.cpu().to(torch.float64)
        if not torch.isfinite(values).all():
            raise UserError("the classifier's logits are not finite: its weights hold NaN or infinity, or overflow")
        log_p = values.log_softmax(dim=1)
        p = log_p.exp()
        if not len(self.counts):
            self.counts, self._probabilities = self.counts.new_zeros(classes), self._probabilities.new_zeros(classes)
        self.counts += torch.bincount(values.argmax(dim=1), minlength=classes)
        self._probabilities += p.sum(dim=0)
        self._negative_entropy += float((p * log_p).sum())

    @property
    def inception_score(self) -> float:
        """Give exp(E KL(p(y|x) || p(y))) over all pictures (Salimans et al. 2016, section 4), from 1 to c.

        It is high if each picture is of one class for sure, and all classes are there. The paper splits the pictures
        into ten; without a split, the score depends less on their number (Barratt and Sharma 2018).
        Raises ValueError if there were no pictures.
        """
        n = int(self.counts.sum())
        if n == 0:
            raise ValueError("an Inception Score needs one picture at least")
        marginal = self._probabilities / n
        return exp(max(0.0, self._negative_entropy / n - float(torch.xlogy(marginal, marginal).sum())))


def modes(counts: Tensor) -> int:
    """Count the classes that occur at all, given how many pictures are of each, (c,).

    One picture is enough, as in the literature on Stacked MNIST (Metz et al. 2017, section 3.3.1).
    """
    return int(counts.count_nonzero())


def class_divergence(generated: Tensor, real: Tensor) -> float | None:
    """Give KL(generated || real) in nats between histograms of classes, from counts (c,) each.

    The generated ones come first, as in the literature on Stacked MNIST (Metz et al. 2017, section 3.3.1). 0 for equal
    shares, and finite where classes are missing among the generated ones: log 10 if all are of one class of ten
    that are equally frequent. None where a generated class is not among the real ones: it is infinite.

    Raises ValueError for other shapes, or if one of the histograms is empty.
    """
    if generated.ndim != 1 or generated.shape != real.shape or not (generated.any() and real.any()):
        shapes = f"{tuple(generated.shape)}, {tuple(real.shape)}"
        raise ValueError(f"counts must be (c,) for the same classes and not all 0, not {shapes}")
    p, q = (counts.cpu().to(torch.float64) / counts.sum().cpu() for counts in (generated, real))
    present = p > 0
    p, q = p[present], q[present]
    return max(0.0, float((p * (p / q).log()).sum())) if q.all() else None
