// Names that nothing else has. Any thread.
#pragma once

#include <string>

namespace parallm {

/** So many random hex digits. */
std::string random_hex(int digits);

} // namespace parallm
