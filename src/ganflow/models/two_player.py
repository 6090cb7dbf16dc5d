"""The game of two: a discriminator against a generator, whatever networks and loss (Goodfellow et al. 2014, Alg. 1)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ganflow.models.game import Batch, FamilyParams, Game, Outcome, Player, option
from ganflow.models.inputs import InputSpec
from ganflow.models.losses import Loss


@dataclass(frozen=True, kw_only=True)
class TwoPlayerParams(FamilyParams):
    """The parameters of the families in which two play."""

    discriminator_steps: int = option(1, "Discriminator steps a generator step (k of Algorithm 1).", ge=1, le=100)


class Scored(NamedTuple):
    """Pictures (n, c, h, w), their classes (n,) if any, and the scores (n,) that the discriminator gave them."""

    images: Tensor
    labels: Tensor | None
    scores: Tensor


class TwoPlayerGame(Game):
    """A generator from inputs (n, width) to pictures against a discriminator from pictures to scores (n,).

    A family may add a penalty to what the discriminator loses.
    """

    discriminator: nn.Module
    penalised: tuple[bool, bool] = (False, False)
    """Whether a penalty needs the discriminator's gradient at real, and at generated pictures."""

    def __init__(
        self, params: TwoPlayerParams, loss: Loss, generator: nn.Module, discriminator: nn.Module, inputs: InputSpec
    ) -> None:
        super().__init__()
        self.discriminator_steps = params.discriminator_steps
        self.loss = loss
        self.scale = loss.scale
        self.inputs = inputs
        self.generator = generator
        self.discriminator = discriminator
        self._fakes: tuple[Tensor, Tensor | None] | None = None

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, `discriminator_steps` times."""
        return (
            Player("discriminator", self.discriminator, self._discriminator_turn, self.discriminator_steps),
            Player("generator", self.generator, self._generator_turn),
        )

    def penalty(self, real: Scored, fake: Scored) -> Tensor | None:
        """Give what the discriminator loses beside its loss, a scalar."""
        return None

    def draw_like(self, batch: Batch) -> Tensor:
        """Draw the inputs (n, width) of pictures that are to be told from those of a batch."""
        return self.draw_inputs(len(batch.images))

    def _make(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        inputs = self.draw_like(batch)
        return self.generator(inputs), self.inputs.labels(inputs)

    def _scored(self, images: Tensor, labels: Tensor | None, *, penalised: bool) -> Scored:
        images = images.detach().requires_grad_(penalised)
        return Scored(images, labels, self.judge(images, labels))

    def _discriminator_turn(self, batch: Batch) -> Outcome:
        self._fakes = self._make(batch)
        real = self._scored(batch.images, batch.labels, penalised=self.penalised[0])
        fake = self._scored(*self._fakes, penalised=self.penalised[1])
        loss = self.loss.discriminator(real.scores, fake.scores)
        penalty = self.penalty(real, fake)
        values = {} if penalty is None else {"penalty": penalty}
        return Outcome(
            loss if penalty is None else loss + penalty, {**self._beliefs(real.scores, fake.scores), **values}
        )

    def _generator_turn(self, batch: Batch) -> Outcome:
        # The pictures of the discriminator's last step serve again, since the generator has not moved since; but not
        # where they are compared with real ones of their classes, since those of this turn's batch are others.
        made, self._fakes = self._fakes, None
        if made is None or not made[0].requires_grad or (self.loss.generator_sees_real and made[1] is not None):
            made = self._make(batch)
        images, labels = made
        fake = self.judge(images, labels)
        real = self.judge(batch.images, batch.labels) if self.loss.generator_sees_real else fake
        return Outcome(self.loss.generator(real, fake), {})

    def _beliefs(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Give D(x) and D(G(z)): probabilities where the scores are log-odds, else the scores; and accuracy if any."""
        if self.scale == "log_odds":
            values = {"d_real": real.sigmoid().mean(), "d_fake": fake.sigmoid().mean()}
        else:
            values = {"d_real": real.mean(), "d_fake": fake.mean()}
        if self.scale == "relative":
            return values
        right = (real > 0).float().mean() + (fake <= 0).float().mean()
        return {**values, "batch_accuracy": right / 2}
