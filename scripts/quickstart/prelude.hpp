// SPDX-License-Identifier: Apache-2.0
// What the programs of quickstart's build have in common; step 1 precompiles it, step 2 compiles with the result.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <thread>
#include <vector>
