"""A match: the players of one game on one device, with all that changes while they play."""

from typing import Any

import torch
from torch import Tensor, nn

from ganflow.data.batches import Batches
from ganflow.models.game import Game, Player
from ganflow.params import TrainParams
from ganflow.training.augment import cut_out, flip, recolor, translate
from ganflow.training.ema import MovingAverage, half_life
from ganflow.training.meter import Meter
from ganflow.training.precision import answer_in_float32, computing_in, pick_precision
from ganflow.training.team import ALONE, Team


class Match:
    """What a checkpoint holds: networks, moving average, optimisers, meter, and the rounds played.

    A round gives each player its steps. Every turn takes the next batch of the endless stream of real pictures.
    """

    def __init__(
        self, game: Game, batches: Batches, params: TrainParams, device: torch.device, team: Team = ALONE
    ) -> None:
        self.device = device
        self.team = team
        # Convolutions are quicker on both CPU and GPU with the channels last.
        self.game = game.to(device).to(memory_format=torch.channels_last).train()
        self.batches = batches
        self.params = params
        self.players = self.game.players
        self.precision = pick_precision(params.precision, device)
        self.average = MovingAverage(self.game.generator)
        self.optimizers = {player.name: self._optimizer(player) for player in self.players}
        self.meter = Meter(device)
        self.rounds = 0
        if self.game.discriminator is not None:
            self.game.discriminator.register_forward_pre_hook(self._augment)
        for network in self.game.children():
            answer_in_float32(network)

    @property
    def images(self) -> int:
        """Real images shown to the first player so far."""
        return self.rounds * self.images_a_round

    @property
    def images_a_round(self) -> int:
        """Real images that one round adds."""
        return int(self.players[0].steps * self.params.batch_size)

    def play_round(self) -> None:
        """Let each player take its steps, and the average follow. Nothing here waits for the device."""
        turns = [player for player in self.players for _ in range(player.steps)]
        images = self.images + self.images_a_round
        self.game.rounds, self.game.images = self.rounds, self.images
        for turn, player in enumerate(turns):
            batch = self.batches.batch((self.rounds * len(turns) + turn) * self.params.batch_size)
            with computing_in(self.precision, self.device):
                outcome = player.play(batch)
            optimizer = self.optimizers[player.name]
            self._set_pace(player, optimizer)
            optimizer.zero_grad()
            # Only this player's gradients: nothing is computed for the weights that stay.
            torch.autograd.backward(outcome.loss, inputs=list(player.network.parameters()))
            self.team.average_gradients(player.network)
            optimizer.step()
            if player.constrain is not None:
                player.constrain()
            self.meter.add(player.name, outcome, images)
            self.meter.add_gradient(player.name, player.network)
        self.rounds += 1
        life = half_life(images, self.params.ema_half_life, self.params.ema_ramp_up)
        self.average.update(self.images_a_round, life)

    def _optimizer(self, player: Player) -> torch.optim.Optimizer:
        weights, rate = player.network.parameters(), self._rate(player)
        if player.optimizer == "rmsprop":
            return torch.optim.RMSprop(weights, lr=rate, foreach=True)
        betas = (self.params.beta1, self.params.beta2)
        return torch.optim.Adam(weights, lr=rate, betas=betas, fused=True)

    def _rate(self, player: Player) -> float:
        return self.params.generator_lr if player.name == "generator" else self.params.discriminator_lr

    def _set_pace(self, player: Player, optimizer: torch.optim.Optimizer) -> None:
        """Set what changes with the images; nothing of it is in a checkpoint, since it follows from their number."""
        if player.pace is not None:
            pace = player.pace(self.images, self.params.beta2)
            (group,) = optimizer.param_groups
            group["lr"], group["betas"] = self._rate(player) * pace.rate, (self.params.beta1, pace.beta2)

    def _augment(self, discriminator: nn.Module, inputs: tuple[Tensor, *tuple[Any, ...]]) -> tuple[Any, ...]:
        images, *beside = inputs
        if discriminator.training and self.params.translation:
            images = translate(images, self.params.translation)
        if discriminator.training and self.params.flip:
            images = flip(images)
        if discriminator.training and self.params.color:
            images = recolor(images)
        if discriminator.training and self.params.cutout:
            images = cut_out(images, self.params.cutout)
        return (images, *beside)
