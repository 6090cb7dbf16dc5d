"""The GANs of the textbooks, which leave the loss, the penalties and the normalisation to whoever trains them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganflow.models import losses
from ganflow.models.game import option
from ganflow.models.inputs import InputSpec
from ganflow.models.losses import Loss
from ganflow.models.penalties import squared_gradient_norm
from ganflow.models.two_player import Scored, TwoPlayerGame, TwoPlayerParams

LossName = Literal["minimax", "non_saturating", "hinge", "least_squares", "relativistic"]

LOSSES: dict[LossName, Loss] = {
    "minimax": losses.MINIMAX,
    "non_saturating": losses.NON_SATURATING,
    "hinge": losses.HINGE,
    "least_squares": losses.LEAST_SQUARES,
    "relativistic": losses.RELATIVISTIC,
}


@dataclass(frozen=True, kw_only=True)
class ClassicParams(TwoPlayerParams):
    """The parameters of the families that leave the choice of a loss."""

    loss: LossName = option(
        "non_saturating", "What both lose: minimax, non_saturating, hinge, least_squares or relativistic."
    )
    r1: float = option(0.0, "Weight gamma of R1: gamma/2 times D's squared gradient at real pictures.", ge=0.0)
    r2: float = option(0.0, "Weight gamma of R2: the same at generated pictures.", ge=0.0)
    spectral_norm: bool = option(False, "Divide the discriminator's weights by their largest singular value.")


class ClassicGame(TwoPlayerGame):
    """Two players by one of the classic losses, with R1, R2 and spectral normalisation where they are asked for."""

    def __init__(
        self, params: ClassicParams, generator: nn.Module, discriminator: nn.Module, inputs: InputSpec | None = None
    ) -> None:
        """Take networks that are initialised already: spectral normalisation hides the weights that it divides."""
        if params.spectral_norm:
            _normalise(discriminator)
        inputs = inputs or InputSpec(params.noise, params.latent_dim)
        super().__init__(params, LOSSES[params.loss], generator, discriminator, inputs)
        self._r1, self._r2 = params.r1, params.r2
        self.penalised = params.r1 > 0, params.r2 > 0

    def penalty(self, real: Scored, fake: Scored) -> Tensor | None:
        """Give R1 and R2, each gamma/2 times a squared gradient (Mescheder et al. 2018, eq. 9 and 10)."""
        terms = [
            gamma / 2 * squared_gradient_norm(of.scores, of.images)
            for gamma, of in ((self._r1, real), (self._r2, fake))
            if gamma > 0
        ]
        return sum(terms[1:], start=terms[0]) if terms else None


def _normalise(network: nn.Module) -> None:
    """Normalise every convolution and linear layer (Miyato et al. 2018, section 2.1: one power iteration a step).

    A class comes in as a picture does, so that the embedding which draws it is no layer to be bounded.
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            spectral_norm(layer)
