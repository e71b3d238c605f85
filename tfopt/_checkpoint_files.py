"""The former path of `tfopt._checkpoints.generations`, for scripts that import it."""

import sys

from tfopt._checkpoints import generations

sys.modules[__name__] = generations
