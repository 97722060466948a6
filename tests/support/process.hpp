// Runs a program of ours: what it prints, how it ends, and interrupting it. Not on Windows.
#pragma once

#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace sluice::test {

using arguments = std::vector<std::string>;

struct outcome {
    int status = 0; // of the program; minus the signal that ended it
    std::string out, err;
};

// A program under way, with what it prints in two files.
class process {
public:
    process(const std::string& program, const std::filesystem::path& folder, const arguments& args)
        : out_(folder / "out"), err_(folder / "err") {
        arguments all{program};
        all.insert(all.end(), args.begin(), args.end());
        std::vector<char*> argv;
        for (auto& a : all) argv.push_back(a.data());
        argv.push_back(nullptr);
        child_ = ::fork();
        REQUIRE(child_ >= 0);
        if (child_ == 0) {
            redirect(out_, STDOUT_FILENO);
            redirect(err_, STDERR_FILENO);
            const rlimit no_core{0, 0};
            ::setrlimit(RLIMIT_CORE, &no_core);
            std::signal(SIGINT, SIG_DFL); // a program in the background may ignore it
            ::alarm(120);                 // a program that hangs is ended, which is seen
            ::execv(argv[0], argv.data());
            ::_exit(127);
        }
    }
    process(const process&) = delete;
    ~process() {
        if (child_ > 0) {
            ::kill(child_, SIGKILL);
            (void)wait();
        }
    }
    void interrupt() const { ::kill(child_, SIGINT); }

    // Until it has a handler for SIGINT, or is gone.
    void wait_for_handler() const {
#if defined(__linux__)
        for (int i = 0; i < 6000; ++i) {
            const std::string status = get("/proc/" + std::to_string(child_) + "/status");
            const auto at = status.find("SigCgt:");
            if (at == status.npos) return;
            if ((std::stoull(status.substr(at + 7), nullptr, 16) >> (SIGINT - 1) & 1) != 0) return;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
#else
        std::this_thread::sleep_for(std::chrono::seconds(3));
#endif
    }
    outcome wait() {
        int status = 0;
        while (::waitpid(child_, &status, 0) < 0 && errno == EINTR) {
        }
        child_ = -1;
        return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), get(out_), get(err_)};
    }

private:
    static void redirect(const std::filesystem::path& path, int to) {
        const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || ::dup2(fd, to) < 0) ::_exit(126);
    }
    std::filesystem::path out_, err_;
    pid_t child_ = -1;
};

} // namespace sluice::test
