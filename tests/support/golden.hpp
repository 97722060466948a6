// Golden values kept as JSON in tests/data. Without nlohmann::json, SLUICE_TEST_HAS_JSON is 0.
#pragma once

#if __has_include(<nlohmann/json.hpp>)
#    define SLUICE_TEST_HAS_JSON 1
#    include <nlohmann/json.hpp>

#    include <fstream>
#    include <string>

namespace sluice::test {

using json = nlohmann::json;
inline json golden(const std::string& name) {
    return json::parse(std::ifstream(SLUICE_TEST_DIR "/data/" + name));
}

} // namespace sluice::test
#else
#    define SLUICE_TEST_HAS_JSON 0
#endif
