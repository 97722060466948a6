// The values of a small JSON file by their dotted paths, for configs of published models:
// "rope_parameters.rope_theta".
//
// Elements of arrays are not kept; null is as if the key were missing.
#pragma once

#include "json.hpp"

#include <map>
#include <optional>
#include <variant>

namespace sluice::io {
inline namespace SLUICE_ISA {

class json_values {
public:
    // Throws input_error where the file is no JSON object, nested deeper than 32, or has a key twice.
    explicit json_values(const file& source) : path_(source.path()) {
        const auto bytes = source.bytes();
        const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        reader to{path_, values_};
        read_json(text, path_, to, {.depth = 32, .keys = 10'000});
    }

    const std::string& path() const { return path_; }
    bool has_value(const std::string& key) const { return values_.count(key) > 0; }
    // With a second argument that is what a missing key stands for; without, and where the value is of
    // another type, input_error.
    std::int64_t integer(const std::string& key) const {
        const std::uint64_t n = get<std::uint64_t>(key, "an integer");
        if (!checked_size(n).valid()) detail::fail(path_, "\"" + key + "\" is " + std::to_string(n));
        return static_cast<std::int64_t>(n);
    }
    std::int64_t integer(const std::string& key, std::int64_t missing) const {
        return has_value(key) ? integer(key) : missing;
    }
    double real(const std::string& key) const {
        const auto at = values_.find(key);
        if (at != values_.end() && std::holds_alternative<std::uint64_t>(at->second))
            return static_cast<double>(std::get<std::uint64_t>(at->second));
        return get<double>(key, "a number");
    }
    double real(const std::string& key, double missing) const { return has_value(key) ? real(key) : missing; }
    bool boolean(const std::string& key, bool missing) const {
        return has_value(key) ? get<bool>(key, "true or false") : missing;
    }
    std::string text(const std::string& key) const { return get<std::string>(key, "a string"); }
    std::string text(const std::string& key, const std::string& missing) const {
        return has_value(key) ? text(key) : missing;
    }

private:
    using value = std::variant<std::string, std::uint64_t, double, bool>;
    struct reader {
        const std::string& where;
        std::map<std::string, value>& values;
        int arrays = 0;

        void open(const json_place& at, bool array) {
            if (array) require_object(at);
            arrays += array || arrays > 0;
        }
        void close(const json_place&) { arrays -= arrays > 0; }
        void text(const json_place& at, std::string& v) { keep(at, std::move(v)); }
        void number(const json_place& at, std::uint64_t v) { keep(at, v); }
        void real(const json_place& at, double v) { keep(at, v); }
        void boolean(const json_place& at, bool v) { keep(at, v); }
        void other(const json_place& at) const { require_object(at); }
        void require_object(const json_place& at) const {
            if (at.depth == 0) detail::fail(where, "is no object");
        }
        void keep(const json_place& at, value v) {
            require_object(at);
            if (arrays > 0) return;
            std::string path;
            for (const std::string& key : at.keys) path.append(path.empty() ? "" : ".").append(key);
            values.emplace(std::move(path), std::move(v));
        }
    };
    template <class T>
    const T& get(const std::string& key, const char* wanted) const {
        const auto at = values_.find(key);
        if (at == values_.end()) detail::fail(path_, "has no \"" + key + "\"");
        if (!std::holds_alternative<T>(at->second)) detail::fail(path_, "\"" + key + "\" must be " + wanted);
        return std::get<T>(at->second);
    }

    std::string path_;
    std::map<std::string, value> values_;
};

} // namespace SLUICE_ISA
} // namespace sluice::io
