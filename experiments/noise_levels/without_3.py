"""Like `conditioned`, but without the division by sigma: as in NCSN v1 the network gives the score itself."""

from conditioned import get_config as conditioned


def get_config():
    config = conditioned()
    config.target = "score"
    return config
