"""Say whether the pods of a run can write to the volumes given as arguments, sign in to MLflow, and see --gpus GPUs."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from ganflow.errors import UserError
from ganflow.tracking.store import connect, tracking_uri
from ganflow.urls import public


def main(arguments: list[str]) -> int:
    """Print a line for each thing; the status is 1 where one is amiss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("volumes", nargs="*")
    options = parser.parse_args(arguments)
    problems = 0
    for volume in options.volumes:
        try:
            with tempfile.NamedTemporaryFile(dir=volume):
                print(f"{volume}: can be written by user {os.getuid()}")
        except OSError as error:
            problems += 1
            owner = Path(volume).stat()
            print(
                f"{volume}: cannot be written by user {os.getuid()} ({error.strerror}); it belongs to {owner.st_uid}:"
                f"{owner.st_gid}: on its node, chown -R {os.getuid()}:{os.getgid()} the folder behind it"
            )
    try:
        connect()
        print(f"{public(tracking_uri())}: answers to {os.environ.get('MLFLOW_TRACKING_USERNAME', 'nobody')}")
    except UserError as error:
        problems += 1
        print(error)
    gpus: int = torch.cuda.device_count()
    print(
        f"torch {torch.__version__}: {gpus} GPUs" + (f"; there should be {options.gpus}" if gpus < options.gpus else "")
    )
    problems += int(gpus < options.gpus)
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
