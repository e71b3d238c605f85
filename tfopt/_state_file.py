"""The former path of `tfopt._checkpoints.state_file`, for scripts that import it."""

import sys

from tfopt._checkpoints import state_file

sys.modules[__name__] = state_file
