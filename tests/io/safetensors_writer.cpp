#include "support/catch.hpp"
#include "support/scratch_path.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <clocale>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <locale>
#include <string>
#include <vector>

namespace io = sluice::io;
namespace fs = std::filesystem;
using sluice::bf16;
using sluice::idx;
using sluice::tensor_view;

namespace {

// A path of this test's own, removed with the file.
class scratch {
public:
    explicit scratch(const std::string& name)
        : folder_(sluice::test::scratch_path("writer_" + name)), path_((folder_ / "f").string()) {
        fs::remove_all(folder_);
        fs::create_directories(folder_);
    }
    scratch(const scratch&) = delete;
    ~scratch() {
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }
    const std::string& path() const { return path_; }
    std::string content() const {
        std::ifstream in(path_, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    std::size_t files() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
    }

private:
    fs::path folder_;
    std::string path_;
};

template <class T>
T value(idx i) {
    if constexpr (requires(T t) { t.bits; })
        return T{static_cast<decltype(T::bits)>(i * 40'503)};
    else
        return static_cast<T>(i * 7 - 50);
}

template <class T>
void round_trip(const std::string& type) {
    const scratch s("round_trip");
    sluice::tensor<T> t(3, 5);
    for (idx i = 0; i < 3; ++i)
        for (idx j = 0; j < 5; ++j) t(i, j) = value<T>(5 * i + j);
    io::safetensors_writer w;
    w.add("whole", t.view());
    w.add("part", t.view().row_block(1, 2).col_block(1, 3));
    w.add("const", tensor_view<const T>(t.view()));
    w.add("row", tensor_view<T>(t.row(2), 1, 5), {5});
    w.add("cube", t.view(), {3, 1, 5, 1});
    w.add("scalar", tensor_view<T>(t.row(1), 1, 1), {});
    w.add("none", tensor_view<T>(nullptr, 0, 5));
    w.save(s.path());

    const io::safetensors f = io::read(s.path());
    CHECK(f.tensors().size() == 7);
    auto same = [&](const std::string& name, const tensor_view<const T>& expected) {
        const auto v = f.view<T>(name); // every tensor is aligned
        REQUIRE((v.rows() == expected.rows() && v.cols() == expected.cols()));
        for (idx i = 0; i < v.rows(); ++i)
            for (idx j = 0; j < v.cols(); ++j) CHECK(v(i, j) == expected(i, j));
    };
    same("whole", t);
    same("part", t.view().row_block(1, 2).col_block(1, 3));
    same("const", t);
    same("row", t.view().row_block(2, 1));
    same("cube", {t.data(), 15, 1});
    same("scalar", {t.row(1), 1, 1});
    same("none", {nullptr, 0, 5});
    CHECK(f.info("whole").text() == type + " [3, 5]");
    CHECK(f.info("cube").text() == type + " [3, 1, 5, 1]");
    CHECK(f.info("row").text() == type + " [5]");
    CHECK(f.info("scalar").text() == type + " []");
    CHECK(f.info("none").text() == type + " [0, 5]");
}

} // namespace

TEST_CASE("every type comes back as it was") {
    round_trip<float>("F32");
    round_trip<double>("F64");
    round_trip<bf16>("BF16");
    round_trip<sluice::half>("F16");
    round_trip<sluice::f8_e4m3>("F8_E4M3");
    round_trip<std::int8_t>("I8");
    round_trip<std::int32_t>("I32");
    round_trip<std::int64_t>("I64");
    round_trip<std::uint8_t>("U8");
}

TEST_CASE("types are written as bytes") {
    const scratch s("bytes");
    const std::array<std::byte, 6> raw{std::byte{1}, std::byte{2}, std::byte{3},
                                       std::byte{4}, std::byte{5}, std::byte{6}};
    io::safetensors_writer w;
    w.add_bytes("half", io::dtype::f16, {3}, raw);
    w.add_bytes("fp8", io::dtype::f8_e4m3, {2, 3}, raw);
    w.add_bytes("flags", io::dtype::boolean, {6, 0}, {});
    w.save(s.path());
    const io::safetensors f = io::read(s.path());
    CHECK(f.info("half").text() == "F16 [3]");
    CHECK(f.info("fp8").text() == "F8_E4M3 [2, 3]");
    CHECK(f.info("flags").text() == "BOOL [6, 0]");
    CHECK(std::equal(raw.begin(), raw.end(), f.info("half").bytes.begin(), f.info("half").bytes.end()));
    CHECK(std::equal(raw.begin(), raw.end(), f.info("fp8").bytes.begin(), f.info("fp8").bytes.end()));
}

TEST_CASE("the file is byte for byte what the format says") {
    const scratch s("exact");
    const std::int8_t small[3] = {-1, 2, 3};
    const std::int32_t wide[2] = {1, -2};
    io::safetensors_writer w;
    w.add("b", tensor_view<const std::int8_t>(small, 1, 3), {3});
    w.add("a", tensor_view<const std::int32_t>(wide, 2, 1));
    w.metadata("by", "hand");
    w.save(s.path());
    std::string header =
        R"({"__metadata__":{"by":"hand"},"a":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]},)"
        R"("b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}})";
    header.resize((8 + header.size() + 63) / 64 * 64 - 8, ' ');
    const std::string length{static_cast<char>(header.size()), 0, 0, 0, 0, 0, 0, 0};
    using namespace std::string_literals;
    CHECK(s.content() == length + header + "\x01\0\0\0\xFE\xFF\xFF\xFF"s + "\xFF\x02\x03"s);
}

TEST_CASE("data begins at a multiple of 64 bytes whatever the header's length") {
    const float x = 1;
    for (std::size_t n = 1; n < 130; ++n) {
        const scratch s("aligned");
        io::safetensors_writer w;
        w.add(std::string(n, 'x'), tensor_view<const float>(&x, 1, 1));
        w.save(s.path());
        REQUIRE(s.content().size() % 64 == 4);
        const io::safetensors f = io::read(s.path());
        REQUIRE(reinterpret_cast<std::uintptr_t>(f.view<float>(std::string(n, 'x')).data()) % 64 == 0);
    }
}

TEST_CASE("larger elements come first and calls keep their order among equals") {
    const scratch s("order");
    const double d = 1;
    const float f1 = 1, f2 = 2;
    const std::uint8_t u[3] = {1, 2, 3};
    io::safetensors_writer w;
    w.add("u", tensor_view<const std::uint8_t>(u, 1, 3));
    w.add("z", tensor_view<const float>(&f1, 1, 1));
    w.add("a", tensor_view<const float>(&f2, 1, 1));
    w.add("d", tensor_view<const double>(&d, 1, 1));
    w.save(s.path());
    const io::safetensors f = io::read(s.path());
    const auto* first = f.info("d").bytes.data();
    CHECK(f.info("z").bytes.data() == first + 8);
    CHECK(f.info("a").bytes.data() == first + 12);
    CHECK(f.info("u").bytes.data() == first + 16);
}

TEST_CASE("an empty writer writes an empty file") {
    const scratch s("empty");
    io::safetensors_writer().save(s.path());
    CHECK(s.content().size() == 64);
    const io::safetensors f = io::read(s.path());
    CHECK((f.names().empty() && f.metadata().empty()));
}

TEST_CASE("names and metadata may hold any text") {
    const scratch s("text");
    const float x = 1;
    const std::string name = "a \"quoted\" \\ \xE2\x82\xAC name/..";
    io::safetensors_writer w;
    w.add(name, tensor_view<const float>(&x, 1, 1));
    w.metadata("", std::string("\0\n\t{}", 5));
    w.metadata("k", "first");
    w.metadata("k", "second");
    w.save(s.path());
    const io::safetensors f = io::read(s.path());
    CHECK(f.names() == std::vector<std::string>{name});
    CHECK(f.metadata() ==
          std::map<std::string, std::string>{{"", std::string("\0\n\t{}", 5)}, {"k", "second"}});
}

TEST_CASE("names that a reader would refuse are refused") {
    const float x = 1;
    const tensor_view<const float> v(&x, 1, 1);
    io::safetensors_writer w;
    w.add("t", v);
    CHECK_THROWS_AS(w.add("", v), sluice::input_error);
    CHECK_THROWS_WITH(w.add("", v), "safetensors_writer: a tensor has an empty name");
    CHECK_THROWS_WITH(w.add("t", v), "safetensors_writer: the name \"t\" was added already");
    CHECK_THROWS_WITH(w.add("__metadata__", v), "safetensors_writer: the name \"__metadata__\" is reserved");
    CHECK_THROWS_WITH(w.add("a\nb", v), "safetensors_writer: a tensor name holds a control character");
    CHECK_THROWS_WITH(w.add("a\xC0", v), "safetensors_writer: \"a\xC0\" is not UTF-8");
    CHECK_THROWS_WITH(w.add(std::string(513, 'x'), v),
                      "safetensors_writer: a tensor name has 513 bytes, at most 512 are allowed");
    CHECK_NOTHROW(w.add(std::string(512, 'x'), v));
    CHECK_THROWS_AS(w.metadata("k", "\xFF"), sluice::input_error);
    CHECK_THROWS_AS(w.metadata("\xFF", "v"), sluice::input_error);
}

TEST_CASE("shapes that do not fit the view are refused") {
    const float x[6] = {};
    const tensor_view<const float> v(x, 2, 3);
    io::safetensors_writer w;
    CHECK_THROWS_AS(w.add("t", v, {7}), sluice::config_error);
    CHECK_THROWS_WITH(w.add("t", v, {7}),
                      "safetensors_writer: \"t\": F32 [7] does not fit the 24 bytes given");
    CHECK_THROWS_WITH(w.add("t", v, {-2, -3}),
                      "safetensors_writer: \"t\": F32 [-2, -3] does not fit the 24 bytes given");
    CHECK_THROWS_AS(w.add("t", v, {}), sluice::config_error);
    CHECK_THROWS_AS(w.add("t", v, {idx{1} << 62, 4}), sluice::config_error);
    CHECK_THROWS_WITH(w.add("t", v, {1, 1, 1, 1, 1, 1, 1, 2, 3}),
                      "safetensors_writer: \"t\": more than 8 dimensions");
    CHECK_THROWS_WITH(w.add("t", tensor_view<const float>(nullptr, 2, 3)),
                      "safetensors_writer: \"t\": the view has no memory");
    CHECK_THROWS_AS(w.add_bytes("t", io::dtype::f16, {2}, std::as_bytes(std::span(x, 1)).first(3)),
                    sluice::config_error);
    CHECK_NOTHROW(w.add("t", v, {6})); // what was refused left no trace
}

TEST_CASE("a failed save leaves the old file and no other") {
    const scratch s("failed");
    const float x = 1;
    io::safetensors_writer w;
    w.add("t", tensor_view<const float>(&x, 1, 1));
    w.save(s.path());
    const std::string old = s.content();
    io::safetensors_writer large;
    large.metadata("k", std::string(100'000'000, 'x'));
    CHECK_THROWS_AS(large.save(s.path()), sluice::input_error);
    CHECK_THROWS_WITH(large.save(s.path()),
                      s.path() + ": the header would have 100000056 bytes, at most 100000000 are allowed");
    CHECK(s.content() == old);
    CHECK(s.files() == 1);
    CHECK_THROWS_AS(w.save(s.path() + "/below"), sluice::input_error);
}

TEST_CASE("saving reads the views when it is called") {
    const scratch s("late");
    float x = 1;
    io::safetensors_writer w;
    w.add("t", tensor_view<float>(&x, 1, 1));
    x = 2;
    w.save(s.path());
    CHECK(io::safetensors(io::read(s.path())).view<float>("t")(0, 0) == 2);
    x = 3;
    w.save(s.path());
    CHECK(io::safetensors(io::read(s.path())).view<float>("t")(0, 0) == 3);
    CHECK(s.files() == 1);
}

TEST_CASE("a tensor larger than the buffer is streamed") {
    const scratch s("large");
    sluice::tensor<float> t(300, 1000);
    for (idx i = 0; i < 300; ++i)
        for (idx j = 0; j < 1000; ++j) t(i, j) = static_cast<float>(i * 1000 + j);
    io::safetensors_writer w;
    w.add("t", t.view().col_block(3, 990));
    w.add("all", t.view());
    w.save(s.path());
    const io::safetensors f = io::read(s.path());
    const auto v = f.view<float>("t");
    const auto all = f.view<float>("all");
    bool same = true;
    for (idx i = 0; i < 300; ++i)
        for (idx j = 0; j < 990; ++j) same = same && v(i, j) == t(i, j + 3) && all(i, j) == t(i, j);
    CHECK(same);
}

TEST_CASE("rows that are made while they are written") {
    const scratch s("made");
    io::safetensors_writer out;
    idx asked = 0, calls = 0;
    out.add_rows<float>("t", 70000, 5, [&](idx first, sluice::tensor_view<float> part) {
        CHECK(first == asked);
        asked += part.rows();
        ++calls;
        for (idx i = 0; i < part.rows(); ++i)
            for (idx j = 0; j < 5; ++j) part(i, j) = static_cast<float>((first + i) * 5 + j);
    });
    out.add_rows<std::int8_t>("none", 0, 5, [](idx, sluice::tensor_view<std::int8_t>) { FAIL(); });
    out.save(s.path());
    CHECK((asked == 70000 && calls > 1));
    const io::safetensors file(io::read(s.path()));
    CHECK(file.info("none").text() == "I8 [0, 5]");
    const auto t = file.view<float>("t");
    idx wrong = 0;
    for (idx i = 0; i < 350000; ++i) wrong += t.data()[i] != static_cast<float>(i);
    CHECK(wrong == 0);
}

// A program may have set a locale that writes 1.000,5.
TEST_CASE("the locale changes neither what is written nor what is read") {
    struct commas : std::numpunct<char> {
        char do_decimal_point() const override { return ','; }
        char do_thousands_sep() const override { return '.'; }
        std::string do_grouping() const override { return "\3"; }
    };
    struct other_locale {
        std::locale before = std::locale::global(std::locale(std::locale::classic(), new commas));
        std::string c_before = std::setlocale(LC_ALL, nullptr);
        other_locale() {
            for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "German"})
                if (std::setlocale(LC_ALL, name) != nullptr) break; // where the system has one
        }
        ~other_locale() {
            std::locale::global(before);
            std::setlocale(LC_ALL, c_before.c_str());
        }
    };
    sluice::tensor<float> t(1234, 3);
    t(1233, 2) = 0.5F;
    auto write = [&] {
        const scratch s("locale");
        io::safetensors_writer out;
        out.add("t", t.view());
        out.metadata("rate", "0.5");
        out.save(s.path());
        const io::safetensors file(io::read(s.path()));
        CHECK(file.info("t").text() == "F32 [1234, 3]");
        CHECK(file.view<float>("t")(1233, 2) == 0.5F);
        return s.content();
    };
    const std::string usual = write();
    const other_locale now;
    CHECK(write() == usual);
}
