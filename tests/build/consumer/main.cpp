// A user's smallest program: every header, found through the package.
#include <sluice/sluice.hpp>

int main() { return SLUICE_VERSION_MAJOR >= 0 ? 0 : 1; }
