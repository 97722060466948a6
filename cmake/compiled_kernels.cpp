// Precompiles compiled_kernels.hpp for the targets of sluice_compile_kernels; it is included by their flags.
