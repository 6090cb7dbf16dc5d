"""What keeps a game from running away: penalties on gradients, differentiable once more by the networks' weights."""

from collections.abc import Callable

import torch
from torch import Tensor


def squared_gradient_norm(scores: Tensor, images: Tensor) -> Tensor:
    """Give mean |grad_x D(x)|^2 of a discriminator's scores (n,) at the pictures (n, c, h, w) that they are of.

    Squares are summed over a picture, and their mean is taken over the batch: R1 at real pictures, R2 at generated ones
    (Mescheder et al. 2018, eq. 9 and 10, without the factor gamma/2). `images` must ask for a gradient.
    """
    return _gradients(scores, images).square().sum(dim=(1, 2, 3)).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Give mean (|grad_x D(x)| - 1)^2 at points between real and generated pictures, (n, c, h, w) each.

    Every picture has its own place on its own line: x = e real + (1 - e) fake with e uniform on [0, 1] (Gulrajani et
    al. 2017, Algorithm 1, without the factor lambda).
    """
    places = torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
    between = torch.lerp(fake.detach(), real, places).requires_grad_()
    # A norm, and no root of a sum: its derivative where a critic is flat is 0, the root's would be NaN.
    norms: Tensor = torch.linalg.vector_norm(_gradients(critic(between), between), dim=(1, 2, 3))
    return (norms - 1).square().mean()


def path_lengths(images: Tensor, styles: Tensor) -> Tensor:
    """Give how far each picture moves with its styles, (n,): |J^T y| for noise y, normal with variance 1/(h w).

    `images` (n, c, h, w) are made of `styles` (n, layers, d); squares are summed over d, and their mean is taken over
    the layers (Karras et al. 2020, StyleGAN2, section 3.2 and appendix B).
    """
    noise = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    lengths: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2)) / gradient.shape[1] ** 0.5
    return lengths


def _gradients(scores: Tensor, images: Tensor) -> Tensor:
    """Give the gradient of each picture's score by its own pixels: (n, c, h, w)."""
    # No score depends on another picture, so that the sum's gradient holds that of each.
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient
