"""How fast ganflow trains, beside the loop of a tutorial: the same networks, data, batch and optimiser, turn by turn.

    python benchmarks/training_speed.py [--source mnist --root FOLDER] [--images 60000] [--seeds 0 1 2]
                                        [--work build/speed]

Writes benchmarks/results/training_speed.json. Each turn is a process of its own: a plain loop in the style of
PyTorch's DCGAN example (a DataLoader with two workers, float32, `.item()` at every step, a grid of samples now and
then), and `ganflow train`'s stage with MLflow on sqlite. The turns alternate, so that what else the machine does falls
on both. The last line is `ganflow / tutorial loop: N.NNx`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from machine import describe
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.utils import save_image

from ganflow import params as params_module
from ganflow.data.packed import PackedData
from ganflow.evaluation.extractor import load_extractor
from ganflow.evaluation.validation import ValidationFid
from ganflow.models.game import Game
from ganflow.params import Params
from ganflow.stages.prepare import prepare
from ganflow.training import loop
from ganflow.training.device import pick_device
from ganflow.training.match import Match
from ganflow.training.precision import pick_precision
from ganflow.training.weights import load_game

Way = Literal["tutorial", "ganflow"]
WAYS: tuple[Way, ...] = get_args(Way)

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "training_speed.json"
_WARM_UP = 2_560  # images of each training before its time is taken
_SAMPLE_EVERY = 20_000


def main() -> int:
    """Take all turns and write the results."""
    options = _options()
    work = options.work.resolve()
    if options.turn:
        print(json.dumps(_TURNS[options.turn](_params(options, options.seeds[0]), work)))
        return 0
    load = os.getloadavg()[0]
    work.mkdir(parents=True, exist_ok=True)
    prepare(_params(options, 0), work / "prepared")
    turns: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number, seed in enumerate(options.seeds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            turns[way].append(_turn(options, way, seed))
            print(
                f"seed {seed}: {way} {turns[way][-1]['rate']:.0f} images/s, FID {turns[way][-1]['fid']:.2f}", flush=True
            )
    results = _results(options, load, turns)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"of ganflow's time outside forward, backward and optimiser: {results['outside_percent']:.1f} %")
    print(f"ganflow / tutorial loop: {results['speed_up']:.2f}x")
    return 0


def _results(
    options: argparse.Namespace, load: float, turns: Mapping[Way, Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    measured = {
        way: {what: _spread([turn[what] for turn in taken]) for what in taken[0]} for way, taken in turns.items()
    }
    pairs = zip(*([turn["rate"] for turn in turns[way]] for way in WAYS), strict=True)
    return {
        "machine": describe(),
        "load_before": round(load, 2),
        "data": f"{options.source}, 32x32",
        "images": options.images,
        "seeds": options.seeds,
        "precision": _precision(options),
        "ways": measured,
        "outside_percent": measured["ganflow"]["outside_percent"]["mean"],
        "speed_up": fmean(ganflow / tutorial for tutorial, ganflow in pairs),
    }


def _precision(options: argparse.Namespace) -> str:
    train = _params(options, 0).train
    return pick_precision(train.precision, pick_device(train.device))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="digits", help="data.source: digits, mnist, cifar10, ...")
    parser.add_argument("--root", default="data/raw", help="data.root")
    parser.add_argument("--images", type=int, default=60_000, help="length of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one turn each way for each")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "speed", help="folder to work in")
    parser.add_argument("--turn", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _params(options: argparse.Namespace, seed: int) -> Params:
    """The DCGAN of the paper on 32x32 pictures: 64 channels, batch 128, Adam 2e-4 (0.5, 0.999)."""
    return params_module.parse(
        {
            "seed": seed,
            "data": {"source": options.source, "root": options.root, "resolution": 32},
            "model": {"family": "dcgan", "width": 64, "latent_dim": 100},
            "train": {
                "images": options.images,
                "batch_size": 128,
                "sample_every_images": _SAMPLE_EVERY,
                "checkpoint_every_images": _SAMPLE_EVERY,
            },
        }
    )


def _turn(options: argparse.Namespace, way: Way, seed: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--turn", way, "--seeds", str(seed), "--work", str(options.work.resolve())]
    command += ["--source", options.source, "--root", options.root, "--images", str(options.images)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{options.work.resolve()}/mlflow.db"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    turn: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return turn


class _Timed:
    """Calls a function, and adds up the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds, self._function = 0.0, function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        before = time.perf_counter()
        try:
            return self._function(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - before


class _Watch:
    """The span of a training after its first images."""

    def __init__(self) -> None:
        self._start, self._images = 0.0, 0

    def look(self, images: int, device: torch.device) -> bool:
        """Begin the span if it is time, and say so."""
        begins = not self._images and images >= _WARM_UP
        if begins:
            _wait_for(device)
            self._start, self._images = time.perf_counter(), images
        return begins

    def seconds_and_rate(self, images: int, device: torch.device) -> tuple[float, float]:
        _wait_for(device)
        seconds = time.perf_counter() - self._start
        return seconds, (images - self._images) / seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Pictures(Dataset[Tensor]):
    """Pictures that a tutorial's transforms turn into floats, one at a time."""

    def __init__(self, packed: PackedData) -> None:
        images = packed.images("train")
        self._pictures = images[0 : len(images)]
        channels = packed.card.channels
        normalize = transforms.Normalize([0.5] * channels, [0.5] * channels)
        self._transform = transforms.Compose([transforms.Resize(32), transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        pixels = self._pictures[index].transpose(1, 2, 0)
        transformed: Tensor = self._transform(Image.fromarray(pixels.squeeze()))
        return transformed


def _tutorial(params: Params, work: Path) -> dict[str, float]:
    """Train as the tutorials do: every loss read at every step, real and made pictures one after the other."""
    packed, device = PackedData(work / "prepared"), pick_device(params.train.device)
    torch.manual_seed(params.seed)
    game = params.model.build(packed.card.channels, 32).to(device)
    generator, discriminator = (getattr(game, side) for side in ("generator", "discriminator"))
    criterion = nn.BCEWithLogitsLoss()
    fixed_noise = torch.randn(64, params.model.latent_dim, device=device)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in (discriminator, generator)
    ]
    loader = DataLoader(_Pictures(packed), batch_size=128, shuffle=True, drop_last=True, num_workers=2)
    losses: list[tuple[float, ...]] = []
    watch, shown, images = _Watch(), 0, params.train.images
    while shown < images:
        for batch in loader:
            discriminator.zero_grad()
            real = batch.to(device)
            label = torch.full((len(real),), 1.0, device=device)
            output = discriminator(real)
            loss_real = criterion(output, label)
            loss_real.backward()
            d_real = output.sigmoid().mean().item()
            fake = generator(torch.randn(len(real), params.model.latent_dim, device=device))
            label.fill_(0.0)
            output = discriminator(fake.detach())
            loss_fake = criterion(output, label)
            loss_fake.backward()
            d_fake = output.sigmoid().mean().item()
            optimizers[0].step()
            generator.zero_grad()
            label.fill_(1.0)
            loss = criterion(discriminator(fake), label)
            loss.backward()
            optimizers[1].step()
            losses.append(((loss_real + loss_fake).item(), loss.item(), d_real, d_fake))
            shown += len(real)
            watch.look(shown, device)
            if shown % _SAMPLE_EVERY < len(real):
                with torch.no_grad():
                    save_image(generator(fixed_noise).cpu(), work / "tutorial.png", normalize=True)
            if shown >= images:
                break
    _, rate = watch.seconds_and_rate(shown, device)
    return {"rate": rate, "fid": _fid(packed, game, generator, device)}


def _ganflow(params: Params, work: Path) -> dict[str, float]:
    """Train as `ganflow train` does, and add up what forward, backward and optimisers take."""
    from ganflow.stages import train as stage  # which imports MLflow, as the tutorial does not

    packed, device = PackedData(work / "prepared"), pick_device(params.train.device)
    watch, inside = _Watch(), [_Timed(torch.autograd.backward)]
    measured: dict[str, float] = {}
    play_round, train = Match.play_round, loop.train

    def play_round_and_look(match: Match) -> None:
        play_round(match)
        if watch.look(match.images, device):
            for timed in inside:
                timed.seconds = 0.0

    def train_and_look(match: Match, *arguments: Any, **options: Any) -> None:
        inside.extend(plays := [_Timed(player.play) for player in match.players])
        match.players = tuple(replace(player, play=play) for player, play in zip(match.players, plays, strict=True))
        for optimizer in match.optimizers.values():
            inside.append(step := _Timed(optimizer.step))
            patch.object(optimizer, "step", step).start()
        train(match, *arguments, **options)
        seconds, measured["rate"] = watch.seconds_and_rate(match.images, device)
        measured["outside_percent"] = 100 * (1 - sum(timed.seconds for timed in inside) / seconds)

    out = work / f"ganflow-{params.seed}"
    with (
        patch.object(Match, "play_round", play_round_and_look),
        patch.object(loop, "train", train_and_look),
        patch.object(torch.autograd, "backward", inside[0]),
    ):
        stage.train(params, packed.folder, out, work / "states")
    game = load_game(out, "ema", device)
    return {**measured, "fid": _fid(packed, game, game.generator, device)}


def _fid(packed: PackedData, game: Game, generator: nn.Module, device: torch.device) -> float:
    """FID against the validation split, by the classifier of the data set."""
    return ValidationFid(packed, load_extractor("classifier", "", packed.folder, device)).of(game, generator.eval())


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None, "values": list(values)}


_TURNS: Mapping[Way, Callable[[Params, Path], dict[str, float]]] = {"tutorial": _tutorial, "ganflow": _ganflow}

if __name__ == "__main__":
    sys.exit(main())
