"""Like `all_five`, but without an average of the parameters."""

from all_five import get_config as all_five


def get_config():
    config = all_five()
    config.train.ema.name = "none"
    return config
