"""Operations on top of the public API: sweeps, weights of other libraries, the design of noise levels."""
