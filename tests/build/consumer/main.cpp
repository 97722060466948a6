// A user's smallest program: every header, found through the package, and a kernel.
#include <sluice/sluice.hpp>

int main() {
    sluice::tensor<float> a(1, 3), b(1, 3), sum(1, 3);
    a(0, 2) = 1, b(0, 2) = 2;
    sluice::add(sluice::in<float>(a), sluice::in<float>(b), sum.view(), {});
    return SLUICE_VERSION_MAJOR >= 0 && sum(0, 2) == 3 ? 0 : 1;
}
