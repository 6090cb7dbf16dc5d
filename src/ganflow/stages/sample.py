"""New pictures from trained weights or from a registered model."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganflow.data.grid import save_grid
from ganflow.data.quantise import to_uint8
