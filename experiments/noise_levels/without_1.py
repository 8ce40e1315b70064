"""The sigma_1 of NCSN v1, in training and sampling, with the ratio of levels and the step that follow from it."""

from all_five import get_config as all_five


def get_config():
    return all_five(sigma_max=1.0)
