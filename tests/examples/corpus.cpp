// Checks how text is found, ordered, split, and refused, on small folders made for each case.
#include "../../examples/support/corpus.hpp"

#include "support/catch.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace fs = std::filesystem;
using sluice::examples::corpus;
using sluice::examples::load_corpus;
using sluice::examples::load_folder;

namespace {

class temporary_folder {
public:
    temporary_folder() {
        static std::atomic<int> n_made{0};
        const auto ticks = std::chrono::steady_clock::now().time_since_epoch().count();
        path_ = fs::temp_directory_path() /
                ("sluice_corpus_" + std::to_string(ticks) + "_" + std::to_string(n_made++));
        fs::create_directories(path_);
    }

    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;

    ~temporary_folder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }

    [[nodiscard]] const fs::path& path() const { return path_; }

    fs::path write(const std::string& name, const std::string& text) const {
        const fs::path path = path_ / name;
        fs::create_directories(path.parent_path());
        std::ofstream(path, std::ios::binary) << text;
        return path;
    }

private:
    fs::path path_;
};

std::string as_text(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

template <typename Load>
std::string refusal(Load load) {
    try {
        load();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "nothing was refused";
}

bool names(const std::string& message, const std::string& part) {
    return message.find(part) != std::string::npos;
}

// Twenty headers a.h, b.h, … of 2000 equal bytes each: held out are j (index 9) and t (index 19).
void write_letters(const temporary_folder& folder, const std::string& below = "") {
    for (char letter = 't'; letter >= 'a'; --letter) {
        folder.write(below + letter + ".h", std::string(2000, letter));
    }
}

} // namespace

TEST_CASE("a few files give up their last tenth each, in the order given", "[examples][corpus]") {
    const temporary_folder folder;
    const auto second = folder.write("a.txt", std::string(9000, 'x') + std::string(1000, 'y'));
    const auto first = folder.write("b.txt", std::string(4500, 'p') + std::string(509, 'q'));
    const corpus text = load_corpus({first, second});
    CHECK(text.n_files == 2);
    CHECK(text.n_held_out_files == 0);
    CHECK(text.n_skipped == 0);
    CHECK(as_text(text.training) == std::string(4500, 'p') + std::string(9, 'q') + std::string(9000, 'x'));
    CHECK(as_text(text.held_out) == std::string(500, 'q') + std::string(1000, 'y'));
}

TEST_CASE("bytes of any value are kept", "[examples][corpus]") {
    const temporary_folder folder;
    std::string all;
    for (int i = 0; i < 256 * 60; ++i) {
        all += static_cast<char>(i % 256);
    }
    const corpus text = load_corpus({folder.write("bytes.bin", all)});
    CHECK(as_text(text.training) + as_text(text.held_out) == all);
}

TEST_CASE("of ten or more files every tenth is held out whole", "[examples][corpus]") {
    const temporary_folder folder;
    std::vector<fs::path> files;
    std::string training;
    for (char letter = 'z'; letter > 'z' - 21; --letter) {
        files.push_back(folder.write(std::string(1, letter), std::string(1500, letter)));
        const auto index = 'z' - letter;
        training += index == 9 || index == 19 ? std::string() : std::string(1500, letter);
    }
    const corpus text = load_corpus(files);
    CHECK(text.n_files == 21);
    CHECK(text.n_held_out_files == 2);
    CHECK(as_text(text.training) == training);
    CHECK(as_text(text.held_out) == std::string(1500, 'q') + std::string(1500, 'g'));
}

TEST_CASE("nine files are split within, ten are not", "[examples][corpus]") {
    const temporary_folder folder;
    std::vector<fs::path> files;
    for (char letter = 'a'; letter < 'a' + 9; ++letter) {
        files.push_back(folder.write(std::string(1, letter), std::string(2000, letter)));
    }
    const corpus nine = load_corpus(files);
    CHECK(nine.n_held_out_files == 0);
    CHECK(nine.held_out.size() == 9 * 200);
    files.push_back(folder.write("j", std::string(2000, 'j')));
    const corpus ten = load_corpus(files);
    CHECK(ten.n_held_out_files == 1);
    CHECK(as_text(ten.held_out) == std::string(2000, 'j'));
}

TEST_CASE("files named one by one are refused with option, name, and reason", "[examples][corpus]") {
    const temporary_folder folder;
    const auto good = folder.write("good.txt", std::string(20000, 'g'));
    const auto message_for = [&](const fs::path& path) {
        return refusal([&] { load_corpus({good, path}); });
    };

    const auto missing = message_for(folder.path() / "missing.txt");
    CHECK(names(missing, "--text"));
    CHECK(names(missing, "missing.txt"));
    CHECK(names(missing, "no such file"));
    CHECK(names(message_for(good / "below.txt"), "no such file"));
    CHECK(names(message_for(""), "no such file"));
    CHECK(names(message_for(folder.path()), "is a folder"));
    const auto empty = message_for(folder.write("empty.txt", ""));
    CHECK(names(empty, "empty.txt"));
    CHECK(names(empty, "is empty"));
    CHECK(names(message_for(good), "given twice"));
    CHECK(names(message_for(folder.path() / "." / "good.txt"), "given twice"));
    CHECK(names(refusal([] { load_corpus({}); }), "--text: no file given"));
}

TEST_CASE("a device is refused as no regular file", "[examples][corpus]") {
    const fs::path device = "/dev/null";
    if (fs::is_character_file(device)) {
        CHECK(names(refusal([&] { load_corpus({device}); }), "not a regular file"));
    }
}

TEST_CASE("a file that may not be read is refused", "[examples][corpus]") {
    const temporary_folder folder;
    const auto closed = folder.write("closed.txt", std::string(20000, 'c'));
    fs::permissions(closed, fs::perms::none);
    if (std::ifstream(closed).is_open()) {
        SUCCEED("some users and file systems heed no permissions");
        return;
    }
    const auto message = refusal([&] { load_corpus({closed}); });
    CHECK(names(message, "closed.txt"));
    CHECK(names(message, "cannot be opened"));
}

TEST_CASE("a file that ends early or fails is refused", "[examples][corpus]") {
    namespace detail = sluice::examples::detail;
    std::istringstream whole("12345");
    CHECK(as_text(detail::read_exactly(whole, 5, "file")) == "12345");
    std::istringstream early("12345");
    CHECK(refusal([&] { detail::read_exactly(early, 9, "--text 'f'"); }) ==
          "--text 'f': read short: 5 of 9 bytes");
    std::istringstream broken("12345");
    broken.setstate(std::ios::badbit);
    CHECK(names(refusal([&] { detail::read_exactly(broken, 5, "--text 'f'"); }), "reading failed"));
    CHECK(names(refusal([&] { detail::read_file("/no/such/file", 5, "--text 'f'"); }), "cannot be opened"));
}

TEST_CASE("too little text is refused", "[examples][corpus]") {
    const temporary_folder folder;
    const auto small = folder.write("small.txt", std::string(4500, 's'));
    const auto training = refusal([&] { load_corpus({small}); });
    CHECK(names(training, "4050 training bytes"));
    CHECK(names(training, "4096"));
    const auto middle = folder.write("middle.txt", std::string(10239, 'm'));
    const auto held_out = refusal([&] { load_corpus({middle}); });
    CHECK(names(held_out, "1023 held-out bytes"));
    CHECK_NOTHROW(load_corpus({folder.write("enough.txt", std::string(10240, 'e'))}));
}

TEST_CASE("headers below a folder are sorted by path and every tenth is held out", "[examples][corpus]") {
    const temporary_folder folder;
    write_letters(folder);
    const corpus text = load_folder(folder.path());
    CHECK(text.n_files == 20);
    CHECK(text.n_held_out_files == 2);
    CHECK(text.n_skipped == 0);
    CHECK(as_text(text.held_out) == std::string(2000, 'j') + std::string(2000, 't'));
    CHECK(std::is_sorted(text.training.begin(), text.training.end()));
    CHECK(text.training.size() == 18 * 2000);
}

TEST_CASE("the order is bytewise over the whole relative path", "[examples][corpus]") {
    const temporary_folder folder;
    // '-' < '.' < '/' < 'B' < 'a': neither folder by folder nor blind to case.
    const std::vector<std::string> sorted{"B.h", "a-.h",    "a.h", "a/z.h", "aa.h",
                                          "b.h", "b/c/d.h", "c.h", "d.h"};
    std::string expected;
    char letter = '0';
    for (const auto& name : sorted) {
        folder.write(name, std::string(1000, letter));
        expected += std::string(1000, letter++);
    }
    folder.write("e.h", std::string(1024, 'h'));
    const corpus text = load_folder(folder.path() / "");
    CHECK(as_text(text.training) == expected);
    CHECK(as_text(text.held_out) == std::string(1024, 'h'));
}

TEST_CASE("only what looks like a header is used", "[examples][corpus]") {
    const temporary_folder folder;
    write_letters(folder, "z/");
    folder.write("A/Core", "#ifndef CORE_H\n");
    folder.write("A/Dense", "#include \"Core\"\n");
    folder.write("A/Once", "#pragma once\n");
    folder.write("A/signature", "This file marks the folder.\n");
    folder.write("A/image", std::string("#include") + '\0' + "x");
    folder.write("A/binary.h", std::string(100, '\0'));
    folder.write("A/empty.h", "");
    folder.write("A/source.cpp", "int main() {}\n");
    folder.write("A/notes.txt", "#include\n");
    folder.write("A/.hidden", "#include\n");
    folder.write("A/large.h", std::string(5001, 'l'));
    folder.write("A/most.h", std::string(5000, 'm'));
    folder.write("A/other.hpp", "other");
    const corpus text = load_folder(folder.path(), 5000);
    CHECK(text.n_files == 25);
    CHECK(text.n_held_out_files == 2);
    CHECK(text.n_skipped == 8);
    std::string start = "#ifndef CORE_H\n#include \"Core\"\n#pragma once\n";
    start.append(5000, 'm').append("other");
    CHECK(as_text(text.training).substr(0, start.size() + 1) == start + "a");
    // Five files come before, so that index 9 is e.h and index 19 is o.h: what is left out does not count.
    CHECK(as_text(text.held_out) == std::string(2000, 'e') + std::string(2000, 'o'));
}

TEST_CASE("a link does not bring in the same file again", "[examples][corpus]") {
    const temporary_folder folder;
    write_letters(folder);
    std::error_code failure;
    fs::create_symlink(folder.path() / "a.h", folder.path() / "zz.h", failure);
    fs::create_symlink(folder.path() / "gone.h", folder.path() / "broken.h", failure);
    fs::create_directory_symlink(folder.path(), folder.path() / "loop", failure);
    if (failure) {
        return; // not every file system has links
    }
    const corpus text = load_folder(folder.path());
    CHECK(text.n_files == 20);
    CHECK(text.n_skipped == 1);
    CHECK(text.training.size() == 18 * 2000);
}

TEST_CASE("a folder that will not do is refused with name and reason", "[examples][corpus]") {
    const temporary_folder folder;
    const auto missing = refusal([&] { load_folder(folder.path() / "missing"); });
    CHECK(names(missing, "missing"));
    CHECK(names(missing, "no such folder"));
    const auto file = folder.write("a.h", std::string(9000, 'a'));
    CHECK(names(refusal([&] { load_folder(file); }), "is not a folder"));
    const auto few = refusal([&] { load_folder(folder.path()); });
    CHECK(names(few, "0 held-out bytes in 1 files"));
    const temporary_folder bare;
    CHECK(names(refusal([&] { load_folder(bare.path()); }), "0 training bytes in 0 files"));
}
