// Precompiles what most tests include first; see tests/CMakeLists.txt.
