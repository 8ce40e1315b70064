"""python -m scoregen: which commands there are."""

COMMANDS = {
    "run": "train a model, sample from it, judge it",
    "sweep": "run many, and compare them in one table",
    "design": "choose an NCSN's noise levels from the data",
    "weights": "bring weights of other libraries in and out",
    "conformance": "hold every combination to closed forms",
}

if __name__ == "__main__":
    print("Score-based and diffusion generative models in JAX.\n")
    for name, what in COMMANDS.items():
        print(f"    {f'python -m scoregen.{name}':<32}{what}")
    print("\nA first one: python -m scoregen.run --config=ddpm_toy. Each says more with --help.")
