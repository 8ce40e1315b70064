"""EDM on a table or an array of points of yours: CSV, TSV, Parquet or .npy, of any number of columns.

    scoregen train points --data=wine.csv
    scoregen train points --data=wine.csv --config.data.context=alcohol
    scoregen sample runs/points --n=1000

Each column is standardised, and the samples are a table with the same columns. With a context, the network learns the
other columns given the columns that are named. Preconditioning, noise levels and weights are from Karras et al. 2022;
the size of the network depends on the number of columns.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "table"
    config.scaling.name = "auto"
    config.process.name = "edm"
    config.process.edm.data_std = 1.0
    config.target = "edm"
    config.loss.name = "x0"
    config.weighting.name = "edm"
    config.net.name = "auto"
    config.net.condition = "sigma"
    config.net.unit_input = True
    config.train.steps = 8000
    config.train.batch = 512
    config.train.learning_rate = 1e-3
    config.train.checkpoint_every = 2000
    config.sampler.step.name = "edm"
    config.sampler.n = 40
    config.sampler.batch = 1000
    config.sampler.images = 1000
    return config
