// Where a model's files are: what --model-path and its like mean. Any thread.
#pragma once

#include "hub/hub.h"

#include <string>

namespace parallm {

/** A local file or folder is itself; a model's name on the Hugging Face hub (hub/hub.h lists the forms) is fetched into
 * the cache, as the environment says (hub_environment). Errors: not_found, naming both; fetch_model's. */
std::string model_files(const std::string& path, const OnFetch& on_fetch = {});

} // namespace parallm
