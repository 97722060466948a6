// First of two files that include everything; linked together they prove that no function is defined twice.
#include <sluice/sluice.hpp>

int version_in_second_file();

int main() { return version_in_second_file() == SLUICE_VERSION_MINOR ? 0 : 1; }
