"""The network's output is divided by sigma, and it is told log sigma besides."""

from all_five import get_config as all_five


def get_config():
    config = all_five()
    config.net.condition = "sigma"
    return config
