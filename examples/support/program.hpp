// What every program does around its work: it reads options from the command line, and tells what went wrong
// in a line on stderr.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdio>

namespace sluice::examples {

// Adds the options with add_options(app, options), parses, and calls run(options), which throws what went
// wrong. Returns the exit code of the program: 0, or 2 after an error.
template <class Options, class Add, class Run>
int run_program(const char* name, const char* what, int argc, char** argv, const Add& add_options,
                const Run& run) {
    CLI::App app(what, name);
    Options o;
    try {
        add_options(app, o);
        app.parse(argc, argv);
        run(o);
        return 0;
    } catch (const CLI::CallForHelp& e) {
        return app.exit(e);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s: %s\n", name, e.what());
        return 2;
    }
}

} // namespace sluice::examples
