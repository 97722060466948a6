// Second of two files that include everything.
#include <sluice/sluice.hpp>

int version_in_second_file();

int version_in_second_file() { return SLUICE_VERSION_MINOR; }
