"""Score-based and diffusion generative models in JAX, from one perturbation kernel.

Import from the modules themselves: `scoregen.process`, `scoregen.denoiser`, `scoregen.losses`,
`scoregen.samplers` are the mathematics; `scoregen.experiment`, `scoregen.train` and `scoregen.run` put them to work.
"""
