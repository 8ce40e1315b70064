"""Like `conditioned`, but without the division by sigma: the output of the network is the score, as in NCSN v1."""

from conditioned import get_config as conditioned


def get_config():
    config = conditioned()
    config.target = "score"
    return config
