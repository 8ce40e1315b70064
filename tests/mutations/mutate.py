"""Break a formula, and see a test fail: one line of the source at a time, in a copy.

    python tests/mutations/mutate.py                   all, in about half an hour on two cores
    python tests/mutations/mutate.py bound posterior   those whose place or meaning has one of these words
    python tests/mutations/mutate.py --out=table.md    and write the table down

A mutation that no test notices is a hole in the tests; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


# Most programs are the same whatever was broken: what one copy compiled, the others need not.
KEPT = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled")}


class Mutation(NamedTuple):
    """In `file` of scoregen, the one place that reads `old` is made to read `new`."""

    file: str
    old: str
    new: str
    meaning: str


MUTATIONS = [
    Mutation(file, old, new, meaning)
    for file, changes in {
        "process/kernel.py": [
            (
                "* x0 + rows(process.sigma(t), x0) * eps",
                "* x0 - rows(process.sigma(t), x0) * eps",
                "the sign of the noise",
            ),
            (
                "w = -jnp.expm1(lam_t - lam_s)",
                "w = -jnp.expm1(0.5 * (lam_t - lam_s))",
                "sigma ratio for its square in the posterior",
            ),
            (
                "(process.sigma(s) / process.sigma(t)) ** 2",
                "(process.sigma(s) / process.sigma(t))",
                "sigma for sigma^2 in the posterior's mean",
            ),
            (
                "return mean, process.sigma(s) * jnp.sqrt(w)",
                "return mean, process.sigma(t) * jnp.sqrt(w)",
                "beta for beta-tilde",
            ),
            (
                "rows(process.alpha(s) * w, x) * x0",
                "rows(process.alpha(t) * w, x) * x0",
                "an index in the posterior's mean",
            ),
            ("return slope / alpha,", "return slope,", "alpha' for alpha'/alpha in the drift"),
            (
                "process.sigma(t) * jnp.sqrt(-lam_slope)",
                "process.sigma(t) * jnp.sqrt(-2 * lam_slope)",
                "a factor 2 in the diffusion",
            ),
            (
                "jnp.hypot(self.sigma(top), self.alpha(top) * self.data_std)",
                "self.sigma(top)",
                "the data's share of the prior",
            ),
        ],
        "process/chain.py": [
            ("np.cumsum(np.log1p(-steps))", "np.cumsum(np.log1p(-np.roll(steps, 1)))", "abar shifted by one"),
            ("np.log(-np.expm1(log_abar))", "2 * np.log(-np.expm1(log_abar))", "sigma^2 for sigma in the chain"),
            (
                "self.logsnr(t - 1) - self.logsnr(t)",
                "self.logsnr(t) - self.logsnr(t + 1)",
                "the step after for the step before",
            ),
            ("/ steps + 0.008) / 1.008", "/ steps + 0.008) / 1.0", "the cosine's offset"),
            (
                "jnp.full(jnp.shape(t), 1 / self.levels,",
                "jnp.full(jnp.shape(t), 1 / (self.levels - 1),",
                "N for N - 1 in the law of t",
            ),
            ("np.linspace(self.levels - 1, 0, n)", "np.linspace(self.levels - 2, 0, n)", "the noisiest level left out"),
            ("(u * self.levels).astype", "(u * (self.levels - 1)).astype", "the noisiest level never trained on"),
            ("2 * log_sigmas, start=start", "log_sigmas, start=start", "sigma for sigma^2 in NCSN"),
        ],
        "process/continuous.py": [
            ("self.beta_min + 0.5 * t *", "self.beta_min + t *", "a factor 2 in the integral of beta"),
            ("return jnp.exp(-0.5 * self._integral(t))", "return jnp.exp(-self._integral(t))", "alpha^2 for alpha"),
            (
                "return jnp.sqrt(-jnp.expm1(-self._integral(t)))",
                "return -jnp.expm1(-self._integral(t))",
                "sub-VP's sigma for VP's",
            ),
            ("return -b - 2 * jnp.log(", "return -b - jnp.log(", "a factor 2 in sub-VP's log-SNR"),
            (
                "* (1 + self.offset) / (math.pi / 2) - self.offset",
                "* (1 + self.offset) / (math.pi / 2)",
                "the offset in the cosine's inverse",
            ),
            (
                "return -2 * (math.log(self.sigma_min) + t",
                "return -(math.log(self.sigma_min) + t",
                "sigma for sigma^2 in VE",
            ),
            (
                "return bell / (self.std * t * (high - low))",
                "return bell / (self.std * (high - low))",
                "the Jacobian of the log-normal law",
            ),
            (
                "jnp.exp(self.mean + self.std * ndtri(",
                "jnp.exp(self.mean - self.std * ndtri(",
                "the quantiles upside down",
            ),
            (
                "return 2 * (jnp.log1p(-t) - jnp.log(t))",
                "return jnp.log1p(-t) - jnp.log(t)",
                "a factor 2 in the flow's log-SNR",
            ),
            ("return -jax.jvp(self.logsnr,", "return jax.jvp(self.logsnr,", "the sign of the rate"),
            (
                "root = jnp.sqrt(self.beta_min**2 + 2 *",
                "root = jnp.sqrt(self.beta_min**2 + 4 *",
                "a factor 2 in VP's inverse",
            ),
        ],
        "denoiser.py": [
            ("output - rows(a / det, x) * x", "output + rows(a / det, x) * x", "a sign in eps"),
            (
                "rows(b / det, x) * x - rows(sigma / det, x) * output",
                "rows(b / det, x) * x - rows(alpha / det, x) * output",
                "alpha for sigma in x0",
            ),
            (
                "return Prediction(x0, eps, -eps / rows(sigma, x), between)",
                "return Prediction(x0, eps, -eps / rows(sigma**2, x), between)",
                "sigma^2 for sigma in the score",
            ),
            (
                "return -process.sigma(t), process.alpha(t)",
                "return process.sigma(t), process.alpha(t)",
                "the sign of v",
            ),
            ("b = -1.0 / process.sigma(t)", "b = 1.0 / process.sigma(t)", "the sign of the score"),
            (
                "return sigma / (std * root), -alpha * std / root",
                "return sigma / (std * root), -alpha / root",
                "EDM's c_skip without sigma_data",
            ),
            (
                "return 1 / jnp.hypot(process.sigma(t),",
                "return 1 / (process.sigma(t) +",
                "standard deviations added in c_in",
            ),
            (
                "ours / jnp.where(alpha > 0, alpha, 1)",
                "jnp.where(alpha > 0, alpha, 1) / ours",
                "the bridge's scale inverted",
            ),
            (
                "-at.eps / rows(target.sigma(t), x)",
                "-at.eps / rows(source.sigma(u), x)",
                "the bridge's score under the wrong process",
            ),
            ("between = 0.5 * (v + 1)", "between = 0.5 * v + 1", "where a learned variance lies"),
        ],
        "losses/matching.py": [
            (
                "noised.eps - predict(noised.x, noised.t).eps",
                "noised.eps + predict(noised.x, noised.t).eps",
                "the sign of eps",
            ),
            ("return 0.5 * sum_dims((sigma * predict", "return sum_dims((sigma * predict", "the half of DSM"),
            (".score + noised.eps) ** 2)", ".score - noised.eps) ** 2)", "the sign of DSM's target"),
            (
                "sigma = rows(process.sigma(noised.t), noised.x)\n        return 0.5",
                "sigma = rows(process.sigma(noised.t) ** 2, noised.x)\n        return 0.5",
                "sigma^2 for sigma in DSM",
            ),
            (
                "+ b * (noised.eps - found.eps)) ** 2)",
                "- b * (noised.eps - found.eps)) ** 2)",
                "a sign in flow matching",
            ),
            (
                "(process.alpha(t) * b / process.sigma(t) - a) ** 2",
                "(process.alpha(t) * b / process.sigma(t) + a) ** 2",
                "a sign in flow matching's weight",
            ),
            (
                "process.sigma(noised.t) ** 2 * (trace + 0.5 * sum_dims(s**2))",
                "process.sigma(noised.t) ** 2 * (trace + sum_dims(s**2))",
                "the half of Hyvarinen's norm",
            ),
            (
                "process.sigma(noised.t) ** 2 * (trace + 0.5",
                "process.sigma(noised.t) * (trace + 0.5",
                "sigma for sigma^2 in Hyvarinen's loss",
            ),
            (
                "jnp.mean(trace + 0.5 * norm, axis=1)",
                "jnp.mean(0.5 * norm - trace, axis=1)",
                "the sign of the sliced trace",
            ),
            (
                "jnp.sum(vs * s[:, None], axes) ** 2",
                "jnp.sum((vs * s[:, None]) ** 2, axes)",
                "the square inside the sum over dimensions",
            ),
            (
                "sum_dims(v * (up - down)) / (2 * h)",
                "sum_dims(v * (up - down)) / h",
                "a factor 2 in the finite difference",
            ),
            (
                "0.125 * sum_dims((up + down) ** 2)",
                "0.5 * sum_dims((up + down) ** 2)",
                "a factor 4 in the finite difference's norm",
            ),
            (
                "v / jnp.sqrt(jnp.mean(v**2, axes, keepdims=True))",
                "v / jnp.sqrt(jnp.sum(v**2, axes, keepdims=True))",
                "a unit sphere for that of radius sqrt(D)",
            ),
            ("return 0.5 * snr(process, t)", "return snr(process, t)", "the half in DSM's weight"),
            (
                "process.rate(t), 0) * ratio",
                "process.rate(t), 0) * jnp.sqrt(ratio)",
                "alpha/sigma for its square in the bound",
            ),
            (
                "return 0.5 * snr_lost(process, t) / process.density(t)",
                "return 0.5 * snr_lost(process, t)",
                "the law of the times counted in the bound's weight",
            ),
        ],
        "losses/bound.py": [
            (
                "error = rows(snr_lost(process, t), x0)",
                "error = rows(process.rate(t), x0)",
                "log-SNR for SNR in L_{t-1}",
            ),
            ("spread - 1 - jnp.log(spread)", "spread - 1 + jnp.log(spread)", "a sign in L_T"),
            ("d + jnp.expm1(-d) + jnp.exp(-d) * error", "d + jnp.expm1(-d) + error", "the model's variance in L_{t-1}"),
            ("d + jnp.expm1(-d) +", "d + jnp.expm1(d) +", "a sign in L_{t-1}"),
            ("return 0.5 * sum_dims(error)", "return sum_dims(error)", "the half of L_{t-1}"),
            (
                "process.sigma(jnp.maximum(t - 1, 0))",
                "process.sigma(jnp.maximum(t - 2, 0))",
                "an index in the learned variance",
            ),
            (
                "below, above = (x0 - 0.5 * width - mean) / std",
                "below, above = (x0 - width - mean) / std",
                "the width of a bin in L_0",
            ),
            ("+ (1 - between) * log_w", "+ between * log_w", "beta for beta-tilde in L_0"),
            (
                "jnp.where(t == 0, last, part) / process.density(t)",
                "jnp.where(t == 0, last, part)",
                "the number of levels in the bound",
            ),
            (
                "total = jnp.where(t == 0, last, part)",
                "total = jnp.where(t == 1, last, part)",
                "L_0 at the wrong index",
            ),
            ("total / (x0[0].size * math.log(2))", "total / x0[0].size", "nats for bits"),
            (
                "total - x0[0].size * math.log(self.width)",
                "total + x0[0].size * math.log(self.width)",
                "the sign of a byte's width",
            ),
            (
                "jax.lax.stop_gradient(found)._replace(between=found.between)",
                "found",
                "the mean of the hybrid loss not held",
            ),
            (
                "total = total + prior_kl(process, x0)",
                "total = total - prior_kl(process, x0)",
                "the sign of L_T in the bound",
            ),
        ],
        "losses/weightings.py": [
            (
                "self.by(process, noised.t) / self.loss.weight(",
                "self.by(process, noised.t) * self.loss.weight(",
                "a loss's own weight multiplied instead of replaced",
            ),
            (
                "return bound_weight(process, t)",
                "return 2 * bound_weight(process, t)",
                "a factor 2 in the likelihood weight",
            ),
            (
                "jnp.minimum(snr(process, t), self.gamma)",
                "jnp.maximum(snr(process, t), self.gamma)",
                "max for min in min-SNR",
            ),
            (
                "return ratio / (self.k + ratio) ** self.gamma",
                "return 1 / (self.k + ratio) ** self.gamma",
                "P2 on x0 instead of eps",
            ),
            ("+ 1 / process.data_std**2", "+ 1 / process.data_std", "sigma_data for its square in EDM's weight"),
            ("jax.nn.sigmoid(self.bias - lam)", "jax.nn.sigmoid(lam - self.bias)", "the sigmoid's sign"),
        ],
        "times.py": [
            (
                "total[-1] / (histogram.size * histogram[index])",
                "histogram.size * histogram[index] / total[-1]",
                "the importance weight inverted",
            ),
            (
                "q = jnp.sqrt(jnp.mean(losses**2, 1))",
                "q = jnp.mean(losses**2, 1)",
                "the second moment without its root",
            ),
            ("-2 * (self.mean + self.std", "2 * (self.mean + self.std", "noise for signal in the log-normal law"),
            ("jnp.log1p(process.rate(", "jnp.expm1(process.rate(", "SNR for log-SNR in the law of the bound"),
        ],
        "samplers/predictors.py": [
            (
                "kept = (1 - self.eta**2) + self.eta**2 * jnp.exp(lam)",
                "kept = (1 - self.eta**2) + self.eta * jnp.exp(lam)",
                "eta for eta^2 in DDIM",
            ),
            ("w = -jnp.expm1(lam)\n", "w = -jnp.expm1(0.5 * lam)\n", "sigma ratio for its square in DDIM's noise"),
            (
                "sigma = ends[0] * (ends[1] / ends[0]) ** found.between",
                "sigma = ends[0] * (ends[0] / ends[1]) ** found.between",
                "the learned variance's ends exchanged",
            ),
            (
                'sigma = ends[self.variance == "large"]',
                'sigma = ends[self.variance == "small"]',
                "beta for beta-tilde in the ancestral step",
            ),
            ("more = jnp.exp(0.5 * (", "more = jnp.exp((", "a square in consistent sampling"),
            ("fresh = jnp.sqrt(1 - kept**2)", "fresh = 1 - kept", "the variance in consistent sampling"),
            (
                "a = process.alpha(t) / process.alpha(s)\n",
                "a = (process.alpha(t) / process.alpha(s)) ** 2\n",
                "1 - beta for its root in reverse diffusion",
            ),
            ("rows((1 if self.noise else 0.5) * variance, x)", "rows(variance, x)", "the half of the ODE's drift"),
            (
                "x = rows(2 - a, x) * x + drift",
                "x = rows(1 / a, x) * x + drift",
                "ancestral sampling for reverse diffusion",
            ),
            ("x = rows(1 - f * h, x) * x", "x = rows(1 + f * h, x) * x", "the sign of the drift in Euler-Maruyama"),
            (
                "rows(g**2 * h, x) * predict(x, t).score",
                "rows(0.5 * g**2 * h, x) * predict(x, t).score",
                "the ODE's drift in Euler-Maruyama",
            ),
            ("rows(g * jnp.sqrt(h), x) * normal", "rows(g * h, x) * normal", "h for sqrt(h) in Euler-Maruyama"),
            (
                "return x + rows(s - t, x) * velocity(process, predict, x, t)",
                "return x + rows(s - t, x) * velocity(process, predict, x, s)",
                "Euler's velocity at the wrong time",
            ),
            (
                "velocity(process, predict, x + h * first, s))",
                "velocity(process, predict, x + h * first, t))",
                "Heun's second velocity at the wrong time",
            ),
            ("return x + 0.5 * h * (first +", "return x + h * (first +", "the mean of Heun's two velocities"),
            (
                "min(self.churn / grid.shape[0], math.sqrt(2) - 1)",
                "min(self.churn / (grid.shape[0] - 1), math.sqrt(2) - 1)",
                "steps for levels in EDM's churn",
            ),
            ("0.5 * (target - q), 0)", "(target - q), 0)", "the half in EDM's correction"),
            (
                "turn = predict(end, s).eps - first.eps",
                "turn = predict(end, t).eps - first.eps",
                "EDM's second evaluation at the wrong time",
            ),
            ("- 2 * jnp.log1p(gamma))", "- jnp.log1p(gamma))", "the noise that churn adds"),
            ("z = self.noise * normal", "z = normal", "S_noise"),
        ],
        "samplers/multistep.py": [
            (
                "factor = jnp.where(known, 0.5 * (process.logsnr(s) - lam) / span, 0)",
                "factor = jnp.where(known, (process.logsnr(s) - lam) / span, 0)",
                "the end of the step for its middle in DPM-Solver",
            ),
            (
                "x0 = found.x0 + rows(factor, x) * (found.x0 - before.x0)",
                "x0 = found.x0 - rows(factor, x) * (found.x0 - before.x0)",
                "the sign of DPM-Solver's slope",
            ),
            ("Before(found.x0, lam)", "Before(carried.x0, lam)", "what DPM-Solver remembers"),
            ("(-h) ** j / float", "h**j / float", "a sign in UniPC's phi"),
            ("phi = phi / -h - 1 / math", "phi = phi / -h + 1 / math", "a sign in UniPC's phi, for long steps"),
            ("right.append(math.factorial(i) * jnp", "right.append(jnp", "the factorial in UniPC's system"),
            (
                "x = jnp.where(past.count > 0, self._step(process, past, t, x0), x)",
                "x = x",
                "UniPC without its corrector",
            ),
            (
                "jnp.where(k < past.count, 0.5 * (lam[k] - lam[0])",
                "jnp.where(k < past.count, (lam[k] - lam[0])",
                "the log-SNR for its half in UniPC's places",
            ),
            (
                "h = 0.5 * (process.logsnr(s) - process.logsnr(past.t))",
                "h = process.logsnr(s) - process.logsnr(past.t)",
                "the log-SNR for its half in UniPC's step",
            ),
        ],
        "samplers/correctors.py": [
            (
                "return x + h * score + jnp.sqrt(2 * h) * z",
                "return x + h * score + jnp.sqrt(h) * z",
                "the 2 in Langevin's noise",
            ),
            (
                "return x + h * score + jnp.sqrt(2 * h) * z",
                "return x + 0.5 * h * score + jnp.sqrt(2 * h) * z",
                "a half in Langevin's drift",
            ),
            (
                "return step_size * (process.sigma(t) / process.sigma(process.grid()[-1])) ** 2",
                "return step_size * (process.sigma(t) / process.sigma(process.grid()[-1]))",
                "sigma for sigma^2 in Langevin's step",
            ),
            (
                "jnp.minimum(1, 2 * (self.snr * noise) ** 2",
                "jnp.minimum(1, (self.snr * noise) ** 2",
                "the 2 of the signal-to-noise step",
            ),
            (
                "jnp.mean(a, keepdims=True) if self.batch_mean",
                "jnp.max(a, keepdims=True) if self.batch_mean",
                "the batch's mean norm",
            ),
            (
                "new_density - density + log_q(x, y, new_score) - log_q(y, x, score)",
                "new_density - density + log_q(y, x, score) - log_q(x, y, new_score)",
                "MALA's proposals exchanged",
            ),
            (
                "new_density - density + log_q(x, y, new_score) - log_q(y, x, score)",
                "new_density - density",
                "MALA as if its proposal were symmetric",
            ),
            ("/ (4 * h)", "/ (2 * h)", "the variance of MALA's proposal"),
        ],
        "samplers/grids.py": [
            ("-0.5 / self.rho * _logsnr", "-1 / self.rho * _logsnr", "the variance for sigma in Karras's grid"),
            (
                "jax.lax.cummin(jnp.round(times).astype(jnp.int32) + order) - order",
                "jnp.round(times).astype(jnp.int32)",
                "levels taken twice",
            ),
            (
                "ends.astype(fraction.dtype) ** (1 / self.power)",
                "ends.astype(fraction.dtype) ** self.power",
                "the power's inverse in the grid",
            ),
        ],
        "samplers/sample.py": [
            (
                "s = jnp.full(shape[:1], levels[jnp.minimum(k + 1, last)])",
                "s = jnp.full(shape[:1], levels[jnp.minimum(k + 2, last)])",
                "an index in the walk",
            ),
            (
                "k < last,\n            lambda x, memory: move",
                "k <= last,\n            lambda x, memory: move",
                "the last step",
            ),
            ("split_keys(fold_keys(walk, k), 2)", "split_keys(fold_keys(walk, 0), 2)", "the same noise at every level"),
        ],
        "samplers/adaptive.py": [
            (
                "diffrax.PIDController(rtol, atol)",
                "diffrax.PIDController(1e-2, 1e-2)",
                "the tolerance of the ODE's solver",
            ),
            ("rows(cos, y) * found.eps - rows", "rows(cos, y) * found.eps + rows", "the sign of x0 in the ODE"),
            ("predict(rows(size, y) * y, t)", "predict(y, t)", "the network shown normalised x"),
            ("2 * (jnp.log(cos) - jnp.log(sin))", "jnp.log(cos) - jnp.log(sin)", "SNR's root in the ODE's time"),
            ("return rows(other, x) * y", "return rows(size, x) * y", "the size at the end of the ODE"),
        ],
        "likelihood.py": [
            ("return -nats / (dims * math.log(2))", "return -nats / dims", "nats for bits"),
            ("-0.5 * jnp.sum(z**2, 1) - z.shape[1]", "-0.5 * jnp.sum(z**2, 1) + z.shape[1]", "the prior's constant"),
            ("* (draw(jax.random.uniform, spread", "* 0 * (draw(jax.random.uniform, spread", "bytes not spread out"),
            (
                "self.at_the_end(process, predict, directions, alpha * x0, top)",
                "self.at_the_end(process, predict, directions, x0, top)",
                "the datum not where its mean is",
            ),
            ("* (jnp.log(alpha) + math.log", "* (-jnp.log(alpha) + math.log", "the sign of D log alpha"),
            ("+ math.log(self.width)))", "- math.log(self.width)))", "the sign of a byte's width by the ODE"),
            ("return v, jnp.sum(w * along)", "return v, jnp.sum(along)", "the directions not multiplied again"),
            (
                "+ dims * jnp.log(most / least)",
                "- dims * jnp.log(most / least)",
                "the sign of D log of the size",
            ),
            ("start + integrals.mean(1), error", "start - integrals.mean(1), error", "the sign of the divergence"),
            ("/ math.sqrt(self.probes)", "/ self.probes", "the error over directions without its root"),
            (
                "draw(jax.random.rademacher, key,",
                "draw(jax.random.rademacher, jax.random.key(0),",
                "directions that know nothing of the key",
            ),
            ("u = (stratum.astype(x0.dtype) +", "u = (0.5 * stratum.astype(x0.dtype) +", "half of the strata"),
            ("return drawn.weight.astype(x0.dtype) * loss(", "return loss(", "the weights of the times left out"),
            ("0.25 * (first - second) ** 2", "0.5 * (first - second) ** 2", "a factor 2 in the bound's variance"),
            ("LogLikelihood(-total / strata", "LogLikelihood(total / strata", "the sign of the bound"),
            ("jnp.sqrt(square) / strata", "jnp.sqrt(square / strata)", "the bound's error not that of the mean"),
            (
                'VLB(self.bins, "nats", self.variance, self.width)',
                'VLB(self.bins, "nats")',
                "options not handed on",
            ),
            ("split_keys(fold_keys(keys, stratum), 2)", "split_keys(keys, 2)", "the same noise in every stratum"),
        ],
        "guidance.py": [
            (
                "middle + half * jnp.clip(u, -s, s) / s",
                "middle + half * jnp.clip(u, -s, s)",
                "the dynamic threshold's scale",
            ),
            ("jnp.clip(found.x0, self.low, self.high)", "jnp.maximum(found.x0, self.low)", "a clip on one side only"),
            ("rows(jnp.maximum(size, 1), u)", "rows(size, u)", "a dynamic threshold that stretches too"),
            (
                "other + self.scale * (ours - other)",
                "ours + self.scale * (ours - other)",
                "the paper's w for the scale of guidance",
            ),
            (
                "return predict if self.scale == 1 else self.unconditional",
                "return self.unconditional if self.scale == 1 else predict",
                "the ends of the scale exchanged",
            ),
            ("transpose(self.solve(y - seen, 0.0, 1.0))", "transpose(y - seen)", "A^T for its pseudo-inverse"),
            (".at[:, self.index].set(y)", ".at[:, self.index].add(y)", "pixels added up, not replaced"),
            ("noise + signal / self.channels", "noise + signal", "the grey of one channel for that of all"),
            ("_column(signal, y) * values", "_column(signal, y) * values**2", "singular values for their squares"),
            ("found.x0 + rows(self.scale", "found.x0 - rows(self.scale", "the sign of the likelihood's gradient"),
            (
                "ratio = process.sigma(t) ** 2 / process.alpha(t)\n            (step,)",
                "ratio = process.sigma(t) ** 2\n            (step,)",
                "alpha left out of Tweedie's formula",
            ),
            ("self.measure, self.std**2, off", "self.measure, self.std, off", "the deviation for the variance of y"),
            ("return off / noise", "return 2 * off / noise", "the paper's rho for the likelihood's factor"),
            (
                "lost * process.data_std**2 / (data + lost)",
                "lost / (data + lost)",
                "the data's variance in the isotropic spread",
            ),
            ("rows(ratio, table)", "rows(2 * ratio, table)", "a factor 2 in the covariance of second order"),
            ("symmetrize_input=True", "symmetrize_input=False", "a covariance that is not symmetric"),
            ("noise + jnp.maximum(values, 0)", "noise + values", "variances below zero"),
            ('"left": np.s_[:, : width // 2]', '"left": np.s_[:, width // 2 :]', "left and right"),
        ],
        "samplers/encode.py": [
            ("bottom, top, solver.rtol", "top, bottom, solver.rtol", "the ODE run down for up"),
            ("x / rows(process.alpha(bottom), x)", "x", "alpha at the end of decoding"),
            ("jnp.sin(f[:, None] * angle[None])", "jnp.sin(angle[None]) * f[:, None]", "the chord for the arc"),
        ],
    }.items()
    for old, new, meaning in changes
]

# The tests that guard a file, the quickest first; the first failure ends it.
TESTS = {
    "samplers": ["test_predictors.py", "test_samplers.py", "test_orders.py"],
    "samplers/adaptive": ["test_predictors.py", "test_likelihood.py"],
    "samplers/predictors": ["test_predictors.py", "test_samplers.py"],
    "samplers/grids": ["test_predictors.py"],
    "rules": ["test_rules.py", "test_predictors.py"],
    "process": ["test_process.py", "test_bound.py"],
    "denoiser": ["test_denoiser.py"],
    "losses": ["test_losses.py", "test_bound.py", "test_weightings.py", "test_conformance.py"],
    "losses/bound": ["test_bound.py", "test_conformance.py"],
    "losses/weightings": ["test_weightings.py"],
    "times": ["test_times.py"],
    "likelihood": ["test_likelihood.py"],
    "guidance": ["test_guidance.py", "test_predictors.py"],
    "samplers/encode": ["test_guidance.py"],
}


def guards(mutation: Mutation) -> list[str]:
    """The test modules to run, by the longest key of `TESTS` that the file begins with."""
    key = max((key for key in TESTS if mutation.file.startswith(key)), key=len)
    return [f"tests/{name}" for name in TESTS[key]]


def apply(mutation: Mutation, root: Path) -> None:
    """Make the change in the tree at `root`. Raises ValueError unless it has exactly one place."""
    path = root / "scoregen" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} has {text.count(mutation.old)} places that read {mutation.old!r}, not one")
    path.write_text(text.replace(mutation.old, mutation.new))


def killer(mutation: Mutation) -> str | None:
    """The first test that fails, or None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("scoregen", "configs", "tests", "experiments"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "setup.cfg", root)
        apply(mutation, root)
        command = ["-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"]
        result = subprocess.run(
            [sys.executable, *command, *guards(mutation)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"} | KEPT,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0:
            return None
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", result.stdout, re.MULTILINE)
        if found is None or result.returncode != 1:
            raise RuntimeError(
                f"{mutation.meaning}: the tests did not run\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
            )
        return found[1].removeprefix("tests/")


def main() -> int:
    parser = argparse.ArgumentParser("mutate.py", description="Break a formula, and see a test fail.")
    parser.add_argument("words", nargs="*", help="only mutations whose file or meaning has one of these")
    parser.add_argument("--out", type=Path, help="a file to write the table to")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.words or any(w in m.file + " " + m.meaning for w in options.words)]
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        found = []
        for mutation, caught in zip(chosen, pool.map(killer, chosen), strict=True):
            found.append(caught)
            print(f"{'caught  ' if caught else 'SURVIVED'} {mutation.file}: {mutation.meaning}  [{caught}]", flush=True)
    lines = ["| file | what is broken | the first test that fails |", "|---|---|---|"]
    lines += [
        f"| `{m.file}` | {m.meaning} | {f'`{caught}`' if caught else '**none**'} |"
        for m, caught in zip(chosen, found, strict=True)
    ]
    lines += ["", f"{len(chosen)} mutations, {sum(map(bool, found))} caught."]
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")
    print(lines[-1])
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
