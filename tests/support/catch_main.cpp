// The one main() of all tests. Ours, because version 2 of Catch2 brings no library that holds one.
#define CATCH_CONFIG_RUNNER
#include "support/catch.hpp"

int main(int argc, char** argv) { return Catch::Session().run(argc, argv); }
