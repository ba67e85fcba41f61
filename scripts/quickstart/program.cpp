// SPDX-License-Identifier: Apache-2.0
// Step 2 compiles this with the precompiled header, and links it with the archive, that step 1 made.
#include "prelude.hpp"

#include "base/errc.hpp"
#include "base/types.hpp"

int main() {
  nlohmann::json report;
  report["valid_text"] = stepstash::valid_text("Übung") && !stepstash::valid_text("\xFF");
  report["errc_1"] = stepstash::make_error_code(stepstash::Errc::not_found).message();
  std::cout << fmt::format("{}\n", report.dump());
  return report["valid_text"].get<bool>() ? 0 : 1;
}
