// A path below the system's temporary folder that no other test uses, in this process or another: tests run
// side by side.
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <random>
#include <string>

namespace sluice::test {

inline std::filesystem::path scratch_path(const std::string& name) {
    static std::atomic<int> made{0};
    static const std::string process = std::to_string(std::random_device{}());
    const auto ticks = std::chrono::steady_clock::now().time_since_epoch().count();
    return std::filesystem::temp_directory_path() /
           ("sluice_" + name + "_" + process + "_" + std::to_string(ticks) + "_" + std::to_string(made++));
}

} // namespace sluice::test
