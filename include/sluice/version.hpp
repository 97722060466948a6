// The version of the library. The build reads these three macros; nothing else states the version.
// Numbers follow semantic versioning: before 1.0 a minor release may change the interface.
#pragma once

#define SLUICE_VERSION_MAJOR 0
#define SLUICE_VERSION_MINOR 1
#define SLUICE_VERSION_PATCH 0
