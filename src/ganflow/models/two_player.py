"""The game of the original GAN, whatever the two networks are made of (Goodfellow et al. 2014, Algorithm 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ganflow.models.game import Batch, FamilyParams, Game, Outcome, Player, draw_noise, option
from ganflow.models.losses import GENERATOR_LOSSES, GeneratorLoss, discriminator_loss


@dataclass(frozen=True, kw_only=True)
class TwoPlayerParams(FamilyParams):
    """The parameters of the families that play the original game."""

    loss: GeneratorLoss = option("non_saturating", "What the generator descends: minimax or non_saturating.")
    discriminator_steps: int = option(1, "Discriminator steps a generator step (k of Algorithm 1).", ge=1, le=100)


class TwoPlayerGame(Game):
    """A generator from latents (n, latent_dim) to pictures against a discriminator from pictures to logits (n,)."""

    def __init__(self, params: TwoPlayerParams, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.params = params
        self.generator = generator
        self.discriminator = discriminator
        self._fakes: Tensor | None = None

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, `discriminator_steps` times."""
        return (
            Player("discriminator", self.discriminator, self._discriminator_turn, self.params.discriminator_steps),
            Player("generator", self.generator, self._generator_turn),
        )

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw latents (n, latent_dim)."""
        device = next(self.generator.parameters()).device
        return draw_noise(self.params.noise, n, self.params.latent_dim, device, rng)

    def _discriminator_turn(self, batch: Batch) -> Outcome:
        self._fakes = self.generator(self.draw_inputs(len(batch.images)))
        real, fake = self.discriminator(batch.images), self.discriminator(self._fakes.detach())
        right = (real > 0).float().mean() + (fake <= 0).float().mean()
        values = {"d_real": real.sigmoid().mean(), "d_fake": fake.sigmoid().mean(), "batch_accuracy": right / 2}
        return Outcome(discriminator_loss(real, fake), values)

    def _generator_turn(self, batch: Batch) -> Outcome:
        # The pictures of the discriminator's last step serve again, since the generator has not moved since.
        fakes, self._fakes = self._fakes, None
        if fakes is None or not fakes.requires_grad:
            fakes = self.generator(self.draw_inputs(len(batch.images)))
        return Outcome(GENERATOR_LOSSES[self.params.loss](self.discriminator(fakes)), {})
