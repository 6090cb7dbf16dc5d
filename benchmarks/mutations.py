"""Breaks formulas of the data, the evaluation and the families one by one, and shows that a test fails.

    python benchmarks/mutations.py [--only frechet ...]

Works on a copy of the code below a temporary folder. Each breakage replaces a piece of one line of source; the tests of
its file must pass before it, and fail after it. Writes benchmarks/results/mutations.json.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from machine import describe

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "mutations.json"


class Mutation(NamedTuple):
    """What is broken in a file of ganflow, of evaluation/ where no folder is named: `before` becomes `after`."""

    file: str
    what: str
    before: str
    after: str


MUTATIONS = (
    Mutation("frechet", "sign of the overlap", "- 2 * _overlap(", "+ 2 * _overlap("),
    Mutation("frechet", "overlap once, not twice", "- 2 * _overlap(", "- _overlap("),
    Mutation("frechet", "means not squared", "(mu1 - mu2).square().sum()", "(mu1 - mu2).abs().sum()"),
    Mutation("frechet", "one trace alone", "+ sigma1.trace() + sigma2.trace()", "+ 2 * sigma1.trace()"),
    Mutation("frechet", "eigenvalues without their root", "squares.clamp_min(0).sqrt().sum()", "squares.sum()"),
    Mutation("frechet", "Cholesky factor transposed", "factor[rest, rest].T @ (", "factor[rest, rest] @ ("),
    Mutation("frechet", "a singular matrix taken for a regular one", "if factor is None:", "if False:"),
    Mutation(
        "frechet",
        "roots of one side alone at low rank",
        "values1.sqrt()[:, None] * vectors2",
        "values1[:, None] * vectors2",
    ),
    Mutation("statistics", "N for N - 1", "self.scatter / (self.count - 1)", "self.scatter / self.count"),
    Mutation("statistics", "transposed covariance", "centred.T @ centred)", "centred @ centred.T)"),
    Mutation("statistics", "not centred", "centred = values - mean", "centred = values"),
    Mutation("statistics", "merge forgets what is between", "other.scatter + between", "other.scatter"),
    Mutation("statistics", "merge weighs the means alike", "(other.count / count)", "0.5"),
    Mutation("statistics", "float32", ".to(torch.float64)", ".to(torch.float32)"),
    Mutation("kernel_distance", "kernel squared, not cubed", "products.square().mul_(products)", "products.square()"),
    Mutation("kernel_distance", "gamma 1", "alpha=1 / x.shape[1]", "alpha=1"),
    Mutation(
        "kernel_distance", "no constant in the kernel", "torch.addmm(x.new_ones(()),", "torch.addmm(x.new_zeros(()),"
    ),
    Mutation("kernel_distance", "sign of the cross term", ".triu_(1).sub_(k_across)", ".triu_(1).add_(k_across)"),
    Mutation("kernel_distance", "biased: n^2 for n (n - 1)", "row_sums.sum() / (n * (n - 1))", "row_sums.sum() / n**2"),
    Mutation("kernel_distance", "pairs of the same place left out", "across / (n - 1) - paired", "across / (n - 1)"),
    Mutation("kernel_distance", "error of rows as if independent", "4 * effect_variance / n", "effect_variance / n"),
    Mutation("kernel_distance", "error without the pairs' own part", " + residual_variance / pairs)", ")"),
    Mutation("manifold", "k = 4 for precision and recall", "PRECISION_NEIGHBOURS = 3", "PRECISION_NEIGHBOURS = 4"),
    Mutation("manifold", "k = 4 for density and coverage", "DENSITY_NEIGHBOURS = 5", "DENSITY_NEIGHBOURS = 4"),
    Mutation("manifold", "a vector is its own neighbour", "fill_(inf)", "fill_(0)"),
    Mutation(
        "manifold", "precision by the wide balls", "precise |= (distances <= narrow", "precise |= (distances <= wide"
    ),
    Mutation("manifold", "recall by the real balls", "(distances <= fake_radii)", "(distances <= narrow[rows])"),
    Mutation("manifold", "sign of the product", "alpha=-2", "alpha=2"),
    Mutation("manifold", "density not over k", "(DENSITY_NEIGHBOURS * m)", "m"),
    Mutation("manifold", "coverage of the generated ones", "int(covered) / n", "int(covered) / m"),
    Mutation("manifold", "the edge is outside", "precise |= (distances <= narrow", "precise |= (distances < narrow"),
    Mutation(
        "classes", "sign of the conditional entropy", "+= float((p * log_p).sum())", "-= float((p * log_p).sum())"
    ),
    Mutation("classes", "sum of probabilities, not mean", "self._probabilities / n", "self._probabilities"),
    Mutation("classes", "divergence the other way round", "(p / q).log()", "(q / p).log()"),
    Mutation("classes", "divergence weighed by the reals", "float((p * (p / q)", "float((q * (p / q)"),
    Mutation(
        "memorisation",
        "farther, not nearer",
        "area_under_curve(held_out, generated)",
        "area_under_curve(generated, held_out)",
    ),
    Mutation("memorisation", "the farthest picture", ".argmin(dim=1)", ".argmax(dim=1)"),
    Mutation("memorisation", "the last batch wins", "nearer = distances <", "nearer = distances >"),
    Mutation("memorisation", "places count from each batch", "nearest + self._seen", "nearest"),
    Mutation("discriminator", "fakes told right above 0", "(fake <= threshold).sum()", "(fake > threshold).sum()"),
    Mutation("discriminator", "ties count for nothing", "(below + not_above).sum()) / (2 *", "below.sum()) / ("),
    Mutation("discriminator", "calibration with its sign", "gaps.abs().sum()", "gaps.sum()"),
    Mutation("discriminator", "advantage from 1/2", "advantage=2 * auc - 1", "advantage=auc - 0.5"),
    Mutation(
        "discriminator", "converged by the upper end", "advantage_interval.low <= 0", "advantage_interval.high <= 0"
    ),
    Mutation("discriminator", "Wilson's centre not moved", "share + _Z**2 / (2 * trials)", "share"),
    Mutation("inception", "pictures in 0 to 1", "x.sub_(128).div_(128)", "x.div_(255)"),
    Mutation(
        "inception",
        "centres of pixels",
        "position = torch.arange(side, dtype=torch.float32, device=images.device) *",
        "position = (torch.arange(side, dtype=torch.float32, device=images.device) + 0.5) *",
    ),
    Mutation("scores", "floor and ceiling changed round", "ends = (good, bad)", "ends = (bad, good)"),
    Mutation(
        "scores", "compared with the training pictures", '(REALS, self.n), ("train"', '("train", self.n), ("train"'
    ),
    Mutation("discriminator", "threshold with the worst accuracy", "told_fake).argmax()", "told_fake).argmin()"),
    Mutation(
        "opponents", "threshold fitted on what is judged", 'sides("train", _THRESHOLD_SEED)', "sides(split, _SEED)"
    ),
    Mutation("agreement", "seen in place of asked", "(seen == asked.to", "(seen == seen.to"),
    Mutation("models/losses", "hinge without its margin", "relu(1 - real)", "relu(-real)"),
    Mutation("models/losses", "least squares without the half", "(fake + 1).square().mean()) / 2", "fake.mean())"),
    Mutation("models/losses", "relativistic sides changed", "softplus(fake - real)", "softplus(real - fake)"),
    Mutation("models/losses", "critic's sign", "fake.mean() - real.mean()", "real.mean() - fake.mean()"),
    Mutation(
        "models/penalties", "squares averaged over a picture", "square().sum(dim=(1, 2, 3)).mean()", "square().mean()"
    ),
    Mutation("models/penalties", "one place for all pictures", "torch.rand(len(real), 1,", "torch.rand(1, 1,"),
    Mutation("models/penalties", "norm drawn towards 0", "(norms - 1).square()", "norms.square()"),
    Mutation("models/penalties", "no second gradient", "images, create_graph=True)", "images, create_graph=False)"),
    Mutation("models/penalties", "noise of variance 1", "** 0.5\n", "** 0.0\n"),
    Mutation("models/classic", "R1 without its half", "gamma / 2 * squared", "gamma * squared"),
    Mutation(
        "models/classic",
        "R1 at generated pictures",
        "((self._r1, real), (self._r2, fake))",
        "((self._r1, fake), (self._r2, real))",
    ),
    Mutation("models/wgan", "clipped on one side", "torch._foreach_clamp_min_(weights, -self._clip)", "pass"),
    Mutation("models/wgan_gp", "penalty without its weight", "self._weight * gradient", "gradient"),
    Mutation("models/cgan", "labels of chance, not of the batch", "copy_(batch.labels)", "copy_(batch.labels * 0)"),
    Mutation("models/vae", "deviation for the variance", "params.pixel_deviation**2", "params.pixel_deviation"),
    Mutation("models/vae", "divergence doubled", ".sum(dim=1) / 2", ".sum(dim=1)"),
    Mutation("models/r3gan", "no R2", "+ squared_gradient_norm(fake.scores, fake.images)", "* 1.0"),
    Mutation("models/r3gan", "burn-in the other way", "last + (first - last)", "first + (last - first)"),
    Mutation(
        "models/stylegan",
        "R1 not weighted by its interval",
        "self._params.r1_every * self._params.r1 /",
        "self._params.r1 /",
    ),
    Mutation(
        "models/stylegan", "weights not brought to unit norm", "features * norms.rsqrt()", "features * norms.sqrt()"
    ),
    Mutation(
        "models/stylegan",
        "truncation away from the average",
        "lerp(self.average_style, style,",
        "lerp(style, self.average_style,",
    ),
    Mutation("models/stylegan", "mixed before the crossover", ">= crossover[:, None]", "< crossover[:, None]"),
    Mutation(
        "models/penalties",
        "no derivative where the critic is flat",
        "torch.linalg.vector_norm(_gradients(critic(between), between), dim=(1, 2, 3))",
        "_gradients(critic(between), between).square().sum(dim=(1, 2, 3)).sqrt()",
    ),
    Mutation(
        "models/classic",
        "penalties that move nothing",
        "squared_gradient_norm(of.scores, of.images)",
        "squared_gradient_norm(of.scores, of.images).detach()",
    ),
    Mutation(
        "models/wgan_gp",
        "batch norm in the critic",
        "discriminator(channels, widths, base)",
        "discriminator(channels, widths, base, batch_norm=True)",
    ),
    Mutation(
        "models/wgan_gp",
        "a penalty that moves nothing",
        "gradient_penalty(self.discriminator, real.images, fake.images)",
        "gradient_penalty(self.discriminator, real.images, fake.images).detach()",
    ),
    Mutation("models/vanilla", "ReLU in the discriminator", "nn.LeakyReLU(0.2), nn.Dropout", "nn.ReLU(), nn.Dropout"),
    Mutation("models/r3gan", "not initialised as Fixup does", " * blocks**-0.25", ""),
    Mutation("models/r3gan", "gain of another slope", "(1 + 0.2**2)", "(1 + 0.5**2)"),
    Mutation("models/r3gan", "weights drawn by their outputs", "layer.weight[0].numel()", "layer.weight[:, 0].numel()"),
    Mutation(
        "models/r3gan",
        "a base that adds up",
        "torch.randn(widths[-1], base, base) / base",
        "torch.randn(widths[-1], base, base)",
    ),
    Mutation(
        "models/r3gan",
        "pictures cut in training",
        "pictures if self.training else pictures.clamp(-1, 1)",
        "pictures.clamp(-1, 1)",
    ),
    Mutation("models/r3gan", "penalties that move nothing", "gamma / 2 * norms", "gamma / 2 * norms.detach()"),
    Mutation(
        "models/stylegan",
        "R1 that moves nothing",
        "squared_gradient_norm(real.scores, real.images)",
        "squared_gradient_norm(real.scores, real.images).detach()",
    ),
    Mutation(
        "models/stylegan",
        "path lengths that move nothing",
        "(lengths - self.path_mean)",
        "(lengths.detach() - self.path_mean)",
    ),
    Mutation("models/stylegan", "a mapping as quick as the rest", "_MAPPING_RATE = 0.01", "_MAPPING_RATE = 1.0"),
    Mutation("models/stylegan", "linear weights not scaled", "rate, rate / math.sqrt(before)", "rate, rate"),
    Mutation("models/stylegan", "biases not slowed down", "self.bias * self.rate", "self.bias"),
    Mutation(
        "models/stylegan",
        "weights not drawn by their rate",
        "torch.randn(after, before) / rate",
        "torch.randn(after, before)",
    ),
    Mutation(
        "models/stylegan", "convolutions not scaled", "1 / math.sqrt(before * side * side), side // 2", "1.0, side // 2"
    ),
    Mutation(
        "models/stylegan",
        "latents brought to length 1",
        ".square().mean(dim=1, keepdim=True)",
        ".square().sum(dim=1, keepdim=True)",
    ),
    Mutation(
        "models/stylegan",
        "scales that begin at 0",
        "_Linear(style_dim, before, bias=1.0)",
        "_Linear(style_dim, before)",
    ),
    Mutation(
        "models/stylegan",
        "a latent mixed with itself",
        "return self.draw_inputs(n), self.draw_inputs(n),",
        "return (same := self.draw_inputs(n)), same,",
    ),
    Mutation(
        "models/stylegan", "one crossover for all", "torch.randint(1, layers, (n,),", "torch.randint(1, layers, (1,),"
    ),
    Mutation(
        "models/stylegan",
        "path lengths of single styles",
        "self.generator.styles(*self._draw_mixed(n))",
        "self.generator.styles(self.draw_inputs(n))",
    ),
    Mutation(
        "models/stylegan", "noise of a channel", "torch.randn_like(features[:, :1])", "torch.randn_like(features)"
    ),
    Mutation(
        "models/stylegan",
        "noise shared by the batch",
        "torch.randn_like(features[:, :1])",
        "torch.randn_like(features[:1, :1])",
    ),
    Mutation("models/stylegan", "the last style unused", "styles[:, layer + 1]", "styles[:, layer]"),
    Mutation(
        "models/stylegan",
        "residual blocks that add up",
        "avg_pool2d(features, 2))) / math.sqrt(2)",
        "avg_pool2d(features, 2)))",
    ),
    Mutation(
        "models/stylegan",
        "pictures cut in training",
        "pictures if self.training else pictures.clamp(-1, 1)",
        "pictures.clamp(-1, 1)",
    ),
    Mutation("models/stylegan", "nearest pixels", 'mode="bilinear", align_corners=False', 'mode="nearest"'),
    Mutation("discriminator", "a threshold rounded to a score", "real.double(), fake.double()", "real, fake"),
    Mutation("data/splitting", "splits in the order of their keys", "_mixed(keys[members])", "keys[members]"),
)


def main() -> int:
    """Run the tests on every mutant; the exit status is 1 if one survives."""
    parser = argparse.ArgumentParser(description="Break each formula and run its tests.")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="files, as this one names them")
    only = parser.parse_args().only
    for mutation in MUTATIONS:
        if mutation.before not in _path(REPOSITORY, mutation.file).read_text(encoding="utf-8"):
            raise SystemExit(f"{mutation.file}: {mutation.before!r} is not there any more; correct this file")
    chosen = [mutation for mutation in MUTATIONS if not only or mutation.file in only]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests", "pyproject.toml"):
            source = REPOSITORY / part
            shutil.copytree(source, copy / part) if source.is_dir() else shutil.copy(source, copy / part)
        for file in dict.fromkeys(mutation.file for mutation in chosen):
            if (failed := _failing_test(copy, file)) is not None:
                raise SystemExit(f"{file}: {failed} fails before anything is broken")
        results = [_outcome(copy, mutation) for mutation in chosen]
    survived = [result for result in results if result["failed"] is None]
    print(f"{len(results) - len(survived)} of {len(results)} breakages are noticed by a test")
    if not only:
        RESULTS.write_text(json.dumps({"machine": describe(), "mutations": results}, indent=2) + "\n", encoding="utf-8")
    return 1 if survived else 0


def _outcome(copy: Path, mutation: Mutation) -> dict[str, str | None]:
    path = _path(copy, mutation.file)
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutation.before, mutation.after, 1), encoding="utf-8")
    try:
        failed = _failing_test(copy, mutation.file)
    finally:
        path.write_text(source, encoding="utf-8")
    print(f"{mutation.file:18} {mutation.what:45} {failed or 'SURVIVED'}", flush=True)
    return {"file": f"{mutation.file}.py", "broken": mutation.what, "failed": failed}


def _path(root: Path, file: str) -> Path:
    return root / "src" / "ganflow" / _folder(file) / f"{_name(file)}.py"


def _folder(file: str) -> str:
    return file.rpartition("/")[0] or "evaluation"


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def _failing_test(copy: Path, file: str) -> str | None:
    """Run the tests of a file and name the first that fails."""
    tests = f"tests/{_folder(file)}/test_{_name(file)}.py"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{file}: pytest did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
