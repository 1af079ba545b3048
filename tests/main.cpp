#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#if defined(__SANITIZE_THREAD__)
// An exception in a future is counted by atomics inside libstdc++.so, which is built without the sanitizer: it takes
// the last release for a race with the reader (seen on g++ 12; both reports end in this one function).
extern "C" const char* __tsan_default_suppressions() {
  return "race:std::__future_base::_Result<void>::_M_destroy\n";
}
#endif
