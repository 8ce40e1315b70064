"""DDPM++ under the sub-VP SDE on CIFAR-10, as Song et al. 2021 (FID 2.61, 3.02 bits/dim).

    scoregen train ddpmpp_subvp_cifar --data=DIR
    scoregen train ddpmpp_subvp_cifar --data=DIR --config.net.ncsnpp.blocks=8 \
        --steps=950000

Everything except the SDE is as in `ddpmpp_vp_cifar`, also the options to turn things off and the 61,804,419 parameters.
The second command trains the "deep" network with 106,632,579 parameters (FID 2.41, 2.99 bits/dim), for 950,000 steps as
in the paper's code.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpmpp_vp_cifar")
    config.process.name = config.sampler.process.name = "subvp"
    config.process.subvp.t_min = 1e-5
    return config
